"""Incarnations: backups carry a mark, and the history jumps where a backup takes its place.

Code of revisions 0001 and 0002 may still read and write: triggers in the file bound the history,
also where it jumps. So `min_reader` and `min_writer` stay 1. That code does not know the mark of a
copy: it opens a copy as if it were the original, and its `check` reports a jump of the history.
"""

from __future__ import annotations

from typing import Final, NoReturn

from alembic import op

revision: Final = "0003"
down_revision: Final = "0002"

# The table is created again: ALTER TABLE would add the columns behind the constraints.
STATEMENTS: Final = (
    "CREATE TABLE registry_before AS SELECT * FROM registry",
    "DROP TABLE registry",
    """
CREATE TABLE registry (
  one INTEGER NOT NULL,
  registry_id TEXT NOT NULL,
  created_at INTEGER NOT NULL,
  level INTEGER NOT NULL,
  min_reader INTEGER NOT NULL,
  min_writer INTEGER NOT NULL,
  incarnation INTEGER DEFAULT 1 NOT NULL,
  copied_at INTEGER,
  CONSTRAINT registry_pk PRIMARY KEY (one),
  CONSTRAINT registry_check_one_row CHECK (one = 1),
  CONSTRAINT registry_check_incarnation CHECK (incarnation > 0),
  CONSTRAINT registry_check_copied_at CHECK (copied_at > 0),
  CONSTRAINT registry_check_registry_id CHECK (length(registry_id) = 32 AND registry_id NOT
    GLOB '*[^0-9a-f]*')
) STRICT""",
    """
INSERT INTO registry (one, registry_id, created_at, level, min_reader, min_writer)
SELECT one, registry_id, created_at, level, min_reader, min_writer FROM registry_before""",
    "DROP TABLE registry_before",
    """
CREATE TRIGGER registry_stays BEFORE DELETE ON registry
BEGIN
  SELECT RAISE(ABORT, 'registry: its one row says who may use the file');
END""",
    """
CREATE TRIGGER registry_not_replaced BEFORE INSERT ON registry
WHEN EXISTS (SELECT 1 FROM registry)
BEGIN
  SELECT RAISE(ABORT, 'registry: has its one row');
END""",
    "DROP TRIGGER sandbox_transitions_in_turn",
    "DROP TRIGGER sandbox_transitions_stay",
    "DROP TRIGGER sandbox_transitions_bounded",
    """
CREATE TRIGGER sandbox_transitions_in_turn AFTER INSERT ON sandbox_transitions
WHEN NEW.seq <> 1 AND NEW.seq - 1 NOT IN (SELECT seq FROM sandbox_transitions)
  AND (NEW.seq % 1000000000 <> 1 OR NEW.seq - 1 NOT IN (
    SELECT seq FROM sqlite_sequence WHERE name = 'sandbox_transitions'))
BEGIN
  SELECT RAISE(ABORT, 'sandbox_transitions: append-only');
END""",
    """
CREATE TRIGGER sandbox_transitions_stay BEFORE DELETE ON sandbox_transitions
WHEN OLD.seq > (SELECT max(seq) FROM sandbox_transitions) - 100000
  OR ((SELECT max(seq) FROM sandbox_transitions) - 1) % 1000000000 < 100000
BEGIN
  SELECT RAISE(ABORT, 'sandbox_transitions: append-only');
END""",
    """
CREATE TRIGGER sandbox_transitions_bounded AFTER INSERT ON sandbox_transitions
WHEN (NEW.seq - 1) % 1000000000 >= 100000
BEGIN
  DELETE FROM sandbox_transitions WHERE seq IN (
    SELECT seq FROM sandbox_transitions WHERE seq <= NEW.seq - 100000 ORDER BY seq LIMIT 64);
END""",
    "UPDATE registry SET level = 3",
)


def upgrade() -> None:
    for statement in STATEMENTS:
        op.get_bind().exec_driver_sql(statement.strip())


def downgrade() -> NoReturn:
    """Refuse: older code uses the registry as it is, and the mark of a copy would be lost."""
    raise NotImplementedError("downgrade from revision 0003: older code uses it as it is")
