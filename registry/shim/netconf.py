"""CNI configurations: which one the node has, what is used of it, and their JSON.

Source: CNI specification 1.1, section 1, and the checks of libcni.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any, Final

SUFFIXES: Final = (".conf", ".conflist", ".json")
VERSIONS: Final = ("0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0")
"""Versions of the specification, oldest first. Results of earlier ones have another structure."""
NAME: Final = r"[a-zA-Z0-9][a-zA-Z0-9_.-]*"
"""Name of a network (libcni, ValidateNetworkName)."""
FILE_MAX: Final = 128 * 1024
"""Bytes of a configuration, which is recorded with each sandbox."""
NESTED_MAX: Final = 100
"""Objects and lists in one another."""
TOKENS: Final = re.compile(rb'"(?:[^"\\]|\\.)*"|[\[\]{}]', re.DOTALL)
"""Strings, and the brackets outside of them."""


def first(conf_dir: str) -> str:
    """Return the path of the first configuration in *conf_dir* by name.

    Raises:
        OSError: the directory cannot be read.
        ValueError: it has no configuration.
    """
    with os.scandir(conf_dir) as entries:
        names = [each.name for each in entries if each.name.endswith(SUFFIXES) and each.is_file()]
    if not names:
        raise ValueError("no network config found; install a network")
    return os.path.join(conf_dir, min(names))


def read(path: str) -> dict[str, Any]:
    """Return what is used of the configuration in the file at *path*.

    Raises:
        OSError: it cannot be read.
        ValueError: it cannot be used.
    """
    with open(path, "rb") as file:
        data = file.read(FILE_MAX + 1)
    if len(data) > FILE_MAX:
        raise ValueError(f"it has more than {FILE_MAX} bytes")
    return used(load(data), is_list=path.endswith(".conflist"))


def used(conf: Mapping[str, Any], *, is_list: bool) -> dict[str, Any]:
    """Return what is used of *conf*, which is a list of plugins or one plugin.

    Raises:
        ValueError: it cannot be used.
    """
    name, found = conf.get("name"), conf.get("plugins") if is_list else [conf]
    if not isinstance(name, str) or not re.fullmatch(NAME, name):
        raise ValueError(f"name {name!r} is not the name of a network")
    if not isinstance(found, list) or not found:
        raise ValueError("it has no list of plugins")
    for plugin in found:
        sound = (
            isinstance(plugin, dict)
            and isinstance(plugin.get("capabilities", {}), dict)
            and isinstance(plugin.get("type"), str)
            and re.fullmatch(r"[^/\0]+", plugin["type"])
        )
        if not sound:
            raise ValueError("a plugin has no type, or its capabilities are no object")
    versions = [conf.get("cniVersion")]
    if isinstance(conf.get("cniVersions"), list):
        versions += conf["cniVersions"]
    known = [version for version in VERSIONS if version in versions]
    if not known:
        raise ValueError(f"cniVersion {versions[0]!r} is none of {', '.join(VERSIONS)}")
    disabled = {key: conf.get(key) in (True, "true") for key in ("disableCheck", "disableGC")}
    return {"name": name, "cniVersion": known[-1], **disabled, "plugins": found}


def is_at_least(network: Mapping[str, Any], version: str) -> bool:
    """Return whether *network* has that version of the specification or a later one."""
    return VERSIONS.index(network["cniVersion"]) >= VERSIONS.index(version)


def declared(plugin: Mapping[str, Any]) -> set[str]:
    """Return the capabilities that a plugin declares."""
    return {name for name, on in plugin.get("capabilities", {}).items() if on is True}


def dump(value: object) -> bytes:
    """Return *value* as JSON."""
    import json  # noqa: PLC0415 - a server whose sandboxes all run starts without

    return json.dumps(value).encode()


def load(data: bytes) -> dict[str, Any]:
    """Return the JSON object in *data*.

    Raises:
        ValueError: there is none, or it is nested too deeply.
    """
    import json  # noqa: PLC0415 - a server whose sandboxes all run starts without

    if _depth(data) > NESTED_MAX:
        raise ValueError("it is nested too deeply")
    try:
        value = json.loads(data)
    except ValueError as error:
        raise ValueError(f"it is no JSON: {error}") from error
    if isinstance(value, dict):
        return value
    raise ValueError("it is no JSON object")


def _depth(data: bytes) -> int:
    """Return how deeply the objects and lists in *data* are nested.

    At the recursion limit, which `json` would reach, the garbage collector may call a function of
    another module, which fails there.
    """
    depth = deepest = 0
    for token in TOKENS.finditer(data):
        if token[0] in b"[{":
            depth += 1
            deepest = max(deepest, depth)
        elif token[0] in b"]}":
            depth -= 1
    return deepest
