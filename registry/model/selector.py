"""Label selectors of Kubernetes, parsed into requirements.

    selector     = [ requirement { "," requirement } ]
    requirement  = [ "!" ] KEY                              the label exists, or does not
                 | KEY ( "=" | "==" | "!=" ) [ VALUE ]      no VALUE: the empty one
                 | KEY ( "in" | "notin" ) "(" [ VALUE ] { "," [ VALUE ] } ")"
                 | KEY ( ">" | "<" ) VALUE                  VALUE is an integer of 64 bits

1. A sandbox matches if it meets all requirements. The empty selector matches every sandbox.
2. `!=` and `notin` are met by a sandbox without the label; `>` and `<` only by one whose value is
   an integer.
3. Blank, tab, carriage return and line feed may stand between two tokens. `in` and `notin` are
   ordinary words where a key or a value is expected.
4. A key is an optional DNS name and `/`, then a name of at most 63 characters; a value is "" or
   such a name. A selector with any other word would match nothing, so it is refused.

Source: Kubernetes apimachinery pkg/labels/selector.go, Parse and Requirement.Matches.
"""

from __future__ import annotations

import re
from enum import StrEnum
from typing import Final, NamedTuple

from registry.errors import InvalidArgumentError
from registry.model.validation import SHOWN, check_text, invalid

REQUIREMENTS_MAX: Final = 256
"""Requirements of one list; SQLite refuses an expression that is 1,000 deep."""
VALUES_MAX: Final = 4096
"""Values in all requirements of one list; SQLite binds at most 32,766 parameters."""
TEXT_MAX: Final = 1024 * 1024
"""Characters of a selector."""

_NAME: Final = r"[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?"
_DNS_PART: Final = r"[a-z0-9]([a-z0-9-]*[a-z0-9])?"
KEY: Final = rf"((?=[^/]{{1,253}}/){_DNS_PART}(\.{_DNS_PART})*/)?{_NAME}"
"""A label key of Kubernetes."""
_VALUE: Final = rf"({_NAME})?"
_WORD_OR_SYMBOL: Final = r"[ \t\r\n]*([!=]=|[=!(),<>]|[^ \t\r\n=!(),<>]+|\Z)"
_SYMBOLS: Final = frozenset("=!(),<>")


class Operator(StrEnum):
    """Relation of a label to the values of a requirement; the names are those of Kubernetes.

    The order is from those that few sandboxes are likely to meet to those that most do.
    """

    IN = "in"
    GREATER = "gt"
    LESS = "lt"
    EXISTS = "exists"
    NOT_IN = "notin"
    ABSENT = "!"


_OPERATORS: Final = {
    "in": Operator.IN,
    "notin": Operator.NOT_IN,
    "=": Operator.IN,
    "==": Operator.IN,
    "!=": Operator.NOT_IN,
    ">": Operator.GREATER,
    "<": Operator.LESS,
}


class Requirement(NamedTuple):
    """Condition on one label of a sandbox.

    Attributes:
        key: key of the label.
        operator: relation of the label to *values*.
        values: distinct and in order; one for GREATER and LESS, none for EXISTS and ABSENT.
    """

    key: str
    operator: Operator
    values: tuple[str, ...] = ()


def parse(selector: object, doing: str) -> tuple[Requirement, ...]:
    """Return the distinct requirements of *selector*, in the order of the text.

    Args:
        selector: text of a caller.
        doing: operation and object, which begin the message of an error.
    Raises:
        InvalidArgumentError: it is no selector; `.position` is the character that is refused.
    """
    text = check_text(doing, "selector", selector, TEXT_MAX)
    return tuple(dict.fromkeys(_Parser(text, doing).requirements()))


def check_size(requirements: tuple[Requirement, ...], doing: str) -> tuple[Requirement, ...]:
    """Return *requirements* if SQLite can evaluate them in one query.

    Raises:
        InvalidArgumentError: they are over `REQUIREMENTS_MAX`, or have over `VALUES_MAX` values.
    """
    count, values = len(requirements), sum(len(each.values) for each in requirements)
    for found, limit, unit in (
        (count, REQUIREMENTS_MAX, "requirements"),
        (values, VALUES_MAX, "values"),
    ):
        if found > limit:
            raise InvalidArgumentError(
                f"{doing}: labels and selector have {found} {unit}, over the limit of {limit}; "
                "list with fewer, and filter the result",
                field="selector",
                value=found,
            )
    return requirements


class _Token(NamedTuple):
    """A symbol or a word; the last token of a selector is ""."""

    text: str
    position: int
    """Number of its first character, from 1 on."""

    @property
    def is_word(self) -> bool:
        return self.text != "" and self.text[0] not in _SYMBOLS

    def __str__(self) -> str:
        shown = self.text if len(self.text) <= SHOWN else f"{self.text[:SHOWN]}..."
        return repr(shown) if shown else "the end"


class _Parser:
    """Parser of one selector, by recursive descent."""

    def __init__(self, text: str, doing: str) -> None:
        self._text, self._doing = text, doing
        found = re.finditer(_WORD_OR_SYMBOL, text)
        self._tokens = iter([_Token(each[1], each.start(1) + 1) for each in found])
        self._next = next(self._tokens)

    def requirements(self) -> list[Requirement]:
        """Return all requirements."""
        if self._next.text == "":
            return []
        found = [self._requirement()]
        while self._next.text != "":
            self._take(",", "',' or the end")
            found.append(self._requirement())
        return found

    def _requirement(self) -> Requirement:
        negated = self._accept("!")
        key = self._word(KEY, "a label key")
        if negated:
            return Requirement(key, Operator.ABSENT)
        if self._next.text in {"", ","}:
            return Requirement(key, Operator.EXISTS)
        sign = self._next
        operator = _OPERATORS.get(sign.text)
        if operator is None:
            raise self._refused(sign, f"{sign} is not one of {', '.join(_OPERATORS)}")
        self._advance()
        if sign.is_word:
            return Requirement(key, operator, self._values())
        return Requirement(key, operator, (self._value(operator),))

    def _value(self, operator: Operator) -> str:
        """Return the value behind a symbol."""
        if operator in {Operator.IN, Operator.NOT_IN}:
            return "" if self._next.text in {"", ","} else self._word(_VALUE, "a label value")
        token = self._next
        value = self._word(_VALUE, "a label value")
        if not value.isdecimal() or int(value) >= 2**63:
            raise self._refused(token, f"{token} is not an integer of 64 bits")
        return value

    def _values(self) -> tuple[str, ...]:
        """Return the values in parentheses."""
        self._take("(", "'('")
        values = {self._value_or_empty()}
        while self._accept(","):
            values.add(self._value_or_empty())
        self._take(")", "',' or ')'")
        return tuple(sorted(values))

    def _value_or_empty(self) -> str:
        return self._word(_VALUE, "a label value") if self._next.is_word else ""

    # Tokens.

    def _advance(self) -> None:
        self._next = next(self._tokens, self._next)

    def _accept(self, symbol: str) -> bool:
        """Return whether *symbol* is next, and skip it then."""
        found = self._next.text == symbol
        if found:
            self._advance()
        return found

    def _take(self, symbol: str, expected: str) -> None:
        if not self._accept(symbol):
            raise self._refused(self._next, f"{self._next} is not {expected}")

    def _word(self, pattern: str, expected: str) -> str:
        token = self._next
        if not token.is_word or not re.fullmatch(pattern, token.text):
            raise self._refused(token, f"{token} is not {expected}")
        self._advance()
        return token.text

    def _refused(self, token: _Token, why: str) -> InvalidArgumentError:
        position = token.position
        why = f"cannot be read at character {position}: {why}"
        return invalid(self._doing, "selector", self._text, why, position)
