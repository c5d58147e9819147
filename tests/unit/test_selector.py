"""The parser of label selectors takes and refuses what Kubernetes takes and refuses."""

from __future__ import annotations

import pytest

from registry.errors import InvalidArgumentError
from registry.model.selector import (
    REQUIREMENTS_MAX,
    VALUES_MAX,
    Operator,
    Requirement,
    check_size,
    parse,
)

IN, NOT_IN, EXISTS, ABSENT = Operator.IN, Operator.NOT_IN, Operator.EXISTS, Operator.ABSENT
LONG = "a" * 63
DNS = f"{'d' * 63}." * 3 + "d" * 61
"""A DNS name of 253 characters."""


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        (" \t\r\n", []),
        ("a", [("a", EXISTS, ())]),
        ("!a", [("a", ABSENT, ())]),
        (" ! a ", [("a", ABSENT, ())]),
        ("a=b", [("a", IN, ("b",))]),
        ("a==b", [("a", IN, ("b",))]),
        ("a!=b", [("a", NOT_IN, ("b",))]),
        ("a =\tb\n", [("a", IN, ("b",))]),
        ("a=", [("a", IN, ("",))]),
        ("a!=,b", [("a", NOT_IN, ("",)), ("b", EXISTS, ())]),
        ("a in (b)", [("a", IN, ("b",))]),
        ("a in(b,c)", [("a", IN, ("b", "c"))]),
        ("a notin ( c , b , c )", [("a", NOT_IN, ("b", "c"))]),
        (
            "x in (foo,,baz),y,z notin ()",
            [
                ("x", IN, ("", "baz", "foo")),
                ("y", EXISTS, ()),
                ("z", NOT_IN, ("",)),
            ],
        ),
        ("a in (,)", [("a", IN, ("",))]),
        ("a in (,b)", [("a", IN, ("", "b"))]),
        ("a in (b,)", [("a", IN, ("", "b"))]),
        ("a>5", [("a", Operator.GREATER, ("5",))]),
        ("a < 007", [("a", Operator.LESS, ("007",))]),
        (f"a>{2**63 - 1}", [("a", Operator.GREATER, (str(2**63 - 1),))]),
        ("in in (in,notin)", [("in", IN, ("in", "notin"))]),
        ("notin", [("notin", EXISTS, ())]),
        ("in=notin", [("in", IN, ("notin",))]),
        ("!in", [("in", ABSENT, ())]),
        ("IN", [("IN", EXISTS, ())]),
        ("b,a,b", [("b", EXISTS, ()), ("a", EXISTS, ())]),
        ("app.kubernetes.io/name=a_b-c.d", [("app.kubernetes.io/name", IN, ("a_b-c.d",))]),
        (f"{DNS}/{LONG}={LONG}", [(f"{DNS}/{LONG}", IN, (LONG,))]),
    ],
)
def test_parse_returns_the_distinct_requirements_in_order(
    text: str, expected: list[tuple[str, Operator, tuple[str, ...]]]
) -> None:
    """White space, empty values and keywords as keys included."""
    assert tuple(Requirement(*each) for each in expected) == parse(text, "list")


@pytest.mark.parametrize(
    ("text", "position", "why"),
    [
        ("a,", 3, "the end is not a label key"),
        (",a", 1, "',' is not a label key"),
        ("a,,b", 3, "',' is not a label key"),
        ("=a", 1, "'=' is not a label key"),
        ("!", 2, "the end is not a label key"),
        ("!!a", 2, "'!' is not a label key"),
        ("!a=b", 3, "'=' is not ',' or the end"),
        ("!a in (b)", 4, "'in' is not ',' or the end"),
        ("a b", 3, "'b' is not one of in, notin, =, ==, !=, >, <"),
        ("a!b", 2, "'!' is not one of"),
        ("a (b)", 3, "'(' is not one of"),
        ("a IN (b)", 3, "'IN' is not one of"),
        ("a===b", 4, "'=' is not a label value"),
        ("a=!b", 3, "'!' is not a label value"),
        ("a=(b)", 3, "'(' is not a label value"),
        ("a=b c", 5, "'c' is not ',' or the end"),
        ("a=b)", 4, "')' is not ',' or the end"),
        ("a in b", 6, "'b' is not '('"),
        ("a in", 5, "the end is not '('"),
        ("a in (b", 8, "the end is not ',' or ')'"),
        ("a in (b c)", 9, "'c' is not ',' or ')'"),
        ("a in (b,=)", 9, "'=' is not ',' or ')'"),
        ("a in (b))", 9, "')' is not ',' or the end"),
        ("a>", 3, "the end is not a label value"),
        ("a>b", 3, "'b' is not an integer of 64 bits"),
        ("a>-1", 3, "'-1' is not a label value"),
        ("a<1.5", 3, "'1.5' is not an integer"),
        (f"a<{2**63}", 3, "is not an integer of 64 bits"),
        ("x,a%=b", 3, "'a%' is not a label key"),
        ("a=b'c", 3, "is not a label value"),
        ("a=-b", 3, "'-b' is not a label value"),
        ("a=b.", 3, "'b.' is not a label value"),
        (f"a={LONG}a", 3, "is not a label value"),
        (f"{LONG}a", 1, "is not a label key"),
        (f"{DNS}d/a", 1, "is not a label key"),
        ("/a", 1, "'/a' is not a label key"),
        ("a/", 1, "'a/' is not a label key"),
        ("a/b/c", 1, "'a/b/c' is not a label key"),
        ("A.b/c", 1, "'A.b/c' is not a label key"),
        ("a..b/c", 1, "is not a label key"),
        ("\u00e9", 1, "'\u00e9' is not a label key"),
        ("a\u00a0=b", 1, "is not a label key"),
        ("a\x0b=b", 1, "is not a label key"),
    ],
)
def test_parse_names_the_character_that_it_refuses(text: str, position: int, why: str) -> None:
    """Counted from 1 on, in the message and in the attribute."""
    with pytest.raises(InvalidArgumentError) as caught:
        parse(text, "list sandboxes")
    error = caught.value
    assert ("selector", text, position) == (error.field, error.value, error.position)
    assert str(error).startswith("list sandboxes: selector ")
    assert f" cannot be read at character {position}: " in str(error)
    assert why in str(error)


@pytest.mark.parametrize("value", [7, b"a", ["a"], "a\0", "\ud800"], ids=repr)
def test_parse_refuses_a_selector_that_is_no_text(value: object) -> None:
    """As a whole: no character is named."""
    with pytest.raises(InvalidArgumentError) as caught:
        parse(value, "list")
    assert ("selector", value, 0) == (caught.value.field, caught.value.value, caught.value.position)


def test_message_about_a_long_selector_is_short() -> None:
    """Neither the selector nor the word is repeated as a whole."""
    with pytest.raises(InvalidArgumentError) as caught:
        parse("a" * 100_000, "list")
    assert len(str(caught.value)) < 400


def test_requirements_and_values_are_bounded() -> None:
    """By limits that SQLite can evaluate; the message has both numbers."""
    most = tuple(Requirement(f"k{n}", EXISTS) for n in range(REQUIREMENTS_MAX))
    assert most == check_size(most, "list")
    values = tuple(str(n) for n in range(VALUES_MAX))
    assert check_size((Requirement("a", IN, values),), "list")
    for found, text in (
        ((*most, Requirement("a", EXISTS)), "have 257 requirements, over the limit of 256"),
        ((Requirement("a", IN, (*values, "x")),), "have 4097 values, over the limit of 4096"),
    ):
        with pytest.raises(InvalidArgumentError, match=text) as caught:
            check_size(found, "list")
        assert "selector" == caught.value.field
