"""Documents in a file of JSON: where each begins and ends, and what is invalid."""

from __future__ import annotations

import json
import tracemalloc
from io import BytesIO

import pytest

from registry.cli.containerd import documents
from registry.model.containerd import DOCUMENT_MAX
from tests.cli.program import KNOWN, SAMPLES
from tests.tools import (
    pod,
    sandbox,
)


def split(*lines: bytes) -> list[tuple[int, str]]:
    """Return the line of each document of a file of *lines*, and its id, "" where it has none."""
    found = documents.documents("f", BytesIO(b"\n".join(lines)))
    return [
        (int(each.source.removeprefix("f:")), "" if each.metadata is None else each.metadata.id)
        for each in found
    ]


A, B = sandbox("a").marshal_json(), sandbox("b").marshal_json()
CUT = A[: len(A) // 2]
BARE = A.replace(b'{"Version":', b'{ "Version":')
SHOWN = json.dumps(json.loads(A), indent=1).encode()
FLAT = json.dumps(json.loads(A), indent=0).encode()
SPLIT = A.replace(b'"Metadata":', b'"Metadata":\n').replace(b"}}", b"}\n}")


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ([b""], []),
        ([b"", b" \r", b""], []),
        ([A], [(1, "a")]),
        ([A, b"", b"", B + b"\r", b""], [(1, "a"), (4, "b")]),
        ([b"", SHOWN, B], [(2, "a"), (SHOWN.count(b"\n") + 3, "b")]),
        ([FLAT, B], [(1, "a"), (FLAT.count(b"\n") + 2, "b")]),
        ([SPLIT, B], [(1, "a"), (SPLIT.count(b"\n") + 2, "b")]),
        ([A.replace(b'"name-a"', b'"}{[\\""'), B], [(1, "a"), (2, "b")]),
        ([b"no", A, b"}", B], [(1, ""), (2, "a"), (3, ""), (4, "b")]),
        ([A + B, B], [(1, ""), (2, "b")]),
        ([CUT, A, CUT, B], [(1, ""), (2, "a"), (3, ""), (4, "b")]),
        ([CUT, BARE, CUT, SHOWN], [(1, ""), (2, "a"), (3, ""), (4, "a")]),
        ([b"[", CUT.lstrip(b"{"), b"", SHOWN, b"x"], [(1, ""), (4, "a"), (24, "")]),
        ([SHOWN[:-9], SHOWN, FLAT[:-9], FLAT], [(1, ""), (19, "a"), (39, ""), (57, "a")]),
    ],
    ids=range(14),
)
def test_file_is_split_into_documents(lines: list[bytes], expected: list[tuple[int, str]]) -> None:
    """A document takes one line or several; an invalid one does not hide those after it."""
    assert expected == split(*lines)


def test_documents_of_many_lines_are_found_whole() -> None:
    """Every sample, written for people, one after the other."""
    texts = [json.dumps(json.loads(file.read_bytes()), indent=1).encode() for file in SAMPLES]
    assert [KNOWN[file.stem]["id"] for file in SAMPLES] == [id for _, id in split(*texts)]


@pytest.mark.parametrize("first", [b'{"x":"', b'{"x":[' + b"{" * DOCUMENT_MAX], ids=["cut", "deep"])
def test_document_cut_off_before_more_text_than_the_limit_hides_nothing(first: bytes) -> None:
    """Every document after it is found."""
    big = sandbox("big", config=pod(x="x" * 2**20)).marshal_json()
    many = [big.replace(b'"big"', b'"%d"' % n).replace(b'{"V', b'{ "V') for n in range(40)]
    assert ["", *map(str, range(40))] == [id for _, id in split(first, *many)]


def test_invalid_documents_are_read_at_most_twice() -> None:
    """None of the documents, of many lines each, ends; a third reading would take hours."""
    read = 0

    class Counted(BytesIO):
        def readline(self, size: int | None = -1, /) -> bytes:
            nonlocal read
            line = super().readline(size)
            read += len(line)
            return line

    text = b"\n".join([SHOWN[:-1]] * 900)
    found = list(documents.documents("f", Counted(text)))
    assert [""] * 900 == ["" if each.metadata is None else each.metadata.id for each in found]
    assert len(text) == read


def test_brackets_are_counted_in_little_memory() -> None:
    """Of a document of the greatest size that is all brackets and texts."""
    text = b'{"x":[' + b'"",' * (DOCUMENT_MAX // 3)
    tracemalloc.start()
    try:
        assert 2 == documents._opened(text[: 2**22])
        assert 2**20 > tracemalloc.get_traced_memory()[1] - 2**22
    finally:
        tracemalloc.stop()
