"""Environment in which Alembic runs the revisions of the fleet's database.

`registry.fleet.maintain.migrate` hands in the connection, and ends the transaction.
"""

from __future__ import annotations

from alembic import context

from registry.fleet import tables

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=tables.metadata,
    version_table=tables.VERSION_TABLE,
)
context.run_migrations()
