"""PostgreSQL for the tests: one cluster for the session, one database for each test."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator
from typing import Any, Final

import pytest

from registry import Store
from registry.fleet import maintain, postgres
from registry.fleet.push import Pusher
from registry.fleet.source import Source
from tests.fleet.cluster import OWNER, Cluster, missing

TEMPLATE: Final = "fleet_template"
_numbers = itertools.count(1)


class Database:
    """A migrated database of its own."""

    def __init__(self, cluster: Cluster, name: str) -> None:
        """Stand for the database *name* of *cluster*."""
        self.cluster: Final = cluster
        self.name: Final = name

    def url(self, user: str = OWNER) -> str:
        """Return the URL by which *user* reaches it."""
        return self.cluster.url(self.name, user)

    def query(self, sql: str, user: str = "postgres") -> list[tuple[Any, ...]]:
        """Return the rows of *sql*."""
        return self.cluster.query(sql, self.name, user)

    def one(self, sql: str, user: str = "postgres") -> Any:
        """Return the value of the one column of the one row of *sql*."""
        ((value,),) = self.query(sql, user)
        return value

    def node(self, name: str) -> str:
        """Make the role of the node *name*, and return its URL."""
        made = self.cluster.query(f"SELECT 1 FROM pg_roles WHERE rolname = '{name}'")
        if not made:
            self.cluster.query(f'CREATE ROLE "{name}" LOGIN IN ROLE fleet_node')
        return self.url(name)


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """Return a cluster that no test stops, with a migrated database as a template."""
    if reason := missing():
        pytest.skip(reason)
    with Cluster() as cluster:
        prepare(cluster)
        yield cluster


def prepare(cluster: Cluster, name: str = TEMPLATE) -> Database:
    """Make the owner and a migrated database in a new *cluster*."""
    cluster.query(f"CREATE ROLE {OWNER} LOGIN CREATEROLE")
    cluster.query(f"CREATE DATABASE {name} OWNER {OWNER}")
    database = Database(cluster, name)
    maintain.migrate(postgres.target(database.url()))
    return database


@pytest.fixture
def database(cluster: Cluster) -> Iterator[Database]:
    """Return a migrated database, which is dropped at the end."""
    name = f"fleet_{next(_numbers)}"
    cluster.query(f"CREATE DATABASE {name} OWNER {OWNER} TEMPLATE {TEMPLATE}")
    yield Database(cluster, name)
    cluster.query(f"DROP DATABASE {name} WITH (FORCE)")


NewPusher = Callable[..., Pusher]


@pytest.fixture
def new_pusher(database: Database, path: str) -> Iterator[NewPusher]:
    """Return a function that returns a pusher of a registry, as the owner; all are closed."""
    made = []

    def new(of: str = path, *, to: str | None = None, **options: Any) -> Pusher:
        options.setdefault("node", "node-1" if to is None else "")
        options.setdefault("machine_id", "m1")
        target = postgres.target(to or database.url())
        made.append(Pusher(Source(of), target, **options))
        return made[-1]

    yield new
    for pusher in made:
        pusher.close()


def push(pusher: Pusher) -> int:
    """Push until the head is reached, and return the number of transitions."""
    total, rounds = 0, 0
    while True:
        pushed = pusher.round()
        total, rounds = total + pushed.transitions, rounds + 1
        assert rounds < 10_000
        if pushed.is_head:
            return total


def registry_id(path: str) -> str:
    """Return the id of the registry at *path*."""
    with Store.open(path, read_only=True) as store:
        return store._registry_id


LONG: Final = os.environ.get("FLEET") == "long"
"""True when tests kill and stop as often as the project promises, instead of a few times."""
