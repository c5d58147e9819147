"""The verb `inspect`: everything about one sandbox, as it is stored."""

from __future__ import annotations

from typing import Any

import click

from registry import cri
from registry.cli import options
from registry.cli.failures import complain_all
from registry.cli.output.formats import table, write_json
from registry.cli.output.streams import write
from registry.cli.output.values import shown, to_json
from registry.cli.verbs.summary import pod_of, pod_of_config, summary, unreadable
from registry.errors import MetadataError
from registry.handles.sandbox import Sandbox
from registry.model import cni
from registry.sync.interrupts import reraise_interrupt
from registry.tables import encoding
from registry.visible import visible


@click.command()
@options.id
@options.db
@options.as_json
def inspect(*, id: str, db: str, as_json: bool) -> int:
    """Show everything about one sandbox, even if it is UNKNOWN."""
    with options.open_to_show(db) as store:
        sandbox = options.find(store, id, f"inspect sandbox {id!r}")
        errors = list(unreadable(sandbox))
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
    from registry.cli.containerd import extensions  # noqa: PLC0415 - `list` does without

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
    return summary(sandbox, pod_of(sandbox)) | {
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
        config, pod = _fields_of(decoded), pod_of_config(decoded)
    except Exception as error:  # noqa: BLE001 - each decoder has errors of its own
        reraise_interrupt(error)
    return summary(sandbox, pod) | stored | {"error": None, "config": config}
