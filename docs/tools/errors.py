"""The reference of errors: `python -m docs.tools.errors` writes its tables into docs/errors.md.

The docstring of each class says when it is raised and what to do; those of the calls say which
errors they raise.
"""

from __future__ import annotations

import inspect
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import registry
from registry import RegistryError, StatusStorage, errors
from registry.handles.sandbox import _StoredStatus

ROOT: Final = Path(__file__).resolve().parents[2]
PAGE: Final = ROOT / "docs" / "errors.md"
BEGIN: Final = "<!-- generated from the docstrings -->\n"
INTERNAL: Final = {"Process.of_identity", "Transition.load"}
"""Methods that other packages of the registry call: an embedder has no such arguments."""


def raised(docstring: str) -> Iterator[tuple[str, str]]:
    """Yield each error of the section "Raises" of *docstring*, and when it is raised."""
    section = re.search(r"^Raises:\n((?:    .*\n?|\n)*)", docstring, re.MULTILINE)
    entries = re.findall(
        r"^    (\w+Error(?:, \w+Error)*): (.*(?:\n {6,}.*)*)",
        section[1] if section else "",
        re.MULTILINE,
    )
    for names, text in entries:
        for name in names.split(", "):
            yield name, re.sub(r"\s+", " ", text).rstrip(".")


def calls() -> Iterator[tuple[str, str]]:
    """Yield the name of each public call, and its docstring."""
    for name in sorted(registry.__all__):
        value = getattr(registry, name)
        if inspect.isfunction(value):
            yield name, inspect.getdoc(value) or ""
        elif inspect.isclass(value) and not issubclass(value, BaseException):
            documented = _StoredStatus if value is StatusStorage else value
            for member, function in vars(documented).items():
                called = name if member == "__init__" else f"{name}.{member}"
                if called == name or not (member.startswith("_") or called in INTERNAL):
                    yield called, inspect.getdoc(function) or ""


def classes() -> list[type[RegistryError]]:
    """Return the errors in the order of their module, which is that of their hierarchy."""
    return [
        value
        for value in vars(errors).values()
        if inspect.isclass(value) and issubclass(value, RegistryError)
    ]


def attributes(error: type[RegistryError]) -> Iterator[tuple[str, str, str]]:
    """Yield the name, the type and the meaning of each attribute that *error* itself declares."""
    source = inspect.getsource(error)
    meanings = re.findall(r'^    (\w+): (.*?) = .*\n    """((?:.|\n)*?)"""', source, re.MULTILINE)
    for name, kind, meaning in meanings:
        yield name, kind.replace("|", "\\|"), re.sub(r"\s+", " ", meaning)


def section(error: type[RegistryError], causes: list[tuple[str, str]]) -> str:
    """Return the section of *error*; *causes* are calls and their reasons to raise it."""
    (base,) = error.__bases__
    text, _, todo = (inspect.getdoc(error) or "").partition("\n\nTo do: ")
    parent = (
        "" if base is Exception else f"Subclass of [{base.__name__}](#{base.__name__.lower()}). "
    )
    lines = [f"## {error.__name__}", "", f"{parent}{' '.join(text.split())}", ""]
    linked = re.sub(r"docs/(\w+\.md)", r"[\1](\1)", " ".join(todo.split()))
    lines += [f"**What to do:** {linked}", ""]
    own = [*attributes(error)]
    if own:
        lines += ["| attribute | type | meaning |", "| --- | --- | --- |"]
        lines += [f"| `{name}` | `{kind}` | {meaning} |" for name, kind, meaning in own] + [""]
    if causes:
        lines += ["| raised by | if |", "| --- | --- |"]
        lines += [f"| `{call}` | {reason} |" for call, reason in causes] + [""]
    return "\n".join(lines)


def page() -> str:
    """Return the whole page: the text above the mark by hand, the sections below it generated."""
    causes: defaultdict[str, list[tuple[str, str]]] = defaultdict(list)
    for call, docstring in calls():
        for error, reason in raised(docstring):
            causes[error].append((call, reason))
    above = PAGE.read_text(encoding="utf-8").partition(BEGIN)[0]
    sections = [section(each, causes[each.__name__]) for each in classes()]
    return "\n".join([above + BEGIN, *sections])


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
