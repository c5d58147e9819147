"""Plain language: words that the project does not use, and how a docstring begins.

The words are replaced by the terms of the field: an exception of a signal handler interrupts, the
FIFO lock between processes is the process lock, a reconcile reaches a verdict, and a sentence names
its subject.
"""

from __future__ import annotations

import ast
import os
import re
from collections.abc import Iterator

import pytest

from tests.tools import ROOT

WORDS = (
    "struck",
    "turnstile",
    "tripwire",
    "vantage",
    "blame",
    "whoever",
    "whomever",
    "nobody",
    "somebody",
    "anew",
    "to be had",
    "in the stead of",
    "judge",
    "judges",
    "judgement",
    "be told",
    "told apart",
)
"""Words and phrases, in any case, also as parts of names."""

QUESTIONS = "What Who Whom Whose Whoever Whether Which Where When Why How Those"
FUNCTION = (
    f"{QUESTIONS} Whatever Whichever That These This Such A An The It Its He His They Their There"
    " All Any Each Every Both Neither No None Nothing Not Nor One Another Once"
    " As At By For From In Of On With Without"
)
"""First words of a function's docstring that begin neither "Return ..." nor "Acquire ..."."""
PROPERTY = f"{QUESTIONS} Whatever Whichever That These This Such It Its He His They Their There"
"""Of a property, which may be named by a noun as a class is."""
CLASS = f"{PROPERTY} Something"
"""Of a class or module, which a noun phrase describes."""
TEST = "What Who Whom Whose Whoever Those"
"""Of a test, which says what its name cannot, but names a subject."""
NAME = re.compile(r"test_(what|who|whom|whose|those|it|they)_")
"""Names of tests that name no subject."""

WRITTEN = (".py", ".md", ".proto", ".ini", ".toml", ".mako")
FOLDERS = (".ci", "benchmarks", "docs", "examples", "migrations", "registry", "tests")
NOT_OURS = ("tests/data", "tests/unit/test_language.py", "benchmarks/results")


def texts() -> Iterator[tuple[str, str]]:
    """Yield the path and the text of every file that the project's authors write."""
    paths = [name for name in os.listdir(ROOT) if os.path.isfile(f"{ROOT}/{name}")]
    paths = [name for name in paths if name.endswith(WRITTEN) or name == "Makefile"]
    for top in FOLDERS:
        for folder, _, names in os.walk(f"{ROOT}/{top}"):
            inside = os.path.relpath(folder, ROOT)
            paths += [f"{inside}/{name}" for name in names if name.endswith(WRITTEN)]
    for path in sorted([*paths, ".ci/run"]):
        if not path.startswith(NOT_OURS) and not path.endswith("_pb2.py"):
            with open(f"{ROOT}/{path}", encoding="utf-8") as file:
                yield path, file.read()


def words(text: str) -> Iterator[tuple[int, str]]:
    """Yield the line and the word of each use of WORDS; a phrase may go on in the next line."""
    # `_` parts the words of a name.
    between = r"[\s#>]+"
    phrases = "|".join(between.join(phrase.split()) for phrase in WORDS)
    for found in re.finditer(rf"(?<![a-z])(?:{phrases})(?![a-z])", text, re.IGNORECASE):
        yield text.count("\n", 0, found.start()) + 1, f"`{' '.join(found.group().split())}`"


def headless(source: str) -> Iterator[tuple[int, str]]:
    """Yield the line and the text of each docstring or name of a test that has no head."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            continue
        docstring = ast.get_docstring(node) or ""
        first = re.match(r"\w*", docstring)
        if first is not None and first.group() in refused(node).split():
            yield node.body[0].lineno, f'"{docstring.splitlines()[0]}"'
        if not isinstance(node, ast.Module) and NAME.match(node.name):
            yield node.lineno, node.name


def refused(node: ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) -> str:
    """Return the words with which the docstring of *node* must not begin."""
    if isinstance(node, (ast.Module, ast.ClassDef)):
        return CLASS
    if node.name.startswith("test_"):
        return TEST
    decorators = {ast.unparse(each).rpartition(".")[2] for each in node.decorator_list}
    return PROPERTY if decorators & {"property", "cached_property"} else FUNCTION


def faults(path: str, text: str) -> list[str]:
    """Return each fault of language in a file, with its place."""
    found = [*words(text)]
    if path.endswith(".py"):
        found += headless(text)
    return [f"{path}:{line}: {what}" for line, what in sorted(found)]


def test_every_text_uses_the_terms_of_the_field_and_whole_sentences() -> None:
    """Sources, tests, documents, the Makefile and the output of the commands, which are in them."""
    found = [fault for path, text in texts() for fault in faults(path, text)]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    "text",
    [
        "def raise_if_struck(): pass",
        "class Turnstile: pass",
        "NOBODY = 65534",
        "# there is none to be\n    # had",
        '"""in the\nstead of"""',
    ],
)
def test_a_word_is_found_in_names_and_across_lines(text: str) -> None:
    """In any case, and with the mark of a comment between its parts."""
    assert 1 == len(faults("a.py", text))


@pytest.mark.parametrize("text", ["renewed", "a newer one", "blameless", "constructed", "stead"])
def test_a_part_of_another_word_is_no_use_of_a_word(text: str) -> None:
    """Words end where letters end."""
    assert [] == faults("a.md", text)


@pytest.mark.parametrize(
    ("source", "is_headless"),
    [
        ('"""What writes."""', True),
        ('"""Writers of one file."""', False),
        ('class A:\n    """Who writes."""', True),
        ('class A:\n    """A writer."""', False),
        ('def a():\n    """The id."""', True),
        ('def a():\n    """Return the id."""', False),
        ('async def a():\n    """Whether it is."""', True),
        ('@property\ndef a():\n    """The id."""', False),
        ('@property\ndef a():\n    """Whether it is."""', True),
        ('def test_a():\n    """The id is there."""', False),
        ('def test_a():\n    """Who asks is answered."""', True),
        ("def a(): pass", False),
        ("def test_what_a_is(): pass", True),
        ("def test_whatever_a_is(): pass", False),
    ],
)
def test_a_docstring_or_name_without_a_head_is_found(source: str, is_headless: bool) -> None:
    """It begins with a verb (function), a noun (class, module, property) or a subject (test)."""
    assert is_headless == bool([*headless(source)])
