"""docs/api.md shows every public name with its signature, and every error of each call."""

from __future__ import annotations

import ast
import dataclasses
import enum
import importlib
import importlib.util
import inspect
import json
import re
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple, get_overloads

import pytest

from docs.tools.errors import INTERNAL, raised
from registry import StatusStorage, Store
from registry.handles.sandbox import _StoredStatus
from registry.handles.watch import Watch
from tests.documents import text_of
from tests.tools import ROOT

TEXT: Final = text_of("docs/api.md")
MODULES: Final = [
    importlib.import_module(name)
    for name in ("registry", "registry.aio", "registry.metrics")
    if importlib.util.find_spec(name) is not None
]
CONSTRUCTED: Final = {"Exits"}
"""Classes that an embedder constructs, beside the dataclasses."""
RETURNED: Final = [Watch]
"""Classes of objects that calls return, which are not exported."""
WIDTH: Final = 100


class Entry(NamedTuple):
    """A public name, as the document has to show it."""

    shown: str
    """Signature, alias, value or type of the name."""
    errors: frozenset[str]
    """Errors that its docstring names."""


def annotation(value: object) -> str:
    """Return an annotation as it stands in the source."""
    text = value if isinstance(value, str) else getattr(value, "__name__", str(value))
    return text.replace("builtins.", "")


def literal(value: object) -> str:
    """Return a value as the formatter writes it: text in double quotes."""
    return json.dumps(value) if isinstance(value, str) else repr(value)


def parameter(each: inspect.Parameter) -> str:
    """Return a parameter as it stands in the source, with the value of its default."""
    text, default = f"{each.name}: {annotation(each.annotation)}", each.default
    if default is each.empty:
        return text
    if isinstance(default, enum.Enum):
        return f"{text} = {type(default).__name__}.{default.name}"
    return f"{text} = {literal(default)}"


def parameters(signature: inspect.Signature) -> Iterator[str]:
    """Yield the parameters of a signature without `self`, and the marks `*` and `/` among them."""
    before: Any = None
    for each in signature.parameters.values():
        if before == inspect.Parameter.POSITIONAL_ONLY != each.kind:
            yield "/"
        several = each.kind == inspect.Parameter.VAR_POSITIONAL
        if each.kind == inspect.Parameter.KEYWORD_ONLY and before not in {each.kind, "several"}:
            yield "*"
        before = "several" if several else each.kind
        if each.name not in {"self", "cls"}:
            yield f"{'*' if several else ''}{parameter(each)}"
    if before == inspect.Parameter.POSITIONAL_ONLY:
        yield "/"


def called(name: str, function: Callable[..., Any]) -> str:
    """Return the signature of a function or class, on one line if it is short enough."""
    signature = inspect.signature(function)
    within = [*parameters(signature)]
    returned = "" if inspect.isclass(function) else f" -> {annotation(signature.return_annotation)}"
    start = f"async {name}" if inspect.iscoroutinefunction(function) else name
    line = f"{start}({', '.join(within)}){returned}"
    if len(line) <= WIDTH:
        return line
    return "\n".join([f"{start}(", *(f"    {each}," for each in within), f"){returned}"])


def errors_of(documented: object) -> frozenset[str]:
    """Return the errors that the section "Raises" of a docstring names."""
    return frozenset(name for name, _ in raised(inspect.getdoc(documented) or ""))


def members(name: str, cls: type) -> Iterator[Entry]:
    """Yield the public methods, properties, attributes and values of a class."""
    for member, value in vars(cls).items():
        full = f"{name}.{member}"
        if member.startswith("_") or full in INTERNAL:
            continue
        if isinstance(value, property):
            returned = annotation(inspect.signature(value.fget or len).return_annotation)
            yield Entry(f"{full}: {returned}", errors_of(value))
        elif isinstance(value, (classmethod, staticmethod)) or inspect.isfunction(value):
            unwrapped: Any = value
            function = getattr(unwrapped, "__func__", unwrapped)
            if hasattr(function, "__wrapped__"):
                continue  # a coroutine that is made from the method of the same name
            documented = vars(_StoredStatus)[member] if cls is StatusStorage else function
            for overloaded in get_overloads(function) or [function]:
                yield Entry(called(full, overloaded), errors_of(documented))
        elif isinstance(value, enum.Enum):
            yield Entry(f"{full} = {literal(value.value)}", frozenset())
    if not dataclasses.is_dataclass(cls):
        for attribute, type_ in vars(cls).get("__annotations__", {}).items():
            yield Entry(f"{name}.{attribute}: {annotation(type_)}", frozenset())
        yield from attributes(name, cls)


def attributes(name: str, cls: type) -> Iterator[Entry]:
    """Yield the public attributes that `__init__` annotates."""
    if "__init__" not in vars(cls) or issubclass(cls, BaseException):
        return
    source = textwrap.dedent(inspect.getsource(vars(cls)["__init__"]))
    given = inspect.signature(cls).parameters
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Attribute):
            attribute, type_ = node.target.attr, ast.unparse(node.annotation)
            if type_ == "Final" and isinstance(node.value, ast.Name):
                type_ = annotation(given[node.value.id].annotation)
            if not attribute.startswith("_"):
                yield Entry(f"{name}.{attribute}: {type_}", frozenset())


def alias(module: str, name: str) -> str:
    """Return the definition of a type alias, which *module* imports from where it is defined."""
    for node in ast.walk(ast.parse(inspect.getsource(importlib.import_module(module)))):
        if isinstance(node, ast.ImportFrom) and name in {each.name for each in node.names}:
            return alias(str(node.module), name)
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == name:
            return f"{name} = {ast.unparse(node.value)}"
    raise AssertionError(f"{module} does not define {name}")


def entries() -> Iterator[Entry]:
    """Yield every public name but the errors, which a table lists."""
    for module in MODULES:
        for name in module.__all__:
            value = getattr(module, name)
            if isinstance(value, str):
                yield Entry(f"{module.__name__}.{name}: str", frozenset())
            elif inspect.isfunction(value):
                yield Entry(called(name, value), errors_of(value))
            elif not inspect.isclass(value):
                yield Entry(alias(module.__name__, name), frozenset())
            elif not issubclass(value, BaseException):
                if dataclasses.is_dataclass(value) or name in CONSTRUCTED:
                    yield Entry(called(name, value), errors_of(vars(value)["__init__"]))
                yield from members(name, value)
    for returned in RETURNED:
        yield from members(returned.__name__, returned)


ENTRIES: Final = [*entries()]
SECTIONS: Final = re.findall(
    r"^```py\n(.*?)^```\n(.*?)(?=^```py\n|^##|\Z)", TEXT, re.DOTALL | re.MULTILINE
)
"""Each block of signatures, and the text below it."""


def shown(block: str) -> list[str]:
    """Return the entries of a block; a signature that goes on is indented."""
    return re.findall(r"^[^\s)].*(?:\n(?: .*|\).*))*", block, re.MULTILINE)


def test_api_shows_every_public_name_as_the_code_has_it() -> None:
    """With its signature, and no other."""
    expected = {entry.shown for entry in ENTRIES}
    found = {each for block, _ in SECTIONS for each in shown(block)}
    missing, wrong = sorted(expected - found), sorted(found - expected)
    assert not missing + wrong, "\n".join(["missing:", *missing, "not in the code:", *wrong])


@pytest.mark.parametrize(
    "block", [block for block, _ in SECTIONS], ids=lambda block: shown(block)[0]
)
def test_the_text_below_a_signature_names_its_errors(block: str) -> None:
    """Each that the docstring names."""
    text = dict(SECTIONS)[block]
    errors = {entry.shown: entry.errors for entry in ENTRIES}
    expected = frozenset[str]().union(*[errors.get(each, frozenset()) for each in shown(block)])
    assert not {name for name in expected if f"`{name}`" not in text}


def test_every_member_has_a_test_of_its_type() -> None:
    """In api_types.py, by its name; values of an enumeration have the type of their class."""
    source = Path(ROOT, "tests/docs/api_types.py").read_text(encoding="utf-8")
    shown = "\n".join(each.shown for each in ENTRIES)
    members = re.findall(r"^(?:async )?\w+\.(\w+)[(:]", shown, re.MULTILINE)
    assert not {member for member in members if not re.search(rf"\.{member}\b", source)}


def test_api_lists_every_option_of_open() -> None:
    """With its default, in order."""
    table = TEXT.split("| option |")[1].split("\n\n")[0]
    found = re.findall(r"^\| `(\w+)` \| `(.*?)` \|", table, re.MULTILINE)
    options = [*inspect.signature(Store.open).parameters.values()][1:]
    assert [(each.name, literal(each.default)) for each in options] == found
