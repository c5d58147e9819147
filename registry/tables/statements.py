"""SQLAlchemy Core definitions of the SQL that the package runs, the source of `sql.py`.

`make sql` generates `sql.py` from this module, see `generate`. The package itself never imports it:
importing SQLAlchemy takes 120 ms, and executing a statement through Core adds 100 us to an update.

`STATEMENTS` have no variable parts. The three functions build statements with variable parts;
`queries` joins the generated parts, and a test compares the results for all combinations.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final

from sqlalchemy import (
    BindParameter,
    Column,
    ColumnElement,
    Delete,
    Insert,
    Integer,
    ScalarSelect,
    Select,
    Table,
    Text,
    Update,
    and_,
    bindparam,
    cast,
    column,
    delete,
    exists,
    func,
    insert,
    literal_column,
    null,
    or_,
    select,
    table,
    update,
)

from registry.model.selector import Operator
from registry.model.status import State
from registry.tables.encoding import creator_columns, netns_columns, process_columns
from registry.tables.rows import CREATOR_FIELDS, Row, StatusRow, Transition
from registry.tables.schema import (
    registry,
    sandbox_extensions,
    sandbox_labels,
    sandbox_statuses,
    sandbox_transitions,
    sandboxes,
)

Core = Select[Any] | Insert | Update | Delete

VERSION_FIELDS: Final = ("level", "min_reader", "min_writer")
EXTENSION_FIELDS: Final = ("name", "type_url", "value")
AUDIT_FIELDS: Final = ("changed_at", "actor", "boot_id")


def select_rows(fields: Collection[str] = Row._fields) -> Select[Any]:
    """Return the query for *fields* of all sandboxes, one row for each sandbox and status."""
    tables = (sandboxes.c, sandbox_statuses.c, {"since": _since()})
    columns = [next(c[name] for c in tables if name in c) for name in fields]
    return select(*columns).select_from(
        sandboxes.join(sandbox_statuses, sandbox_statuses.c.sandbox_id == sandboxes.c.id)
    )


def _since() -> ColumnElement[Any]:
    """Return the time of the last change of state; of the last write if none is kept."""
    last = (
        select(sandbox_transitions.c.at)
        .where(sandbox_transitions.c.sandbox_id == sandboxes.c.id)
        .order_by(sandbox_transitions.c.seq.desc())
        .limit(literal_column("1"))
        .offset(literal_column("0"))
        .scalar_subquery()
    )
    return func.coalesce(last, sandbox_statuses.c.changed_at).label("since")


def _in_order(fields: Collection[str] = Row._fields) -> Select[Any]:
    return select_rows(fields).order_by(sandbox_statuses.c.created_at, sandboxes.c.id)


def _literal(text: str) -> ColumnElement[str]:
    """Return *text*, a constant of ours, as SQL; Core would make a plain value a parameter."""
    return literal_column(f"'{text}'")


def _parameters(table: Table, without: Collection[str] = ()) -> dict[str, BindParameter[Any]]:
    return {name: bindparam(name) for name in table.c.keys() if name not in without}  # noqa: SIM118


def _named(names: Collection[str]) -> dict[str, BindParameter[Any]]:
    return {name: bindparam(name) for name in names}


def _id_of(parameter: str) -> ScalarSelect[str]:
    """Return the id of a creation: the id alone may have been deleted and added again."""
    return (
        select(sandboxes.c.id).where(sandboxes.c.creation == bindparam(parameter)).scalar_subquery()
    )


def _is_past_unknown() -> ColumnElement[bool]:
    """Include damaged states and NULL: such a record is never hidden."""
    return sandbox_statuses.c.state.is_distinct_from(_literal(str(State.UNKNOWN)))


def _begins(column: Column[Any]) -> ColumnElement[bool]:
    """Compare by bytes: from `:prefix` up to `:end`, the prefix followed by bytes 0xff.

    An index answers a range, and `%` and `_` are ordinary characters in it; LIKE has neither.
    """
    return (column >= bindparam("prefix")) & (column < cast(bindparam("end"), Text))


def meets(n: int, operator: Operator, values: int) -> ColumnElement[bool]:
    """Return the condition that a sandbox meets requirement *n* of a selector.

    The parameters are `:key<n>`, and `:value<n>_<m>` for each of *values* values. A label that must
    be there leads to the sandboxes: IN. One that must not be is looked up for each sandbox that the
    other conditions leave over: NOT EXISTS.
    """
    label, negated = sandbox_labels.c, operator in {Operator.NOT_IN, Operator.ABSENT}
    found = select(label.sandbox_id).where(label.key == bindparam(f"key{n}"))
    parameters: list[BindParameter[Any]] = [bindparam(f"value{n}_{m}") for m in range(values)]
    if operator in {Operator.IN, Operator.NOT_IN}:
        found = found.where(label.value.in_(parameters))
    elif operator in {Operator.GREATER, Operator.LESS}:
        number, (bound,) = cast(label.value, Integer), parameters
        order = number > bound if operator is Operator.GREATER else number < bound
        found = found.where(order, *_is_integer(label.value))
    if negated:
        return ~exists(found.where(label.sandbox_id == sandboxes.c.id))
    return sandboxes.c.id.in_(found)


def _is_integer(text: Column[Any]) -> tuple[ColumnElement[bool], ...]:
    """Return the conditions that *text* is a decimal integer of 64 bits; a sign may precede it."""
    digits = func.ltrim(text, _literal("+-0"))
    largest = func.iif(text.op("GLOB")(_literal("-*")), *map(_literal, _LARGEST))
    return (
        text.op("GLOB")(_literal("[-+0-9]*")),
        text.op("GLOB")(_literal("*[0-9]")),
        ~func.substr(text, literal_column("2")).op("GLOB")(_literal("*[^0-9]*")),
        or_(
            func.length(digits) < literal_column("19"),
            and_(func.length(digits) == literal_column("19"), digits <= largest),
        ),
    )


_LARGEST: Final = (str(2**63), str(2**63 - 1))
"""Digits of the largest integers of 64 bits, below and above 0."""


_HISTORY: Final = sandbox_transitions.name
_sequence: Final = table("sqlite_sequence", column("name"), column("seq"))
"""Table in which SQLite counts for AUTOINCREMENT."""


def _last_seq() -> ScalarSelect[Any]:
    """Return the seq that the next transition follows; NULL before the first one."""
    return (
        select(func.max(_sequence.c.seq))
        .where(_sequence.c.name == _literal(_HISTORY))
        .scalar_subquery()
    )


def _latest_seq() -> ScalarSelect[Any]:
    """Return the seq of the latest transition of a sandbox: that to its state."""
    of_sandbox = sandbox_transitions.alias("of_sandbox")
    return (
        select(func.max(of_sandbox.c.seq))
        .where(of_sandbox.c.sandbox_id == sandboxes.c.id)
        .correlate(sandboxes)
        .scalar_subquery()
    )


def _of_registry(name: str) -> ScalarSelect[Any]:
    """Return a column of the one row of `registry`; NULL if a damaged one has none."""
    return select(registry.c[name]).scalar_subquery()


def _distinct(column: Column[str]) -> Select[Any]:
    """Return the values of *column* but "", each once, in order."""
    return select(column).where(column != _literal("")).distinct().order_by(column)


STATEMENTS: Final[Mapping[str, Core]] = {
    "VERSION": select(*(registry.c[name] for name in VERSION_FIELDS)),
    "REGISTRY_ID": select(registry.c.registry_id),
    "INCARNATION": select(
        *(_of_registry(name) for name in ("registry_id", "incarnation", "copied_at")), _last_seq()
    ),
    "BEGIN_INCARNATION": update(registry).values(
        registry_id=bindparam("registry_id"), incarnation=bindparam("incarnation"), copied_at=null()
    ),
    "MARK_COPY": update(registry).values(copied_at=bindparam("copied_at")),
    # SQLite's own table, in which a name may stand twice: so no update.
    "DELETE_LAST_SEQ": delete(_sequence).where(_sequence.c.name == _literal(_HISTORY)),
    "INSERT_LAST_SEQ": insert(_sequence).values(name=_literal(_HISTORY), seq=bindparam("seq")),
    # Rows of sandboxes.
    "ROW_BY_ID": select_rows().where(sandboxes.c.id == bindparam("id")),
    "ROW_BY_CREATION": select_rows().where(sandboxes.c.creation == bindparam("creation")),
    "STATUS_BY_CREATION": select_rows(StatusRow._fields).where(
        sandboxes.c.creation == bindparam("creation")
    ),
    "ROWS": _in_order(),
    # What reconcile can change: of an UNKNOWN sandbox the whole row, of others the status.
    "UNKNOWNS": _in_order().where(sandbox_statuses.c.state == _literal(str(State.UNKNOWN))),
    "PAST_UNKNOWN": _in_order(StatusRow._fields).where(_is_past_unknown()),
    "IDS_BY_PREFIX": (
        select(sandboxes.c.id, sandboxes.c.creation)
        .where(_begins(sandboxes.c.id))
        .order_by(sandboxes.c.id)
    ),
    "TAKEN": select(sandboxes.c.id, sandboxes.c.name).where(
        or_(sandboxes.c.id == bindparam("id"), sandboxes.c.name == bindparam("name"))
    ),
    "IDS": select(sandboxes.c.id),
    # What a list or a history can be filtered by.
    "NAMESPACES": _distinct(sandboxes.c.namespace),
    "REASONS": _distinct(sandbox_statuses.c.reason),
    "PAST_REASONS": _distinct(sandbox_transitions.c.reason),
    "LABELS": (
        select(sandbox_labels.c.sandbox_id, sandbox_labels.c.key, sandbox_labels.c.value).order_by(
            sandbox_labels.c.sandbox_id, sandbox_labels.c.key
        )
    ),
    "CREATIONS": select(sandboxes.c.creation),
    "EXISTING": select(sandboxes.c.creation).where(sandboxes.c.creation == bindparam("creation")),
    "NETNS_PATHS": select(sandboxes.c.netns_path).where(sandboxes.c.netns_path != _literal("")),
    "CREATORS": (
        select(*(sandboxes.c[name] for name in CREATOR_FIELDS))
        .where(sandboxes.c.creator_pid.is_not(None))
        .distinct()
    ),
    # One row without a name for a sandbox that has no extension, and none if there is no sandbox.
    "EXTENSIONS": (
        select(*(sandbox_extensions.c[name] for name in EXTENSION_FIELDS))
        .select_from(
            sandboxes.outerjoin(
                sandbox_extensions, sandbox_extensions.c.sandbox_id == sandboxes.c.id
            )
        )
        .where(sandboxes.c.creation == bindparam("creation"))
        .order_by(sandbox_extensions.c.name)
    ),
    # Transitions. Each end by itself: SQLite finds one end of an index at once, not both.
    "KEPT": select(
        select(func.min(sandbox_transitions.c.seq)).scalar_subquery(),
        select(func.max(sandbox_transitions.c.seq)).scalar_subquery(),
    ),
    "POSITION": select(
        select(func.min(sandbox_transitions.c.seq)).scalar_subquery(),
        select(func.max(sandbox_transitions.c.seq)).scalar_subquery(),
        _last_seq(),
        exists().where(sandbox_transitions.c.seq == bindparam("after")),
        exists().where(sandbox_transitions.c.seq == bindparam("after") + literal_column("1")),
        _of_registry("registry_id"),
    ),
    # Sandboxes that the history knows, for people: by a prefix of the id, the name, or the pod.
    "PAST_IDS": (
        select(sandbox_transitions.c.sandbox_id)
        .group_by(sandbox_transitions.c.sandbox_id)
        .order_by(func.max(sandbox_transitions.c.seq).desc())
        .where(
            or_(
                _begins(sandbox_transitions.c.sandbox_id),
                sandbox_transitions.c.name == bindparam("name"),
                and_(
                    sandbox_transitions.c.pod == bindparam("pod"),
                    sandbox_transitions.c.namespace
                    == func.coalesce(bindparam("namespace"), sandbox_transitions.c.namespace),
                ),
            )
        )
    ),
    "STOPS": (
        select(sandbox_transitions.c.seq, sandbox_transitions.c.sandbox_id)
        .where(sandbox_transitions.c.seq > bindparam("after"))
        .where(
            or_(
                sandbox_transitions.c.event == _literal("deleted"),
                sandbox_transitions.c.to_state == _literal(str(State.NOTREADY)),
            )
        )
    ),
    # For metrics: the number of sandboxes of each kind, and since when the oldest is in its state.
    "COUNTS": (
        select(
            sandboxes.c.namespace,
            sandbox_statuses.c.state,
            sandbox_statuses.c.reason,
            func.count(),
            func.min(func.coalesce(sandbox_transitions.c.at, sandbox_statuses.c.changed_at)),
        )
        .select_from(
            sandboxes.outerjoin(
                sandbox_statuses, sandbox_statuses.c.sandbox_id == sandboxes.c.id
            ).outerjoin(sandbox_transitions, sandbox_transitions.c.seq == _latest_seq())
        )
        .group_by(sandboxes.c.namespace, sandbox_statuses.c.state, sandbox_statuses.c.reason)
    ),
    # Writes.
    "INSERT_SANDBOX": insert(sandboxes).values(_parameters(sandboxes)),
    "INSERT_STATUS": insert(sandbox_statuses).values(
        _parameters(sandbox_statuses, without={"leaving"})
    ),
    "INSERT_LABEL": insert(sandbox_labels).values(_parameters(sandbox_labels)),
    "DELETE_LABELS": delete(sandbox_labels).where(sandbox_labels.c.sandbox_id == bindparam("id")),
    "INSERT_EXTENSION": insert(sandbox_extensions).values(_parameters(sandbox_extensions)),
    "DELETE_EXTENSION": delete(sandbox_extensions).where(
        sandbox_extensions.c.sandbox_id == bindparam("sandbox_id"),
        sandbox_extensions.c.name == bindparam("name"),
    ),
    "UPDATE_METADATA": (
        update(sandboxes)
        .where(sandboxes.c.creation == bindparam("of"))
        .values(_parameters(sandboxes, without={"creation", *creator_columns(None)}))
    ),
    "NOTE_NETNS": (
        update(sandboxes)
        .where(sandboxes.c.creation == bindparam("of"))
        .where(sandboxes.c.netns_path == bindparam("at_path"))
        .where(sandboxes.c.netns_inode.is_(None))
        .values(_named(netns_columns(None)))
    ),
    "NOTE_PROCESS": (
        update(sandbox_statuses)
        .where(sandbox_statuses.c.sandbox_id == _id_of("of"))
        .where(sandbox_statuses.c.pid == bindparam("of_pid"))
        .where(*(sandbox_statuses.c[name].is_(None) for name in process_columns(None)))
        .values(_named(process_columns(None)))
    ),
    "ANNOUNCE_DELETION": (
        update(sandbox_statuses)
        .where(sandbox_statuses.c.sandbox_id == _id_of("of"))
        .values(_named((*AUDIT_FIELDS, "leaving")))
    ),
    "DELETE": delete(sandboxes).where(sandboxes.c.creation == bindparam("creation")),
}

STATUS_COLUMNS: Final = tuple(
    name
    for name in sandbox_statuses.c.keys()  # noqa: SIM118 - iteration yields columns
    if name not in {"sandbox_id", "leaving"}
)
"""Columns that an update of a status may write, in the order in which Core writes them."""


def _is_alike(column: ColumnElement[str], name: str) -> ColumnElement[bool]:
    """Return whether *column* is the parameter *name*, in any case of its letters."""
    return column.collate("NOCASE") == bindparam(name)


def update_status(columns: Collection[str]) -> Update:
    """Return the update of *columns* of the status of `:of`."""
    return (
        update(sandbox_statuses)
        .where(sandbox_statuses.c.sandbox_id == _id_of("of"))
        .values(_named(columns))
    )


LIST_FILTERS: Final[Mapping[str, ColumnElement[bool]]] = {
    "hide_unknown": _is_past_unknown(),
    "id": _begins(sandboxes.c.id),
    **{name: sandboxes.c[name] == bindparam(name) for name in ("name", "namespace", "pod")},
    "reason": _is_alike(sandbox_statuses.c.reason, "reason"),
    "state": sandbox_statuses.c.state.in_([bindparam(f"state{n}") for n, _ in enumerate(State)]),
    "since": _since() >= bindparam("since"),
}
"""Conditions of a list by the names of its filters, in the order in which they are joined."""
LIST_ONE: Final = sandboxes.c.creation == bindparam("creation")
"""Condition of a list of at most one sandbox."""


def list_sandboxes(
    filters: Collection[str],
    requirements: Sequence[tuple[Operator, int]] = (),
    *,
    newest_first: bool = False,
    limited: bool = False,
    summaries: Collection[str] = (),
) -> Select[Any]:
    """Return the list of the sandboxes that match *filters* and meet *requirements*.

    Args:
        filters: names of `LIST_FILTERS`.
        requirements: operator and number of values of each.
        newest_first: whether the order is reversed.
        limited: whether at most `:limit` are listed.
        summaries: fields of `Summary` that a row has, instead of those of a `Row`.
    """
    order = (sandbox_statuses.c.created_at, sandboxes.c.id)
    statement = (
        select_rows(summaries or Row._fields)
        .where(*(condition for name, condition in LIST_FILTERS.items() if name in filters))
        .where(*(meets(n, *each) for n, each in enumerate(requirements)))
        .order_by(*(each.desc() if newest_first else each for each in order))
    )
    return _limited(statement) if limited else statement


def _limited(statement: Select[Any]) -> Select[Any]:
    """Return at most `:limit` rows of *statement*."""
    return statement.limit(bindparam("limit")).offset(literal_column("0"))


def history(filters: Collection[str], *, newest_first: bool = False) -> Select[Any]:
    """Return the transitions after `:after`.

    Args:
        filters: of `HISTORY_FILTERS`, and up to `limit`.
        newest_first: whether the order is reversed.
    """
    seq = sandbox_transitions.c.seq
    statement = (
        select(*(sandbox_transitions.c[name] for name in Transition.__dataclass_fields__))
        .where(seq > bindparam("after"))
        .where(*(condition for name, condition in HISTORY_FILTERS.items() if name in filters))
        .order_by(seq.desc() if newest_first else seq)
    )
    return _limited(statement) if "limit" in filters else statement


HISTORY_FILTERS: Final[Mapping[str, ColumnElement[bool]]] = {
    "id": sandbox_transitions.c.sandbox_id == bindparam("id"),
    "since": sandbox_transitions.c.at >= bindparam("since"),
    "until": sandbox_transitions.c.at < bindparam("until"),
    "reason": _is_alike(sandbox_transitions.c.reason, "reason"),
}
"""Conditions of a history by the names of its filters, in the order in which they are joined."""
