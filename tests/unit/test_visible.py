"""Text for people shows what it holds: one line, and an escape for each character not seen."""

from __future__ import annotations

import io
import logging
import sys

import pytest

from registry import InvalidArgumentError, RegistryError, Store, Verdict, Violation
from registry.recovery.findings import Finding
from registry.shim.command import OneLine
from registry.visible import visible
from tests.tools import READY, sandbox

UNSEEN = [
    *("\0", "\a", "\b", "\n", "\r", "\x1b", "\x7f", "\x85", "\x9b", "\u2028", "\u2029"),
    *("\u061c", "\u200e", "\u200f", *map(chr, range(0x202A, 0x202F))),
    *map(chr, range(0x2066, 0x206A)),
    *("\xad", "\u034f", "\u115f", "\u1160", "\u17b4", "\u17b5", "\u180b", "\u180e", "\u180f"),
    *("\u200b", "\u200c", "\u200d", "\u2060", "\u2800", "\u3164", "\ufe00", "\ufe0f", "\ufeff"),
    *("\uffa0", "\ufff9", "\U0001d173", "\U000e0001", "\U000e0041", "\U000e007f", "\U000e0100"),
    *("\xa0", "\u3000", "\ud800", "\udcff", "\ue000"),
]
"""Control characters, what turns the direction of writing, characters without a width or a form,
blanks other than the space, and characters that belong to no text."""


@pytest.mark.parametrize("char", UNSEEN, ids=ascii)
def test_a_character_that_is_not_seen_is_escaped(char: str) -> None:
    """In ids that look alike, and in the middle of text that is seen."""
    escaped = char.encode("unicode_escape").decode()
    assert f"web{escaped}-1" == visible(f"web{char}-1")
    assert f"wéb{escaped}中" == visible(f"wéb{char}中")
    assert escaped == visible(char)


@pytest.mark.parametrize(
    "text", ["", "web-1 \\ '\"", "ünïcödé", "中文", "한국", "שלום", "e\u0301", "❤"]
)
def test_text_that_is_seen_stays(text: str) -> None:
    """Letters of every script, and accents."""
    assert text == visible(text)


HOSTILE = "a\u3164\u202e\n\x1b[31m\r\nERROR root: forged"
SHOWN = r"a\u3164\u202e\n\x1b[31m\r\nERROR root: forged"


def test_errors_findings_and_violations_are_one_visible_line() -> None:
    """Also where `repr` would leave a filler as it is, or the value is quoted as it stands."""
    assert f"get sandbox '{SHOWN}': no" == str(RegistryError(f"get sandbox {HOSTILE!r}: no"))
    error = InvalidArgumentError(HOSTILE, field="id", value=HOSTILE)
    assert (SHOWN, HOSTILE) == (str(error), error.value)
    assert SHOWN in str(Violation("rule", HOSTILE, HOSTILE, HOSTILE))
    assert visible(text := str(Violation("rule", HOSTILE, HOSTILE, HOSTILE))) == text
    finding = Finding(HOSTILE, Verdict.OPEN, "", HOSTILE, changed=False)
    assert f"sandbox '{SHOWN}': OPEN: {SHOWN}" == str(finding)


def test_the_representation_of_a_sandbox_is_visible(store: Store) -> None:
    """A name may hold what turns the direction of writing, or a filler."""
    added = store.add(sandbox("a\u3164", name="\u202eb\u2800"), READY)
    assert r"Sandbox('a\u3164', name='\u202eb\u2800')" == repr(added)
    assert "Extensions(sandbox='a\\u3164')" == repr(added.extensions)


def test_warnings_of_the_package_are_visible_to_every_handler(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The program has chosen the handler; a record that is visible already keeps its arguments."""
    logging.getLogger("registry").warning("%s: %r", HOSTILE, HOSTILE)
    logging.getLogger("registry").warning("%s", "web")
    hostile, plain = caplog.records
    assert f"{SHOWN}: '{SHOWN}'" == hostile.getMessage()
    assert ("%s", ("web",)) == (plain.msg, plain.args)


def test_a_record_of_the_shim_is_one_line_and_its_traceback_is_indented() -> None:
    """Of any logger, such as that of gRPC, which quotes what a client has sent."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(OneLine("%(name)s: %(message)s"))
    try:
        exec("raise ValueError(text)", {"text": HOSTILE})
    except ValueError:
        record = logging.LogRecord(
            "grpc._server", logging.ERROR, "", 0, "failed: %s", (HOSTILE,), sys.exc_info()
        )
    handler.emit(record)
    first, *rest = stream.getvalue().splitlines()
    assert f"grpc._server: failed: {SHOWN}" == first
    assert rest
    assert all(line[0] == "\t" and line[1:].isprintable() for line in rest)
