"""Extensions: data of the embedding program, which is stored with a sandbox by name.

Code of revision 0001 may still read and write: it changes no extension. The cascade and the trigger
that delete extensions with their sandbox are in the file. So `min_reader` and `min_writer` stay 1.
"""

from __future__ import annotations

from typing import Final, NoReturn

from alembic import op

revision: Final = "0002"
down_revision: Final = "0001"

STATEMENTS: Final = (
    """
CREATE TABLE sandbox_extensions (
  sandbox_id TEXT NOT NULL,
  name TEXT NOT NULL,
  type_url TEXT DEFAULT '' NOT NULL,
  value BLOB NOT NULL,
  CONSTRAINT sandbox_extensions_pk PRIMARY KEY (sandbox_id, name),
  CONSTRAINT sandbox_extensions_check_name CHECK (length(name) BETWEEN 1 AND 256),
  CONSTRAINT sandbox_extensions_check_type_url CHECK (length(type_url) <= 1024),
  CONSTRAINT sandbox_extensions_check_value CHECK (length(value) <= 262144),
  CONSTRAINT sandbox_extensions_fk_sandbox_id FOREIGN KEY(sandbox_id) REFERENCES sandboxes (id)
    ON DELETE CASCADE
) STRICT""",
    "DROP TRIGGER sandboxes_rows_follow",
    """
CREATE TRIGGER sandboxes_rows_follow AFTER DELETE ON sandboxes
BEGIN
  DELETE FROM sandbox_statuses WHERE sandbox_id = OLD.id;
  DELETE FROM sandbox_labels WHERE sandbox_id = OLD.id;
  DELETE FROM sandbox_extensions WHERE sandbox_id = OLD.id;
END""",
    """
CREATE TRIGGER sandbox_extensions_bounded BEFORE INSERT ON sandbox_extensions
WHEN NEW.sandbox_id NOT IN (SELECT id FROM sandboxes)
  OR (SELECT count(*) FROM sandbox_extensions WHERE sandbox_id = NEW.sandbox_id) >= 64
BEGIN
  SELECT RAISE(ABORT, 'sandbox_extensions: at most 64, of a sandbox that exists');
END""",
    """
CREATE TRIGGER sandbox_extensions_sandbox_fixed BEFORE UPDATE OF sandbox_id ON sandbox_extensions
WHEN OLD.sandbox_id IS NOT NEW.sandbox_id
BEGIN
  SELECT RAISE(ABORT, 'sandbox_extensions: sandbox_id is fixed');
END""",
    "UPDATE registry SET level = 2",
)


def upgrade() -> None:
    for statement in STATEMENTS:
        op.get_bind().exec_driver_sql(statement.strip())


def downgrade() -> NoReturn:
    """Refuse: code of revision 0001 uses the registry as it is, and extensions would be lost."""
    raise NotImplementedError("downgrade from revision 0002: older code uses it as it is")
