"""Connections to PostgreSQL, and errors of psycopg as errors of the package.

A password may be part of a URL. It reaches libpq alone: no message, no log and no attribute has it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final, NamedTuple

import psycopg
from psycopg import pq
from psycopg.conninfo import conninfo_to_dict

from registry.errors import (
    FailedPreconditionError,
    InvalidArgumentError,
    RegistryError,
    SchemaVersionError,
    UnavailableError,
)
from registry.fleet.statements import LEVEL

DEFAULTS: Final = {
    "application_name": "sandbox-registry fleet",
    "client_encoding": "UTF8",
    "connect_timeout": "10",
    "keepalives_idle": "30",
    "keepalives_interval": "10",
    "keepalives_count": "3",
    "tcp_user_timeout": "60000",
    "target_session_attrs": "read-write",
}
"""Settings of libpq unless the URL has others. A demoted primary is not connected to."""
TEXT_MAX: Final = 1000
"""Characters of a message of the server that are shown."""
RETRIED: Final = ("08", "40", "53", "57", "25006", "25P03", "55P03")
"""Beginnings of the SQLSTATEs after which a retry may succeed. 25006: the server was demoted."""
REFUSED: Final = {
    re.compile(pattern): todo
    for pattern, todo in {
        r"authentication failed for user|pg_hba\.conf|valid client certificate|no password supplied"
        r'|role ".*" (does not exist|is not permitted to log in)': (
            "see the role, its password or certificate, and pg_hba.conf of the server"
        ),
        r'database ".*" does not exist': "see the name in the URL, or have it created",
        r"(certificate|private key) file": (
            "see the file, its owner and its mode, and sslrootcert, sslcert and sslkey of the URL"
        ),
        r"certificate for .* does not match host name": (
            "name the server in the URL as its certificate does"
        ),
        r"certificate verify failed": (
            "see the certificate of the server, and whether sslrootcert has its authority"
        ),
        r"alert unknown ca": (
            "see sslcert of the URL, and whether ssl_ca_file of the server has its authority"
        ),
    }.items()
}
"""What libpq and PostgreSQL say in English of faults that a retry cannot mend, and what to do.

A connection that fails has no SQLSTATE, and libpq no other code for these. What no pattern matches
is retried.
"""
MISSING: Final = {"42P01", "42703", "3F000"}
"""SQLSTATEs of a missing table, column or schema: the database is older than this code."""


class Advice(NamedTuple):
    """Advice in messages, for one kind of role."""

    retry: str
    """After an error that a retry may mend; "": the caller says whether it retries."""
    grant: str
    """Where a privilege is missing."""


NODE: Final = Advice(
    "",
    "grant fleet_node to the role of the node; its name must be the name of the node",
)
READER: Final = Advice("try again", "grant fleet_reader to the role")
OWNER: Final = Advice(
    "try again; pg_stat_activity has the transactions whose locks it may have met",
    "connect as the owner of the database",
)


class Target(NamedTuple):
    """Database of a fleet: settings of libpq, and a text for people without the password."""

    settings: dict[str, str]
    shown: str

    def __repr__(self) -> str:
        """Show no setting, since one is the password."""
        return f"Target({self.shown!r})"


def target(url: str) -> Target:
    """Return the database that *url* names: `postgresql://`, as libpq or SQLAlchemy write it.

    Raises:
        InvalidArgumentError: libpq cannot read it.
    """
    if not url:
        raise InvalidArgumentError(
            "read the URL of the fleet's database: it is empty; give postgresql://USER@HOST/DATABASE",
            field="to",
        )
    plain = re.sub(r"^postgres(ql)?(\+\w+)?://", "postgresql://", url)
    try:
        if not plain.startswith("postgresql://"):
            raise psycopg.ProgrammingError
        settings = {name: str(value) for name, value in conninfo_to_dict(plain).items()}
    except psycopg.Error:
        # Neither the URL nor the reason of libpq is shown: both may hold the password.
        doing = "read the URL of the fleet's database"
        if option := _unknown_option(plain):
            raise InvalidArgumentError(
                f"{doing}: libpq has no option {option!r}; remove it, or see its spelling",
                field="to",
            ) from None
        raise InvalidArgumentError(
            f"{doing}: it is not postgresql://USER@HOST/DATABASE; "
            "encode special characters of a password by percent signs",
            field="to",
        ) from None
    user, host = settings.get("user", ""), settings.get("host", "")
    shown = f"{user}@{host}/{settings.get('dbname', user)}"
    return Target(DEFAULTS | settings, shown)


def _unknown_option(url: str) -> str:
    """Return the first option of *url* that libpq does not have; "" if it has all, or in doubt.

    An "@" after the "?" makes it a doubt: it may be the password that has the "?".
    """
    known = {each.keyword.decode() for each in pq.Conninfo.get_defaults()}
    _, _, query = url.partition("?")
    found = [] if "@" in query else re.findall(r"(?:^|&)([a-z_]+)=", query)
    return next((name for name in found if name not in known), "")


def connect(to: Target, advice: Advice = NODE) -> psycopg.Connection:
    """Return a connection in which each statement outside `transaction` is one of its own.

    Args:
        to: database of the fleet.
        advice: of the role; a standby will do for a reader.
    Raises:
        UnavailableError: there is no server that accepts the connection.
        FailedPreconditionError: the server refuses the role.
    """
    settings = to.settings | ({"target_session_attrs": "any"} if advice is READER else {})
    try:
        # Without prepared statements: a pooler in transaction mode would not find them again.
        return psycopg.connect("", autocommit=True, prepare_threshold=None, **settings)  # type: ignore[arg-type]  # settings of libpq
    except psycopg.Error as error:
        failure = translate(error, f"connect to the fleet's database {to.shown!r}", advice)
    # Not from the error, whose attributes have the settings, with the password.
    raise failure


@contextmanager
def errors(doing: str, advice: Advice) -> Iterator[None]:
    """Raise an error of psycopg in the body as `translate` returns it."""
    try:
        yield
    except psycopg.Error as error:
        raise translate(error, doing, advice) from error


def translate(error: psycopg.Error, doing: str, advice: Advice) -> RegistryError:
    """Return the error of the package for *error*, by its SQLSTATE.

    Args:
        error: of psycopg.
        doing: operation and object, for the message.
        advice: what to do about it.
    """
    code, found = error.sqlstate or "", _failures(error)
    why = "; ".join(found)[:TEXT_MAX] + (f" ({code})" if code else "")
    refused = [] if code else [_refused(each) for each in found]
    if refused and all(refused):
        return FailedPreconditionError(f"{doing}: {why}; {refused[0]}")
    is_lost = not code and isinstance(error, (psycopg.OperationalError, psycopg.InterfaceError))
    if is_lost or code.startswith(RETRIED):
        return UnavailableError("; ".join(filter(None, (f"{doing}: {why}", advice.retry))))
    if code in MISSING:
        todo = "run `sandbox-registry fleet migrate` as the owner of the database"
        return SchemaVersionError(f"{doing}: {why}; {todo}", supported=f"{LEVEL:04}")
    if code.startswith("28"):
        todo = "see the role, and pg_hba.conf of the server"
        return FailedPreconditionError(f"{doing}: {why}; {todo}")
    if code == "42501":
        return FailedPreconditionError(f"{doing}: {why}; {advice.grant}")
    todo = "report it with this message" if code.startswith("23") else "see the server's log"
    return RegistryError(f"{doing}: {why}{'' if code else f' ({type(error).__name__})'}; {todo}")


def _refused(failure: str) -> str:
    """Return what to do about a *failure* that a retry cannot mend; "" if it may mend it."""
    return next((todo for pattern, todo in REFUSED.items() if pattern.search(failure)), "")


def _failures(error: psycopg.Error) -> list[str]:
    """Return the first line of a message of the server or of libpq, or one for each host."""
    text = error.diag.message_primary or str(error).strip() or type(error).__name__
    lines = text.split("\n")
    hosts = [line[2:] for line in lines if line.startswith("- host: ")]
    return hosts or lines[:1]
