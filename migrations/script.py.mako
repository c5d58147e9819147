"""${message}.

Why, and what becomes of the rows that are there already.

Old processes live on beside upgraded ones. Where code of the revision before can no longer read,
or no longer write, what this one makes, raise `registry.min_reader` or `registry.min_writer` here;
`registry.level` is raised by every revision.

Revision ${up_revision}, after ${down_revision}. Once released it is never edited.
"""

from __future__ import annotations

from typing import Final, NoReturn
% if upgrades:

from alembic import op
% endif
% if imports:
${imports}
% endif

revision: Final = "${up_revision}"
down_revision: Final = ${f'"{down_revision}"' if down_revision else None}


def upgrade() -> None:
    """Bring a registry from revision ${down_revision} to ${up_revision}."""
    ${upgrades if upgrades else f'raise NotImplementedError("revision {up_revision} is not written yet")'}


def downgrade() -> NoReturn:
    """Refuse: what a downgrade would lose is why the revision was made."""
    raise NotImplementedError(
        "downgrade from revision ${up_revision}: a registry is never downgraded; "
        "restore the backup made before the upgrade"
    )
