"""${message}.

Why, and what becomes of the rows that are there already.

Pushers of the revision before keep running: only add tables, and columns with a default. Set
`fleet_meta.level`; raise `fleet_meta.min_writer` only to stop older pushers.

Revision ${up_revision}, after ${down_revision}. Once released it is never edited.
"""

from __future__ import annotations

from typing import Final, NoReturn

from alembic import op

revision: Final = "${up_revision}"
down_revision: Final = ${f'"{down_revision}"' if down_revision else None}


def upgrade() -> None:
    """Bring the database from revision ${down_revision} to ${up_revision}."""
    raise NotImplementedError("revision ${up_revision} is not written yet")


def downgrade() -> NoReturn:
    """Refuse: older pushers use the database as it is."""
    raise NotImplementedError("downgrade from revision ${up_revision}: it is never downgraded")
