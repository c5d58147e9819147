"""Values of the registry as HTML: escaped, and with each character shown."""

from __future__ import annotations

import json
from typing import Any, Final

from markupsafe import Markup

from registry.visible import visible

JSON: Final = {"labels", "extensions", "additional_ips", "cni_result", "config_json"}
"""Columns that hold JSON."""
_KEPT: Final = {"\n", "\t", "\r"}


def shown(value: Any) -> Any:
    """Return *value* with an escape for each character that is not seen, except white space."""
    if not isinstance(value, str) or value.isprintable():
        return value
    return type(value)("".join(char if char in _KEPT else visible(char) for char in value))


def as_json(text: str) -> Any:
    """Return JSON *text* as HTML: a list of the fields of a flat object, else indented."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return text
    if value in ({}, []):
        return "none"
    if isinstance(value, dict) and all(isinstance(each, str) for each in value.values()):
        fields = (
            Markup("<li><code>{}</code>={}</li>").format(shown(name), shown(each))
            for name, each in value.items()
        )
        return Markup('<ul class="labels">{}</ul>').format(Markup("").join(fields))
    indented = json.dumps(value, indent=2, ensure_ascii=False)
    return Markup('<pre class="json">{}</pre>').format(shown(indented))
