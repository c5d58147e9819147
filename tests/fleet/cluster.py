"""PostgreSQL clusters of the tests: each in a temporary folder, reached by a unix socket alone."""

from __future__ import annotations

import glob
import os
import pwd
import shutil
import subprocess
import tempfile
from typing import Final, Self

import psycopg

OWNER: Final = "fleet_owner"
"""Role that owns the databases of the tests."""
SETTINGS: Final = {
    "listen_addresses": "''",
    "max_connections": "60",
    "shared_buffers": "64MB",
    "log_min_messages": "fatal",
}
UNSAFE: Final = {"fsync": "off", "full_page_writes": "off", "synchronous_commit": "off"}
"""Settings of a cluster that no test stops by force."""


def programs() -> str | None:
    """Return the folder of the newest PostgreSQL server that is installed; None: none is."""
    found = glob.glob("/usr/lib/postgresql/*/bin/initdb")
    newest = max(found, key=lambda path: int(path.split("/")[4]), default=shutil.which("initdb"))
    return newest and os.path.dirname(os.path.realpath(newest))


def missing() -> str:
    """Return why no cluster can be started; "" if one can be."""
    if programs() is None:
        return "PostgreSQL is not installed (package postgresql)"
    if os.geteuid() == 0:
        try:
            pwd.getpwnam("postgres")
        except KeyError:
            return "PostgreSQL does not run as root, and there is no user postgres"
    return ""


class Cluster:
    """A PostgreSQL server, which is stopped and removed at the end of a `with` block."""

    def __init__(self, *, safe: bool = False, base: str | None = None) -> None:
        """Prepare a folder.

        The variables PG* of this process are removed: libpq, and the server itself, would take
        PGPORT, PGHOST and others as defaults.

        Args:
            safe: commits survive a stop by force.
            base: folder of another cluster, of which this is to be a standby.
        """
        for name in [each for each in os.environ if each.startswith("PG")]:
            del os.environ[name]
        self.folder: Final = tempfile.mkdtemp(prefix="fleet-")
        self.data: Final = f"{self.folder}/data"
        self.port = "5432"
        self.as_user: list[str] = []
        if os.geteuid() == 0:
            shutil.chown(self.folder, "postgres", "postgres")
            self.as_user += ["setpriv", "--reuid=postgres", "--regid=postgres", "--init-groups"]
        try:
            if base is None:
                self.run(
                    "initdb", "-D", self.data, "-U", "postgres", "-A", "trust", "-N", "-E", "UTF8"
                )
                self.configure(SETTINGS if safe else SETTINGS | UNSAFE)
            else:
                url = f"host={base} user=postgres"
                self.run(
                    "pg_basebackup", "-D", self.data, "-d", url, "-R", "-X", "stream", "-c", "fast"
                )
            self.configure({"unix_socket_directories": f"'{self.folder}'"})
        except BaseException:
            shutil.rmtree(self.folder)
            raise

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop("immediate", check=False)
        shutil.rmtree(self.folder, ignore_errors=True)

    def run(self, program: str, *args: str, check: bool = True) -> str:
        """Run a *program* of PostgreSQL as the user of the server, and return its output."""
        command = [*self.as_user, f"{programs()}/{program}", *args]
        done = subprocess.run(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            cwd="/",
            env={**os.environ, "LC_ALL": "C.UTF-8"},
        )
        assert not check or done.returncode == 0, done.stdout
        return done.stdout

    def configure(self, settings: dict[str, str]) -> None:
        """Add *settings* to the configuration; a start, or a reload, applies them."""
        with open(f"{self.data}/postgresql.conf", "a", encoding="utf-8") as file:
            file.writelines(f"{name} = {value}\n" for name, value in settings.items())

    def start(self) -> None:
        """Start the server, and wait until it accepts connections."""
        # Its output goes to a file: a pipe would stay open in the server.
        self.run("pg_ctl", "start", "-w", "-D", self.data, "-l", f"{self.folder}/log", "-t", "120")

    def stop(self, mode: str = "fast", *, check: bool = True) -> None:
        """Stop the server; *mode* `immediate` is a crash."""
        self.run("pg_ctl", "stop", "-w", "-D", self.data, "-m", mode, check=check)

    def url(self, database: str = "postgres", user: str = "postgres") -> str:
        """Return the URL by which *user* reaches *database*."""
        return f"postgresql+psycopg://{user}@/{database}?host={self.folder}&port={self.port}"

    def connect(self, database: str = "postgres", user: str = "postgres") -> psycopg.Connection:
        """Return a connection in which each statement is a transaction."""
        return psycopg.connect(
            host=self.folder,
            port=self.port,
            dbname=database,
            user=user,
            autocommit=True,
            prepare_threshold=None,
        )

    def query(
        self, sql: str, database: str = "postgres", user: str = "postgres"
    ) -> list[tuple[object, ...]]:
        """Return the rows of *sql*, by a connection of its own."""
        with self.connect(database, user) as connection:
            cursor = connection.execute(sql)
            return cursor.fetchall() if cursor.description else []
