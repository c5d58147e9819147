"""SQLAlchemy's ORM as its tutorial uses it, on the tables of the reference."""

from __future__ import annotations

from typing import Any

from sqlalchemy import create_engine, event, select
from sqlalchemy.orm import DeclarativeBase, Session

from registry.tables import schema


class _Base(DeclarativeBase):
    metadata = schema.metadata


class _Sandbox(_Base):
    __table__ = schema.sandboxes


class _Status(_Base):
    __table__ = schema.sandbox_statuses


class Orm:
    """Engine with a session for each call, as in the tutorial of SQLAlchemy."""

    def __init__(self, path: str) -> None:
        """Open the database at *path*, with the same durability."""
        self._engine = create_engine(f"sqlite:///{path}", connect_args={"timeout": 60})

        @event.listens_for(self._engine, "connect")
        def _setup(connection: Any, _: object) -> None:
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = FULL")
            connection.isolation_level = None

        @event.listens_for(self._engine, "begin")
        def _begin(connection: Any) -> None:
            connection.exec_driver_sql("BEGIN IMMEDIATE")

    def close(self) -> None:
        """Close the connections."""
        self._engine.dispose()

    def update(self, id: str, message: str) -> None:
        """Read the status of a sandbox, and change its message."""
        with Session(self._engine) as session, session.begin():
            status: Any = session.get_one(_Status, id)
            status.message = message

    def status(self, id: str) -> str:
        """Return the state of a sandbox."""
        with Session(self._engine) as session:
            return str(session.get_one(_Status, id).state)  # type: ignore[attr-defined]

    def get(self, id: str) -> tuple[object, object]:
        """Return the two objects of a sandbox."""
        with Session(self._engine) as session:
            query = select(_Sandbox).where(_Sandbox.id == id)  # type: ignore[attr-defined]
            return session.scalars(query).one(), session.get_one(_Status, id)

    def all(self) -> list[Any]:
        """Return the two objects of every sandbox."""
        query = select(_Sandbox, _Status).where(_Sandbox.id == _Status.sandbox_id)  # type: ignore[attr-defined]
        with Session(self._engine) as session:
            return list(session.execute(query).all())
