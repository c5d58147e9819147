"""The verb `inspect`: everything about one sandbox, as it is stored."""

from __future__ import annotations

from base64 import b64decode
from typing import Any, Final

import click

from registry import cri
from registry.cli import lookup, options
from registry.cli.failures import complain_all
from registry.cli.output.formats import show
from registry.cli.output.values import age_of, shown, to_json
from registry.cli.output.views import Format, View
from registry.cli.verbs.summary import (
    FIELDS,
    labels_of,
    latest_summary,
    row_of,
    summary_of,
    unreadable,
)
from registry.errors import MetadataError
from registry.handles.sandbox import Sandbox
from registry.model import cni
from registry.store import Store
from registry.sync.interrupts import reraise_interrupt
from registry.tables import encoding
from registry.visible import visible

NESTED: Final = ("config", "extensions")
"""Fields that the text for people shows as JSON, below the others."""
VIEW: Final = View(
    (
        *FIELDS,
        *("additional_ips", "process_label", "cni_result", "error", "config", "extensions"),
    ),
    table={"ID": "id"},
    name="name",
    paged=True,
)


@click.command(
    epilog=options.examples(
        "sandbox-registry inspect 3f2a9c41",
        "sandbox-registry inspect shop/web -o yaml",
    ),
)
@options.sandbox
@options.output(VIEW)
@options.db
def inspect(*, sandbox: str, db: str, form: Format) -> int:
    """Show everything about one sandbox, even if it is UNKNOWN."""
    with options.open_to_show(db, warns=False) as store:
        handle = lookup.find(store, sandbox, f"inspect sandbox {sandbox!r}")
        errors = list(unreadable(handle))
        found = _summary(store, handle) | _details(handle)
        found |= {"error": None, "extensions": _extensions(handle, errors)}
        found["error"] = "; ".join(errors) or None
        found = {name: found[name] for name in VIEW.fields}
    code = complain_all(errors)
    show([found], VIEW, form, whole=found, text=_text(found))
    return code


def _summary(store: Store, handle: Sandbox) -> dict[str, Any]:
    """Return the fields of `list`."""
    return row_of(latest_summary(store, handle) or summary_of(handle)) | {
        "labels": labels_of(handle)
    }


def _text(found: dict[str, Any]) -> str:
    """Return *found* for people: a line for each field, and then the nested ones as JSON."""
    size = max(map(len, VIEW.fields))
    lines = [
        f"{name:{size}}  {shown(name, found[name])}{age_of(name, found[name])}"
        for name in VIEW.fields
        if name not in NESTED
    ]
    extensions = found["extensions"] and {
        name: _readable(each) for name, each in found["extensions"].items()
    }
    for name, value in {"config": found["config"], "extensions": extensions}.items():
        if value or name == "config":
            text = to_json(value, indent=2, ascii=False)
            lines += [f"{name}:", *map(visible, text.split("\n"))]
    return "\n".join(lines) + "\n"


def _readable(extension: dict[str, Any]) -> dict[str, Any]:
    """Return *extension* with its value as `text` if that is printable; else as it is."""
    if "type_url" not in extension:  # a message as JSON
        return extension
    try:
        text = b64decode(extension["value"]).decode()
    except UnicodeDecodeError:
        return extension
    return {"type_url": extension["type_url"], "text": text} if text.isprintable() else extension


def _extensions(handle: Sandbox, errors: list[str]) -> dict[str, Any] | None:
    """Return the extensions as JSON values; None if one is damaged, which *errors* then has."""
    from registry.cli.containerd import extensions  # noqa: PLC0415 - `list` does without

    try:
        return {name: extensions.decode(each) for name, each in handle.extensions.items()}
    except MetadataError as error:
        errors.append(str(error))
        return None


def _details(handle: Sandbox) -> dict[str, Any]:
    """Return the fields that `list` does not have."""
    try:
        metadata = handle.metadata
    except MetadataError:
        return _undecoded(handle)
    config, result = metadata.config, metadata.cni_result
    return {
        "host_network": metadata.host_network,
        "additional_ips": metadata.additional_ips,
        "process_label": metadata.process_label,
        "cni_result": None if result is None else cni.dump(result),
        "config": None if config is None else _fields_of(config),
    }


def _fields_of(config: cri.PodSandboxConfig) -> Any:
    """Return *config* as JSON has it, with proto names as keys, and the keys of maps sorted."""
    found = encoding.config_value(config)
    _sort_maps(found, config.DESCRIPTOR)
    return found


def _sort_maps(fields: dict[str, Any], descriptor: Any) -> None:
    """Sort the maps of a message, such as labels: protobuf has them in a random order."""
    for each in descriptor.fields:
        value = fields.get(each.name)
        if isinstance(value, dict) and each.message_type.GetOptions().map_entry:
            fields[each.name] = dict(sorted(value.items()))
        elif isinstance(value, dict):
            _sort_maps(value, each.message_type)


def _undecoded(handle: Sandbox) -> dict[str, Any]:
    """Return the fields as stored, for metadata that cannot be decoded."""
    stored = handle.stored
    fields = {name: stored[name] for name in ("additional_ips", "process_label", "cni_result")}
    fields["host_network"] = bool(stored["host_network"])
    try:
        fields["config"] = _fields_of(cri.PodSandboxConfig.FromString(stored["config"]))
    except Exception as error:  # noqa: BLE001 - each decoder has errors of its own
        reraise_interrupt(error)
        fields["config"] = None
    return fields
