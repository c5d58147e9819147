"""docs/errors.md is generated from the docstrings of the errors and of the calls."""

from __future__ import annotations

import inspect

import pytest

import registry
from docs.tools import errors

CLASSES = errors.classes()


def test_errors_page_is_up_to_date() -> None:
    """`python -m docs.tools.errors` writes it."""
    assert errors.page() == errors.PAGE.read_text(encoding="utf-8")


def test_errors_page_has_every_exported_error() -> None:
    """By the name of its class."""
    exported = {name for name in registry.__all__ if name.endswith("Error")}
    assert exported == {each.__name__ for each in CLASSES}


@pytest.mark.parametrize("error", CLASSES, ids=lambda error: error.__name__)
def test_an_error_says_what_to_do(error: type[registry.RegistryError]) -> None:
    """In the last paragraph of its docstring; each attribute that it declares has a meaning."""
    assert "\n\nTo do: " in (inspect.getdoc(error) or "")
    declared = vars(error).get("__annotations__", {})
    assert [*declared] == [name for name, *_ in errors.attributes(error)]


def test_every_error_of_a_docstring_exists() -> None:
    """Each is a class of the package, except that `State.parse` converts text as `int` does."""
    named = {name for _, text in errors.calls() for name, _ in errors.raised(text)}
    assert {"ValueError"} == named - {each.__name__ for each in CLASSES}
