"""Pages of a sandbox and of the node, and cells that are easy to read, as hooks of Datasette.

All text of the registry is data: templates escape it for HTML, and `_shown` shows each character
that is not seen, such as one that changes the direction of writing, as an escape.
"""

from __future__ import annotations

import json
import logging
import sqlite3
import time
from collections.abc import Awaitable, Callable, Mapping
from http import HTTPStatus
from typing import Any, Final

from datasette import Forbidden, NotFound, Response, hookimpl
from datasette.utils import tilde_decode
from datasette.utils.asgi import BadRequest
from markupsafe import Markup

from registry.browse import drawing, timeline
from registry.browse.metadata import DATABASE
from registry.browse.questions import load
from registry.browse.timeline import ROWS_MAX, Change
from registry.errors import RegistryError
from registry.visible import visible

log = logging.getLogger("registry")

POLICY: Final = (
    "default-src 'none'; script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline';"
    " img-src 'self' data:; connect-src 'self'; form-action 'self'; base-uri 'none';"
    " frame-ancestors 'none'"
)
"""Content security policy: nothing is loaded from anywhere else. Datasette's own scripts are
partly inline."""
HOURS: Final = (1, 6, 24, 7 * 24)
"""Widths of the node's timeline that the page offers."""
CHANGES_MAX: Final = 5_000
"""Changes that one timeline shows."""
_JSON: Final = {"labels", "extensions", "additional_ips", "cni_result", "config_json"}
_IDS: Final = {"id", "sandbox_id"}
_CHANGE: Final = "id, namespace, pod, at, from_state, to_state, reason, actor"
_KEPT: Final = {"\n", "\t", "\r"}


@hookimpl
def prepare_jinja2_environment(env: Any) -> None:
    """Show what is not seen in each text that a template contains."""
    env.finalize = _shown


def _shown(value: Any) -> Any:
    """Return *value* with an escape for each character that is not seen, but for white space."""
    if not isinstance(value, str) or value.isprintable():
        return value
    parts = (char if char in _KEPT else visible(char) for char in value)
    return type(value)("".join(parts))


@hookimpl
def render_cell(value: Any, column: str, database: str) -> Any:
    """Return the cell of an id as a link, and that of JSON indented; None for any other."""
    if database != DATABASE or not isinstance(value, str) or not value:
        return None
    if column in _IDS:
        return Markup('<a href="{}">{}</a>').format(drawing.address(value), _shown(value))
    if column in _JSON:
        return as_json(value)
    return None


def as_json(text: str) -> Any:
    """Return JSON *text* as HTML: a list of the fields of a flat object, else indented."""
    try:
        value = json.loads(text)
    except ValueError:
        return text
    if value in ({}, []):
        return "none"
    if isinstance(value, dict) and all(isinstance(each, str) for each in value.values()):
        fields = (
            Markup("<li><code>{}</code>={}</li>").format(_shown(name), _shown(each))
            for name, each in value.items()
        )
        return Markup('<ul class="labels">{}</ul>').format(Markup("").join(fields))
    shown = json.dumps(value, indent=2, ensure_ascii=False)
    return Markup('<pre class="json">{}</pre>').format(_shown(shown))


@hookimpl
def asgi_wrapper() -> Callable[[Any], Any]:
    """Add the content security policy to each answer."""

    def wrap(app: Any) -> Any:
        async def wrapped(scope: Any, receive: Any, send: Any) -> None:
            async def send_with_policy(message: dict[str, Any]) -> None:
                if message["type"] == "http.response.start":
                    more = [
                        (b"content-security-policy", POLICY.encode()),
                        (b"referrer-policy", b"no-referrer"),
                        (b"x-content-type-options", b"nosniff"),
                    ]
                    message = {**message, "headers": [*message.get("headers", []), *more]}
                await send(message)

            await app(scope, receive, send_with_policy)

        return wrapped

    return wrap


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
    text = visible(str(getattr(exception, "message", exception)))
    if getattr(exception, "message_is_html", False):  # Datasette says so of this alone
        text = "the query takes longer than a second"
    if isinstance(exception, (sqlite3.Error, RegistryError)):
        status, text = 503, f"the registry cannot be read: {text}"
    if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        log.warning("browse: %s: %s (%s)", request.path, text, type(exception).__name__)
    if request.path.endswith(".json"):
        return Response.json({"ok": False, "error": text, "status": status}, status=status)
    return Response.text(f"{status}: {text}\n", status=status)


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
        states = await _rows(
            datasette,
            "SELECT state, count(*) AS sandboxes FROM sandbox_overview GROUP BY state",
        )
        not_ready = await _rows(
            datasette, "SELECT * FROM why_not_ready ORDER BY since DESC LIMIT 10"
        )
        return {
            **public,
            "states": states,
            "not_ready": not_ready,
            "questions": load(),
            "address": drawing.address,
        }

    return found


async def sandbox_page(datasette: Any, request: Any) -> Any:
    """Show one sandbox: its columns, its config, its states over time, and its history."""
    await _admit(datasette, request)
    id = tilde_decode(request.url_vars["id"])
    found = await _rows(datasette, "SELECT * FROM sandbox_overview WHERE id = :id", id=id)
    config = await _rows(datasette, "SELECT config_json FROM sandboxes WHERE id = :id", id=id)
    history = await _rows(
        datasette,
        f"SELECT * FROM sandbox_history WHERE id = :id LIMIT {CHANGES_MAX}",  # noqa: S608
        id=id,
    )
    if not found and not history:
        raise NotFound(f"No sandbox, and no history of one, has the id {id}")
    changes = [_change(each) for each in reversed(history)]
    until = request.args.get("until") or ""
    begin = timeline.seconds(changes[0].at if changes else found[0]["since"])
    end = max(_end(until), begin)
    lines = timeline.lines(changes, map(_standing, found), begin, end)
    values = {
        "path": request.path,
        "until": until,
        "id": id,
        "sandbox": found[0] if found else None,
        "columns": datasette.metadata("databases")[DATABASE]["tables"]["sandbox_overview"][
            "columns"
        ],
        "config": config[0]["config_json"] if config else None,
        "history": history,
        "as_json": as_json,
        "json_columns": _JSON,
        "drawing": Markup(drawing.svg(lines, begin, end)),  # noqa: S704 - it escapes its text
    }
    return await _page(datasette, request, "sandbox.html", values)


async def node_page(datasette: Any, request: Any) -> Any:
    """Show the states of all sandboxes over some hours, up to now or to the time `until`."""
    await _admit(datasette, request)
    until, hours = request.args.get("until") or "", request.args.get("hours") or "24"
    end = _end(until)
    begin = max(0.0, end - 3600 * _hours(hours))
    lines, begin = await _node(datasette, begin, end, past=bool(until))
    values = {
        "hours": hours,
        "until": until,
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


async def _node(
    datasette: Any, begin: float, end: float, *, past: bool
) -> tuple[list[timeline.Line], float]:
    """Return the states of all sandboxes, and the begin, which is later if there are too many."""
    times = {"begin": timeline.iso(begin), "end": timeline.iso(end)}
    rows = await _rows(
        datasette,
        f"SELECT {_CHANGE} FROM sandbox_history WHERE at > :begin AND at <= :end"  # noqa: S608
        f" LIMIT {CHANGES_MAX}",
        **times,
    )
    changes = [_change(each) for each in reversed(rows)]
    if len(rows) == CHANGES_MAX:
        begin = timeline.seconds(changes[0].at)
    standing = [
        _standing(each)
        for each in await _rows(
            datasette, "SELECT * FROM sandbox_overview WHERE since <= :begin", **times
        )
    ]
    if past:  # what has changed since, or is deleted, was in the state before its next change
        later = await _rows(
            datasette,
            f"SELECT {_CHANGE}, min(seq) FROM sandbox_history"  # noqa: S608
            " WHERE at > :end GROUP BY id",
            **times,
        )
        standing += [
            _change(each)._replace(to_state=each["from_state"], reason="", actor="")
            for each in later
            if each["from_state"] is not None
        ]
    return timeline.lines(changes, standing, begin, end), begin


def _change(row: Mapping[str, Any]) -> Change:
    return Change(*(row[name] for name in Change._fields))


def _standing(row: Mapping[str, Any]) -> Change:
    """Return the present state of a row of the overview."""
    return Change(
        row["id"], row["namespace"], row["pod"], row["since"], None, row["state"], row["reason"], ""
    )


async def _admit(datasette: Any, request: Any) -> None:
    """Raise Forbidden unless the request is of the user that has started the page."""
    allowed = await datasette.permission_allowed(request.actor, "view-instance", default=False)
    if not allowed:
        raise Forbidden("view-instance")


async def _rows(datasette: Any, query: str, **params: object) -> list[dict[str, Any]]:
    """Return the rows of *query*."""
    found = await datasette.get_database(DATABASE).execute(query, params)
    return [dict(row) for row in found.rows]


async def _page(datasette: Any, request: Any, template: str, values: Mapping[str, Any]) -> Any:
    html = await datasette.render_template(template, dict(values), request=request)
    return Response.html(html)
