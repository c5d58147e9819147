"""The verbs `list` and `inspect`: sandboxes as they are stored."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Sequence
from typing import Any, Final, NamedTuple

import click

from registry import cri
from registry.cli import options
from registry.cli.failures import complain_all
from registry.cli.output import shown, table, to_json, write, write_all, write_json
from registry.errors import MetadataError
from registry.handles.sandbox import Sandbox
from registry.model import cni
from registry.model.status import State, Status
from registry.sync.interrupts import reraise_interrupt
from registry.tables import encoding
from registry.visible import visible

COLUMNS: Final = ("id", "state", "namespace", "pod", "pid", "ip", "created_at", "reason")
"""Fields that the table of `list` shows."""


class Pod(NamedTuple):
    """Pod of a sandbox; both names are empty for a sandbox without a config."""

    namespace: str = ""
    name: str = ""


def _parse_states(_: click.Context, __: click.Parameter, texts: Sequence[str]) -> set[State]:
    names = {text: text.upper().removeprefix("SANDBOX_") for text in texts}
    for text, name in names.items():
        if name not in State.__members__:
            raise click.BadParameter(f"{text!r} is none of {', '.join(State.__members__)}")
    return {State[name] for name in names.values()}


def _parse_labels(_: click.Context, __: click.Parameter, texts: Sequence[str]) -> dict[str, str]:
    """Return the labels in *texts*; refuse a selector with operators, which would match nothing."""
    labels: dict[str, str] = {}
    if texts:
        from registry.model.selector import KEY  # noqa: PLC0415 - most lists have no labels
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not re.fullmatch(KEY, key) or value.startswith("=") or "," in value:
            why = "is not KEY=VALUE with a label key of Kubernetes; use --selector for all else"
            raise click.BadParameter(f"{text!r} {why}")
        if labels.setdefault(key, value) != value:
            raise click.BadParameter(f"{key!r} cannot have two values")
    return labels


@click.command("list")
@options.db
@click.option("--all", "every", is_flag=True, help="Include UNKNOWN sandboxes.")
@click.option(
    *("--state", "states"),
    metavar="STATE",
    multiple=True,
    callback=_parse_states,
    help="UNKNOWN, READY or NOTREADY; may be repeated.",
)
@click.option(
    *("--selector", "-l"),
    metavar="SELECTOR",
    help="Label selector of Kubernetes: 'app=web,tier!=db,env in (a,b),!canary'.",
)
@click.option(
    *("--label", "labels"),
    metavar="KEY=VALUE",
    multiple=True,
    callback=_parse_labels,
    help="Label of the pod; may be repeated.",
)
@click.option("--pod", metavar="NAME", help="Name of the pod.")
@click.option("--namespace", metavar="NAME", help="Kubernetes namespace of the pod.")
@click.option("--name", metavar="NAME", help="Name of the sandbox.")
@click.option("--id", metavar="PREFIX", help="Beginning of the id.")
@click.option("--newest-first", is_flag=True, help="List the newest sandbox first.")
@click.option(
    "--limit",
    metavar="N",
    type=options.Count(1),
    help="Maximum number of sandboxes, the first in the order.",
)
@options.as_json
def list_sandboxes(
    *,
    db: str,
    every: bool,
    states: set[State],
    as_json: bool,
    **filters: Any,
) -> int:
    """List the sandboxes that match every filter, oldest first."""
    with options.open_to_show(db) as store:
        sandboxes = store.list(
            include_unknown=every or State.UNKNOWN in states, state=states or None, **filters
        )
    code = complain_all(error for each in sandboxes for error in _unreadable(each))
    write_all([_summary(each, _pod(each)) for each in sandboxes], COLUMNS, as_json=as_json)
    return code


def _unreadable(sandbox: Sandbox) -> Iterator[str]:
    """Yield why the stored status or metadata cannot be read, if so."""
    for part in ("status_as_read", "metadata"):
        try:
            getattr(sandbox, part)
        except MetadataError as error:
            yield str(error)


def _pod(sandbox: Sandbox) -> Pod | None:
    """Return the pod of *sandbox*; None if its metadata cannot be read."""
    with contextlib.suppress(MetadataError):
        return _pod_of(sandbox.config)
    return None


def _pod_of(config: cri.PodSandboxConfig | None) -> Pod:
    return Pod() if config is None else Pod(config.metadata.namespace, config.metadata.name)


def _summary(sandbox: Sandbox, pod: Pod | None) -> dict[str, Any]:
    """Return the fields that `list` and `inspect` have in common, with the status as stored."""
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


@click.command()
@options.id
@options.db
@options.as_json
def inspect(*, id: str, db: str, as_json: bool) -> int:
    """Show everything about one sandbox, even if it is UNKNOWN."""
    with options.open_to_show(db) as store:
        sandbox = options.find(store, id, f"inspect sandbox {id!r}")
        errors = list(_unreadable(sandbox))
        decoded = _extensions(sandbox, errors)
    found = _details(sandbox) | {"error": "; ".join(errors) or None, "extensions": decoded}
    code = complain_all(errors)
    if as_json:
        write_json(found)
        return code
    parts = {name: found.pop(name) for name in ("config", "extensions")}
    fields = [{"field": name, "value": shown(name, value)} for name, value in found.items()]
    write(table(fields, ("field", "value")))
    for name, part in parts.items():
        if part or name == "config":
            lines = to_json(part, indent=2, ascii=False).split("\n")
            write(f"{name}:\n" + "".join(f"{visible(line)}\n" for line in lines))
    return code


def _extensions(sandbox: Sandbox, errors: list[str]) -> dict[str, Any] | None:
    """Return the extensions as JSON values; None if one is damaged, which *errors* then has."""
    from registry.cli import extensions  # noqa: PLC0415 - `list` does without

    try:
        return {name: extensions.decode(each) for name, each in sandbox.extensions.items()}
    except MetadataError as error:
        errors.append(str(error))
        return None


def _details(sandbox: Sandbox) -> dict[str, Any]:
    """Return the fields of `inspect`."""
    try:
        metadata = sandbox.metadata
    except MetadataError:
        return _undecoded(sandbox)
    config, result = metadata.config, metadata.cni_result
    return _summary(sandbox, _pod(sandbox)) | {
        "host_network": metadata.host_network,
        "additional_ips": metadata.additional_ips,
        "process_label": metadata.process_label,
        "cni_result": None if result is None else cni.dump(result),
        "error": None,
        "config": None if config is None else _fields_of(config),
    }


def _fields_of(config: cri.PodSandboxConfig) -> Any:
    """Return *config* as JSON has it, with proto names as keys."""
    import json  # noqa: PLC0415 - `list` does without

    return json.loads(encoding.config_json(config))


def _undecoded(sandbox: Sandbox) -> dict[str, Any]:
    """Return the fields of `inspect` as stored, for metadata that cannot be decoded."""
    stored = sandbox.stored
    stored["host_network"] = bool(stored["host_network"])
    data, pod = stored.pop("config"), None
    config = None
    try:
        decoded = cri.PodSandboxConfig.FromString(data)
        config, pod = _fields_of(decoded), _pod_of(decoded)
    except Exception as error:  # noqa: BLE001 - each decoder has errors of its own
        reraise_interrupt(error)
    return _summary(sandbox, pod) | stored | {"error": None, "config": config}
