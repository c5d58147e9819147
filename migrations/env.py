"""Environment in which Alembic runs the revisions.

Inside `Store.open`: on the connection, and in the transaction, that it is handed. From the command
line (see alembic.ini): on the registry named by `-x db=PATH`, under its lock.
"""

from __future__ import annotations

from functools import partial

import sqlalchemy
from alembic import context

from registry.engine import SchemaHooks, Write, attach, detach
from registry.errors import InvalidArgumentError
from registry.tables import migrations, schema
from registry.tables.inspection import inspect


def run(connection: sqlalchemy.Connection) -> None:
    """Run what was asked for on *connection*, whose transaction the caller ends."""
    context.configure(connection=connection, target_metadata=schema.metadata)
    context.run_migrations()


def run_on_path() -> None:
    """Run what was asked for on the registry at `-x db=PATH`."""
    path = context.get_x_argument(as_dictionary=True).get("db")
    if not isinstance(path, str):
        raise InvalidArgumentError("run alembic: name the registry by -x db=PATH", field="db")
    user = object()
    try:
        hooks = SchemaHooks(
            inspect=partial(inspect, create=True, upgrade=True),
            prepare=lambda *_: None,
            admit=lambda *_: None,
            guard=lambda _transaction: None,
        )
        engine = attach(path, user, create=True, read_only=False, timeout=30, hooks=hooks)
        with (
            Write(engine, "run alembic", 30) as transaction,
            migrations.alchemy(transaction.connection) as connection,
        ):
            run(connection)
    finally:
        detach(user, 30)


if context.is_offline_mode():
    context.configure(dialect_name="sqlite", target_metadata=schema.metadata)
    context.run_migrations()
elif "connection" in context.config.attributes:
    run(context.config.attributes["connection"])
else:
    run_on_path()
