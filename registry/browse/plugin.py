"""Pages of a sandbox and of the node, and cells that are easy to read, as hooks of Datasette.

All text of the registry is data: templates escape it for HTML, and `shown` shows each character
that is not seen, such as one that changes the direction of writing, as an escape.
"""

from __future__ import annotations

import logging
import re
import sqlite3
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from functools import partial
from http import HTTPStatus
from typing import Any, Final

from datasette import Forbidden, NotFound, Response, hookimpl
from datasette.utils import tilde_decode
from datasette.utils.asgi import BadRequest
from datasette.views.base import DatasetteError
from markupsafe import Markup

from registry.browse import drawing, readings, timeline
from registry.browse.cells import JSON, as_json, shown
from registry.browse.metadata import DATABASE
from registry.browse.questions import load
from registry.browse.timeline import ROWS_MAX
from registry.errors import RegistryError
from registry.model.status import short_state
from registry.visible import visible

log = logging.getLogger("registry")

POLICY: Final = (
    "default-src 'none'; script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline';"
    " img-src 'self' data:; connect-src 'self'; form-action 'self'; base-uri 'none';"
    " frame-ancestors 'none'"
)
"""Content security policy: nothing is loaded from anywhere else. Datasette's own scripts are
partly inline."""
LOCAL: Final = re.compile(rb"(127\.0\.0\.1|localhost|\[::1\])(:\d+)?", re.IGNORECASE)
"""Values of the header Host: a page of another site, whose name an attacker has pointed to this
host, sends another one."""
HOURS: Final = (1, 6, 24, 7 * 24)
"""Widths of the node's timeline that the page offers."""
_IDS: Final = {"id", "sandbox_id"}


@hookimpl
def prepare_jinja2_environment(env: Any) -> None:
    """Show what is not seen in each text that a template contains, and states without prefix."""
    env.finalize = shown
    env.filters["short_state"] = short_state


@hookimpl
def render_cell(value: Any, column: str, database: str) -> Any:
    """Return the cell of an id as a link, and that of JSON indented; None for any other."""
    if database != DATABASE or not isinstance(value, str) or not value:
        return None
    if column in _IDS:
        return Markup('<a href="{}">{}</a>').format(drawing.address(value), shown(value))
    if column in JSON:
        return as_json(value)
    return None


@hookimpl
def asgi_wrapper() -> Callable[[Any], Any]:
    """Add the content security policy to each answer, and refuse a request to another host.

    No script can read a cookie.
    """

    def wrap(app: Any) -> Any:
        async def wrapped(scope: Any, receive: Any, send: Any) -> None:
            async def send_with_policy(message: dict[str, Any]) -> None:
                if message["type"] == "http.response.start":
                    more = [
                        (b"content-security-policy", POLICY.encode()),
                        (b"referrer-policy", b"no-referrer"),
                        (b"x-content-type-options", b"nosniff"),
                    ]
                    headers = [_hidden_from_scripts(*each) for each in message.get("headers", [])]
                    message = {**message, "headers": [*headers, *more]}
                await send(message)

            if scope["type"] == "http" and not _is_local(scope["headers"]):
                refusal = Response.text("403: open this page at 127.0.0.1 or localhost\n", 403)
                await refusal.asgi_send(send_with_policy)
            else:
                await app(scope, receive, send_with_policy)

        return wrapped

    return wrap


def _hidden_from_scripts(name: bytes, value: bytes) -> tuple[bytes, bytes]:
    """Return a header; one that sets a cookie with the attribute HttpOnly."""
    if name.lower() == b"set-cookie" and b"httponly" not in value.lower():
        value += b"; HttpOnly"
    return name, value


def _is_local(headers: Iterable[tuple[bytes, bytes]]) -> bool:
    """Return whether a request with *headers* has one Host, and that is `LOCAL`."""
    hosts = [value for name, value in headers if name == b"host"]
    return len(hosts) == 1 and LOCAL.fullmatch(hosts[0]) is not None


@hookimpl
def forbidden() -> Any:
    """Say how to come in: the registry belongs to one user, and the port is open to all."""
    text = "Open the address that `sandbox-registry browse` has printed; it works once.\n"
    return Response.text(text, status=403)


@hookimpl
def handle_exception(request: Any, exception: Exception) -> Any:
    """Answer an error in a sentence; Datasette's own handler would print a traceback with values.

    A registry that cannot be read now, and a fault of the page itself, are reported on stderr too.
    """
    status = getattr(exception, "status", 500)
    if isinstance(exception, DatasetteError) and status == HTTPStatus.INTERNAL_SERVER_ERROR:
        status = 400  # of a parameter such as _sort
    text = visible(str(getattr(exception, "message", exception)))
    # Datasette says it in HTML, which no other of its errors is.
    if getattr(exception, "message_is_html", False) or text == "interrupted":
        status, text = 400, "the query takes longer than a second"
    if _is_of_parameter(request, exception):
        status, text = 400, f"a parameter of the address cannot be read: {text}"
    elif isinstance(exception, (sqlite3.Error, RegistryError)) and text != "interrupted":
        status, text = 503, f"the registry cannot be read: {text}"
    if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        log.warning(
            "browse: %s: %s (%s)",
            request.path,
            text,
            type(exception).__name__,
            extra={
                "event": "page_failed",
                "page": request.path,
                "error": type(exception).__name__,
            },
        )
    if request.path.endswith(".json"):
        return Response.json({"ok": False, "error": text, "status": status}, status=status)
    return Response.text(f"{status}: {text}\n", status=status)


def _is_of_parameter(request: Any, exception: Exception) -> bool:
    """Return whether *exception* is of a parameter that Datasette cannot read, such as `_next`.

    It is an error of Python's conversion, or of SQLite's for a number of more than 64 bits.
    """
    if isinstance(exception, sqlite3.Error):
        return getattr(exception, "sqlite_errorcode", 0) == sqlite3.SQLITE_MISMATCH
    return isinstance(exception, ValueError) and bool(request.query_string)


@hookimpl
def menu_links() -> list[dict[str, str]]:
    """Return the links of the menu."""
    return [{"href": "/-/node", "label": "Timeline of the node"}]


@hookimpl
def register_routes() -> list[tuple[str, Callable[..., Awaitable[Any]]]]:
    """Return the pages of this package."""
    return [(r"^/-/sandbox/(?P<id>[^/]+)$", sandbox_page), (r"^/-/node$", node_page)]


@hookimpl
def extra_template_vars(datasette: Any, view_name: str) -> Any:
    """Return what the start page shows beside what Datasette gives it."""

    async def found() -> dict[str, Any]:
        public = {"private": False}  # a lock beside each title would say nothing: all is private
        if view_name != "index":
            return public
        read = await _read(datasette, readings.start)
        more = {"questions": load(), "address": drawing.address}
        return {**public, **read._asdict(), **more}

    return found


async def sandbox_page(datasette: Any, request: Any) -> Any:
    """Show one sandbox: its columns, its config, its states over time, and its history."""
    await _admit(datasette, request)
    id = tilde_decode(request.url_vars["id"])
    record = await _read(datasette, readings.record, id)
    changes = record.changes()
    standing = [] if record.sandbox is None else [readings.stands(record.sandbox)]
    if not changes and not standing:
        raise NotFound(f"no sandbox, and no history of one, has the id {id}")
    until = request.args.get("until") or ""
    begin = timeline.recorded([*changes, *standing][0].at)
    end = max(_end(until), begin)
    lines = timeline.lines(changes, standing, begin, end)
    tables = datasette.metadata("databases")[DATABASE]["tables"]
    values = {
        **record._asdict(),
        "id": id,
        "path": request.path,
        "until": until,
        "columns": tables["sandbox_overview"]["columns"],
        "as_json": as_json,
        "json_columns": JSON,
        "drawing": Markup(drawing.svg(lines, begin, end)),  # noqa: S704 - it escapes its text
    }
    return await _page(datasette, request, "sandbox.html", values)


async def node_page(datasette: Any, request: Any) -> Any:
    """Show the states of all sandboxes over some hours, up to now or to the time `until`."""
    await _admit(datasette, request)
    names = ("until", "hours", "namespace")
    until, hours, namespace = (request.args.get(name) or "" for name in names)
    hours = hours or "24"
    end = _end(until)
    begin = max(0.0, end - 3600 * _hours(hours))
    found = await _read(datasette, readings.node, begin, end, namespace, past=bool(until))
    begin = found.begin
    lines = timeline.lines(found.changes, found.standing, begin, end)
    values = {
        "hours": hours,
        "until": until,
        "namespace": namespace,
        "offered": HOURS,
        "begin": timeline.iso(begin),
        "end": timeline.iso(end),
        "more": max(0, len(lines) - ROWS_MAX),
        "drawing": Markup(drawing.svg(lines[:ROWS_MAX], begin, end)),  # noqa: S704 - as above
    }
    return await _page(datasette, request, "node.html", values)


def _end(until: str) -> float:
    """Return the Unix time of the parameter *until*, and the present one if it is empty."""
    try:
        return timeline.seconds(until) if until else time.time()
    except (ValueError, OverflowError) as error:
        raise BadRequest(f"until={until} is no time such as 2026-03-01T18:00Z") from error


def _hours(text: str) -> float:
    """Return the number of hours that the parameter *text* names, at most a year."""
    try:
        return min(max(float(text), 0.01), 366 * 24)
    except ValueError as error:
        raise BadRequest(f"hours={text} is no number") from error


async def _admit(datasette: Any, request: Any) -> None:
    """Raise Forbidden unless the request is of the user that has started the page."""
    allowed = await datasette.permission_allowed(request.actor, "view-instance", default=False)
    if not allowed:
        raise Forbidden("view-instance")


async def _read(datasette: Any, reading: Callable[..., Any], *args: Any, **options: Any) -> Any:
    """Return what *reading*, a function of `readings`, reads in one snapshot."""
    database = datasette.get_database(DATABASE)
    return await database.read(partial(reading, **options), *args)


async def _page(datasette: Any, request: Any, template: str, values: Mapping[str, Any]) -> Any:
    html = await datasette.render_template(template, dict(values), request=request)
    return Response.html(html)
