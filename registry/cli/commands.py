"""The command line: what a registry holds, for people as tables and for programs as JSON.

Rules:

1. A verb is read-only unless its help says that it writes, and opens the store so.
2. What comes from the database is data, and is not obeyed: see `output`. `export` alone writes the
   bytes of containerd, which are for files.
3. Output is written after the store is closed, so that a slow reader of it holds up nobody.
4. Exit codes and the fields of `--json` are a contract (docs/cli.md), and only ever added to.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import logging
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict
from typing import Annotated, Any, Final, TextIO, TypeVar

import rich  # noqa: F401 - that it is missing is said at once; what is slow of it comes late
import typer

from registry.cli import documents, import_export
from registry.cli.output import plain, shown, table, write, write_all, write_bytes, write_json
from registry.cri import PodSandboxConfig, PodSandboxMetadata
from registry.errors import (
    CompactedError,
    InvalidArgumentError,
    MetadataError,
    NetNSError,
    NotFoundError,
    RegistryError,
)
from registry.handles.sandbox import Sandbox
from registry.model import cni
from registry.model.status import State, Status
from registry.recovery.verdicts import Report, Verdict
from registry.store import Store
from registry.sync.interrupts import reraise_interrupt
from registry.tables import encoding
from registry.tables.rows import Transition

T = TypeVar("T")

PROGRAM: Final = "sandbox-registry"

FINE, FOUND, USAGE, UNAVAILABLE = 0, 1, 2, 3
"""Exit codes; FOUND: what was asked about is missing or wrong."""
CLOSED_PIPE: Final = 141
"""What a shell says of a program that SIGPIPE ended."""
PAGE: Final = 1000
"""Transitions that are read at once of a history that is damaged."""
TIMEOUT_MAX: Final = 86_400.0
"""Seconds; infinity is nothing to wait for."""

_NAME: Final = r"[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?"
_DNS_LABEL: Final = r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?"
_LABEL_KEY: Final = re.compile(rf"((?=.{{1,253}}/){_DNS_LABEL}(\.{_DNS_LABEL})*/)?{_NAME}")
"""A label key of Kubernetes: a name, and perhaps a DNS name of at most 253 characters before it."""
ADVICE: Final = {
    "open it with read_only=True": (
        "mount its file system writable; without that list, inspect, history, check, export and "
        "reconcile --dry-run work"
    ),
    "open it for writing with upgrade=True": f"`{PROGRAM} reconcile` brings it up to date",
}
"""What an operator can do, by what the library advises to a program."""

# What is logged on the way stands in what is printed at the end. Without a handler Python would
# write it to stderr as well, with tracebacks.
logging.getLogger("registry").addHandler(logging.NullHandler())

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


def main(args: Sequence[str] | None = None) -> int:
    """Run the command line *args*, default sys.argv[1:], and return the exit code."""
    if sys.stdout is None:  # closed, as by `>&-`: the exit code is all that is wanted
        with open(os.devnull, "w", encoding="utf-8") as sys.stdout:
            return main(args)
    try:
        return int(app(args, prog_name=PROGRAM, standalone_mode=False) or FINE)
    except typer.TyperException as error:
        message = " ".join(error.format_message().split())
        return _complain(f"{message} (see {PROGRAM} --help)", error.exit_code)
    except RegistryError as error:
        return _complain(str(error), _code_of(error))
    except (OSError, MemoryError) as error:  # those of the store are RegistryErrors
        reraise_interrupt(error)
        _discard(sys.stdout)
        why = "no memory" if isinstance(error, MemoryError) else f"write output: {error.strerror}"
        return _complain(why, UNAVAILABLE)
    except SystemExit:  # what typer makes of a closed pipe, as by `| head`
        _discard(sys.stdout)
        return CLOSED_PIPE


def _code_of(error: RegistryError) -> int:
    if isinstance(error, NotFoundError):
        return FOUND if error.id else UNAVAILABLE
    if isinstance(error, (CompactedError, MetadataError, NetNSError)):
        return FOUND
    return USAGE if isinstance(error, InvalidArgumentError) else UNAVAILABLE


def _complain(message: str, code: int) -> int:
    """Say in one line on stderr what went wrong, and return *code*."""
    for of_library, of_program in ADVICE.items():
        message = message.replace(of_library, of_program)
    try:
        typer.echo(f"{PROGRAM}: error: {plain(message)}", err=True)
    except OSError as error:
        reraise_interrupt(error)
        _discard(sys.stderr)
    return code


def _discard(stream: TextIO) -> None:
    """Lose what is still in the buffer: Python would try again at its end, and say that it failed.

    The descriptor stays taken, or the next file that is opened would get its number.
    """
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, stream.fileno())
    os.close(null)


# What the verbs have in common.

Db = Annotated[
    str | None, typer.Option("--db", metavar="PATH", help="As before the verb, and goes before it.")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]
Timeout = Annotated[
    float, typer.Option("--timeout", metavar="SECONDS", help="How long to wait for other writers.")
]
Id = Annotated[str, typer.Argument(metavar="ID", help="Whole, or a unique prefix.")]


def _say_version(asked: bool) -> None:  # noqa: FBT001 - so typer calls it
    if asked:
        typer.echo(f"{PROGRAM} {importlib.metadata.version(PROGRAM)}")
        raise typer.Exit


@app.callback(context_settings={"help_option_names": ["-h", "--help"]})
def _name_registry(
    ctx: typer.Context,
    *,
    db: Annotated[
        str | None,
        typer.Option(
            "--db",
            metavar="PATH",
            envvar="SANDBOX_REGISTRY_DB",
            show_envvar=True,
            help="The registry.",
        ),
    ] = None,
    _: Annotated[
        bool,
        typer.Option("--version", callback=_say_version, is_eager=True, help="Say it and end."),
    ] = False,
) -> None:
    """See, check and recover a registry of pod sandboxes.

    Exit codes: 0 fine, 1 something is missing or wrong, 2 usage, 3 the registry is unavailable.
    """
    ctx.obj = db


def path_of(ctx: typer.Context, db: str | None) -> str:
    """Return the path of the registry that was named, after the verb, before it or by variable."""
    path: str | None = ctx.obj if db is None else db
    if path is None:
        raise _usage(ctx, "--db", "no registry is named, and SANDBOX_REGISTRY_DB is not set")
    return path


def _open(
    ctx: typer.Context, db: str | None, *, timeout: float | None = None, create: bool = False
) -> Store:
    """Open the registry that was named, for writing if a *timeout* is given, in seconds."""
    path = path_of(ctx, db)
    if timeout is None:
        return Store.open(path, read_only=True, create=False)
    if not 0 <= timeout <= TIMEOUT_MAX:
        raise _usage(ctx, "--timeout", f"{timeout:g} is not between 0 and {TIMEOUT_MAX:g}")
    actor = f"{PROGRAM}[{os.getpid()}]"
    return Store.open(path, create=create, reconcile=False, timeout=timeout, actor=actor)


def _usage(ctx: typer.Context, option: str, message: str) -> typer.BadParameter:
    return typer.BadParameter(message, ctx, param_hint=option)


# The verbs.


@app.command("list")
def list_sandboxes(
    ctx: typer.Context,
    *,
    db: Db = None,
    every: Annotated[bool, typer.Option("--all", help="UNKNOWN ones too.")] = False,
    state: Annotated[str | None, typer.Option(help="UNKNOWN, READY or NOTREADY.")] = None,
    label: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE", help="May be repeated.")
    ] = None,
    pod: Annotated[str | None, typer.Option(help="Name of the pod.")] = None,
    namespace: Annotated[str | None, typer.Option(help="Of the pod, in Kubernetes.")] = None,
    name: Annotated[str | None, typer.Option(help="Name of the sandbox.")] = None,
    id: Annotated[str | None, typer.Option(metavar="PREFIX", help="Beginning of the id.")] = None,
    as_json: Json = False,
) -> int:
    """List the sandboxes that every filter lets through, oldest first."""
    wanted, labels = _state(ctx, state), _labels(ctx, label or [])
    with _open(ctx, db) as store:
        sandboxes = store.list(
            include_unknown=every or wanted is State.UNKNOWN,
            id=id,
            name=name,
            state=wanted,
            labels=labels,
            pod=pod,
            namespace=namespace,
        )
    code = _complain_all(error for each in sandboxes for error in _unreadable(each))
    found = [_summary(each, _pod(each)) for each in sandboxes]
    columns = ("id", "state", "namespace", "pod", "pid", "ip", "created_at", "reason")
    write_all(found, columns, as_json=as_json)
    return code


def _state(ctx: typer.Context, text: str | None) -> State | None:
    name = (text or "").upper().removeprefix("SANDBOX_")
    if text is not None and name not in State.__members__:
        raise _usage(ctx, "--state", f"{text!r} is none of {', '.join(State.__members__)}")
    return None if text is None else State[name]


def _labels(ctx: typer.Context, texts: Sequence[str]) -> dict[str, str]:
    """Return the labels that *texts* name; a selector with operators is refused, not misread."""
    labels: dict[str, str] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not _LABEL_KEY.fullmatch(key) or value.startswith("=") or "," in value:
            why = "is not KEY=VALUE with a label key of Kubernetes; no other operator is accepted"
            raise _usage(ctx, "--label", f"{text!r} {why}")
        if labels.setdefault(key, value) != value:
            raise _usage(ctx, "--label", f"{key!r} cannot have two values")
    return labels


def _unreadable(sandbox: Sandbox) -> Iterator[str]:
    """Yield why what is stored of it cannot be read."""
    for part in ("status_as_read", "metadata"):
        try:
            getattr(sandbox, part)
        except MetadataError as error:
            yield str(error)


def _complain_all(errors: Iterable[str]) -> int:
    """Say each of them, and return the code for that there are any, or none."""
    return max([_complain(error, FOUND) for error in errors], default=FINE)


def _pod(sandbox: Sandbox) -> PodSandboxMetadata | None:
    """Return whose sandbox it is; None where its metadata cannot be read."""
    with contextlib.suppress(MetadataError):
        return (sandbox.config or PodSandboxConfig()).metadata
    return None


def _summary(sandbox: Sandbox, pod: PodSandboxMetadata | None) -> dict[str, Any]:
    """Return the fields that `list` and `inspect` have in common; the status as it is stored."""
    stored = sandbox.stored
    return {
        "id": sandbox.id,
        "name": sandbox.name,
        "namespace": None if pod is None else pod.namespace,
        "pod": None if pod is None else pod.name,
        **{name: stored[name] for name in Status.__dataclass_fields__},
        "netns_path": sandbox.netns_path,
        "ip": sandbox.ip,
        "runtime_handler": sandbox.runtime_handler,
    }


@app.command()
def inspect(ctx: typer.Context, id: Id, *, db: Db = None, as_json: Json = False) -> int:
    """Show everything about one sandbox, also while it is being created."""
    with _open(ctx, db) as store:
        sandbox = store.get(id, include_unknown=True)
    errors = list(_unreadable(sandbox))
    found = _details(sandbox) | {"error": "; ".join(errors) or None}
    code = _complain_all(errors)
    if as_json:
        write_json(found)
        return code
    config_lines = json.dumps(found.pop("config"), indent=2, ensure_ascii=False).split("\n")
    fields = [{"field": name, "value": shown(name, value)} for name, value in found.items()]
    write(table(fields, ("field", "value")) + "config:\n")
    write("".join(f"{plain(line)}\n" for line in config_lines))
    return code


def _details(sandbox: Sandbox) -> dict[str, Any]:
    try:
        metadata = sandbox.metadata
    except MetadataError:
        return _undecoded(sandbox)
    config, result = metadata.config, metadata.cni_result
    return _summary(sandbox, (config or PodSandboxConfig()).metadata) | {
        "host_network": metadata.host_network,
        "additional_ips": metadata.additional_ips,
        "process_label": metadata.process_label,
        "cni_result": None if result is None else cni.dump(result),
        "error": None,
        "config": None if config is None else json.loads(encoding.config_json(config)),
    }


def _undecoded(sandbox: Sandbox) -> dict[str, Any]:
    """Return the same of a sandbox whose metadata cannot be decoded: its columns as they are."""
    stored = sandbox.stored
    stored["host_network"] = bool(stored["host_network"])
    data, pod = stored.pop("config"), None
    config = None
    try:
        decoded = PodSandboxConfig.FromString(data)
        config, pod = json.loads(encoding.config_json(decoded)), decoded.metadata
    except Exception as error:  # noqa: BLE001 - each decoder has errors of its own
        reraise_interrupt(error)
    return _summary(sandbox, pod) | stored | {"error": None, "config": config}


@app.command()
def history(
    ctx: typer.Context,
    id: Annotated[
        str | None,
        typer.Argument(metavar="[ID]", help="Whole, or a unique prefix unless it is deleted."),
    ] = None,
    *,
    db: Db = None,
    after: Annotated[int, typer.Option(min=0, metavar="SEQ", help="Only later ones.")] = 0,
    limit: Annotated[
        int | None, typer.Option(min=0, metavar="N", help="At most so many, the oldest.")
    ] = None,
    as_json: Json = False,
) -> int:
    """Show every change of state, oldest first, of all sandboxes or of one, a deleted one too."""
    failed: list[str] = []
    with _open(ctx, db) as store:
        whole = None if id is None else _whole_id(store, id)
        most = sys.maxsize if limit is None else limit
        transitions = _readable_history(store, whole, after, most, failed)
    found = [asdict(each) | _ends(each) for each in transitions]
    code = _complain_all(failed)
    columns = "seq at sandbox_id from_state to_state pid reason actor message"
    write_all(found, columns.split(), as_json=as_json)
    return code


def _ends(transition: Transition) -> dict[str, str | None]:
    """Return the states of *transition* as they are printed."""
    ends = {"from_state": transition.from_state, "to_state": transition.to_state}
    return {name: None if end is None else str(end) for name, end in ends.items()}


def _readable_history(
    store: Store, id: str | None, after: int, limit: int, failed: list[str]
) -> list[Transition]:
    """Return what can be read of a history; *failed* gets why the rest of it cannot."""
    try:
        return store.history(id, after=after, limit=limit)
    except MetadataError:  # one transition is damaged; which are not is found out step by step
        return list(_history_by_pages(store, id, after, limit, failed))


def _history_by_pages(
    store: Store, id: str | None, after: int, left: int, failed: list[str]
) -> Iterator[Transition]:
    """Yield page after page; of a page with a damaged transition one after the other."""
    page = PAGE
    while left > 0:
        size = min(page, left)
        try:
            found = store.history(id, after=after, limit=size)
        except MetadataError as error:
            if size == 1:
                failed.append(str(error))
                after, left = error.seq, left - 1
            page = PAGE if size == 1 else 1
            continue
        yield from found
        if len(found) < size:
            return
        after, left = found[-1].seq, left - size


def _whole_id(store: Store, id: str) -> str:
    """Return *id* if the history has it, else the id of the sandbox that it is a prefix of."""
    with contextlib.suppress(MetadataError):  # the history has it, but not whole
        if not store.history(id, limit=1):
            return _id_of_prefix(store, id)
    return id


def _id_of_prefix(store: Store, id: str) -> str:
    try:
        return store.get(id, include_unknown=True).id
    except NotFoundError as error:
        message = f"read history of sandbox {id!r}: there is and was none, as far as is kept"
        raise NotFoundError(message, id=id) from error


@app.command()
def reconcile(
    ctx: typer.Context,
    *,
    db: Db = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Report, and write nothing.")] = False,
    remove_orphans: Annotated[
        bool, typer.Option("--remove-orphans", help="Remove namespaces that no sandbox owns.")
    ] = False,
    timeout: Timeout = 30.0,
    as_json: Json = False,
) -> int:
    """Look what became of every sandbox, and mark what is gone as NOTREADY; this writes.

    It also brings the schema of an older registry up to date.
    """
    removed, code = [], FINE
    with _open(ctx, db, timeout=None if dry_run else timeout) as store:
        report = store.reconcile(dry_run=dry_run)
        for path in report.orphans if remove_orphans and not dry_run else ():
            try:
                removed += store.remove_orphans([path])
            except (NetNSError, InvalidArgumentError) as error:  # the others may go
                code = _complain(str(error), FOUND)
    if as_json:
        counts = {verdict: report.counts.get(verdict, 0) for verdict in Verdict}
        write_json(asdict(report) | {"counts": counts, "removed": removed, "dry_run": dry_run})
    else:
        tried = remove_orphans and not dry_run
        write(_report(report, removed, dry_run=dry_run, tried=tried))
    return code


def _report(report: Report, removed: Sequence[str], *, dry_run: bool, tried: bool) -> str:
    findings = [asdict(finding) for finding in report.findings]
    columns = ("sandbox_id", "verdict", "changed", "reason", "message")
    counts = ", ".join(f"{count} {verdict}" for verdict, count in sorted(report.counts.items()))
    lines = [f"sandboxes: {counts or 'none'}"]
    if dry_run:
        lines.append("dry run: nothing was changed")
    left = "not removed" if tried else "no sandbox owns it; --remove-orphans removes it"
    lines += [
        f"orphan {plain(path)}: {'removed' if path in removed else left}" for path in report.orphans
    ]
    return (table(findings, columns) if findings else "") + "".join(f"{x}\n" for x in lines)


@app.command()
def check(ctx: typer.Context, *, db: Db = None, as_json: Json = False) -> int:
    """Report everything in the registry that should not be so; exit code 1 if there is any."""
    with _open(ctx, db) as store:
        found = [asdict(violation) for violation in store.check()]
    if found or as_json:
        write_all(found, ("rule", "sandbox_id", "found", "expected"), as_json=as_json)
    else:
        write("no violations\n")
    return FOUND if found else FINE


@app.command()
def delete(
    ctx: typer.Context, id: Id, *, db: Db = None, timeout: Timeout = 30.0, as_json: Json = False
) -> int:
    """Delete the record of one sandbox, and nothing else; this writes.

    Its processes and its network namespace are left alone.
    """
    deleted, path = False, ""
    with _open(ctx, db, timeout=timeout) as store, contextlib.suppress(NotFoundError):
        sandbox = store.get(id, include_unknown=True)
        id, path, deleted = sandbox.id, sandbox.netns_path, sandbox.delete()
    if as_json:
        write_json({"id": id, "deleted": deleted})
    elif deleted:
        left = f"; network namespace {path} is left alone" if path else ""
        write(plain(f"deleted {id}{left}") + "\n")
    if not deleted:
        return _complain(f"delete sandbox {id!r}: there is no such sandbox", FOUND)
    return FINE


@app.command("import")
def import_sandboxes(
    ctx: typer.Context,
    files: Annotated[
        list[str], typer.Argument(metavar="FILE...", help="One JSON document, or one a line; or -.")
    ],
    *,
    db: Db = None,
    status: Annotated[
        str | None, typer.Option(metavar="FILE", help="Their statuses, as JSON by id.")
    ] = None,
    keep_going: Annotated[
        bool, typer.Option("--keep-going", help="Take the others when some are refused.")
    ] = False,
    create: Annotated[
        bool, typer.Option("--create", help="Make the registry if there is none.")
    ] = False,
    timeout: Timeout = 30.0,
    as_json: Json = False,
) -> int:
    """Take over sandboxes from the JSON that containerd stores, all or none; this writes.

    Without a status they are UNKNOWN, and UNVERIFIED to a reconcile.
    """
    if [*files, status].count(documents.STDIN) > 1:
        raise _usage(ctx, "FILE", "- stands twice, and stdin can be read once")
    statuses = {} if status is None else import_export.read_statuses(status)
    given = (document for path in files for document in documents.read(path))
    candidates = import_export.prepare(given, statuses)
    try:
        store = _open(ctx, db, timeout=timeout, create=create)
    except NotFoundError as error:
        return _complain(f"{error}; --create makes a registry", UNAVAILABLE)
    with store:
        outcomes = import_export.load(store, candidates, keep_going=keep_going)
    states = {outcome.state: outcome.state and str(outcome.state) for outcome in outcomes}
    found = [asdict(outcome) | {"state": states[outcome.state]} for outcome in outcomes]
    imported = sum(outcome.imported for outcome in outcomes)
    refused = sum(bool(outcome.error) for outcome in outcomes)
    unused = len(statuses.keys() - {outcome.id for outcome in outcomes})
    if as_json:
        counts = {"imported": imported, "refused": refused, "unused_statuses": unused}
        write_json({"sandboxes": found} | counts)
    else:
        columns = ("source", "id", "state", "imported", "holder", "error")
        write(table(found, columns) if found else "")
        write(f"imported {imported} of {len(found)}\n")
        if unused:
            write(f"{unused} of {len(statuses)} statuses are of none of them\n")
    if refused:
        left = f"{imported} imported" if keep_going else "see --keep-going"
        return _complain(f"import: {refused} of {len(found)} refused; {left}", FOUND)
    return FINE


@app.command("export")
def export_sandboxes(
    ctx: typer.Context,
    ids: Annotated[
        list[str] | None, typer.Argument(metavar="[ID...]", help="Whole, or unique prefixes.")
    ] = None,
    *,
    db: Db = None,
    status: Annotated[
        str | None, typer.Option(metavar="FILE", help="Write their statuses to it, for import.")
    ] = None,
) -> int:
    """Write sandboxes as the JSON that containerd stores, one a line; all of them without an ID."""
    if status == documents.STDIN:
        raise _usage(ctx, "--status", "- stands for stdout, where the sandboxes go")
    with _open(ctx, db) as store:
        if status is not None and _is_of(store.path, os.path.realpath(status)):
            raise _usage(ctx, "--status", f"{status!r} is the registry, or a file of it")
        found = [store.get(id, include_unknown=True) for id in ids or ()]
        sandboxes = {each.id: each for each in found or store.list(include_unknown=True)}.values()
    failed: list[str] = []
    if status is not None:
        try:
            with open(status, "w", encoding="utf-8", errors="backslashreplace") as file:
                file.writelines(_readable(import_export.status_line, sandboxes, failed))
        except OSError as error:
            reraise_interrupt(error)
            return _complain(f"write statuses {status!r}: {error.strerror}", UNAVAILABLE)
    for line in _readable(lambda each: each.metadata.marshal_json() + b"\n", sandboxes, failed):
        write_bytes(line)
    return _complain_all(failed)


def _is_of(registry: str, path: str) -> bool:
    """Whether *path* is the registry, or one of the files beside it."""
    return path == registry or path.startswith(f"{registry}-")


def _readable(
    fn: Callable[[Sandbox], T], sandboxes: Iterable[Sandbox], failed: list[str]
) -> Iterator[T]:
    """Yield what *fn* makes of each; *failed* gets why there is nothing of the others."""
    for sandbox in sandboxes:
        try:
            yield fn(sandbox)
        except MetadataError as error:
            failed.append(str(error))
