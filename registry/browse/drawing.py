"""Timeline as SVG: one bar for each sandbox, with its states, and a scale of times.

The SVG is a part of the page: it refers to nothing outside. All its text is escaped.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from html import escape
from typing import Final

from datasette.utils import tilde_encode

from registry.browse.timeline import Line, Span
from registry.model.status import short_state
from registry.visible import visible

WIDTH: Final = 1100
LABEL: Final = 190
ROW: Final = 22
HEAD: Final = 26
LETTER: Final = 6.6
"""Width of a letter of the labels, about."""
MINUTE: Final = 60
HOUR: Final = 60 * MINUTE
DAY: Final = 24 * HOUR
STEPS: Final = (1, 5, 15, MINUTE, 300, 900, HOUR, 3 * HOUR, 6 * HOUR, DAY, 7 * DAY)
"""Seconds between two marks of the scale."""
MARKS: Final = 10
"""Marks of the scale at most."""


def address(id: str) -> str:
    """Return the address of the page of a sandbox."""
    return f"/-/sandbox/{tilde_encode(id)}"


def svg(lines: Sequence[Line], begin: float, end: float) -> str:
    """Return the drawing of *lines* between the Unix times *begin* and *end*."""
    height = HEAD + ROW * max(1, len(lines)) + 4
    scale = (WIDTH - LABEL) / max(end - begin, 1e-6)
    parts = [
        f'<svg class="timeline" role="img" viewBox="0 0 {WIDTH} {height}" width="100%">',
        "<title>States over time</title>",
        *_marks(begin, end, scale, height),
        *(part for n, line in enumerate(lines) for part in _bar(line, n, begin, end, scale)),
        "</svg>",
    ]
    return "\n".join(parts)


def _marks(begin: float, end: float, scale: float, height: int) -> Iterator[str]:
    """Yield the scale: a line and a time, in UTC, for each mark."""
    step = next((step for step in STEPS if (end - begin) / step <= MARKS), None)
    step = step or DAY * (int((end - begin) / DAY / MARKS) + 1)
    form = "%m-%d" if step >= DAY else "%H:%M" if step >= MINUTE else "%H:%M:%S"
    mark = (int(begin) // step + 1) * step
    while mark < end:
        x = LABEL + (mark - begin) * scale
        text = datetime.fromtimestamp(mark, UTC).strftime(form)
        yield f'<line class="mark" x1="{x:.1f}" y1="{HEAD - 6}" x2="{x:.1f}" y2="{height}"/>'
        yield f'<text class="time" x="{x:.1f}" y="{HEAD - 10}">{text}</text>'
        mark += step


def _bar(line: Line, row: int, begin: float, end: float, scale: float) -> Iterator[str]:
    """Yield the label of a sandbox, with a link to its page, and its states."""
    y = HEAD + row * ROW
    name = _cut(f"{line.namespace}/{line.pod}" if line.pod else line.id, LABEL - 10)
    yield f'<a href="{address(line.id)}"><text x="0" y="{y + 15}">{name}'
    yield f"<title>{_text(line.id)}</title></text></a>"
    for span in line.spans:
        left, right = max(span.begin, begin), min(span.end, end)
        x, width = LABEL + (left - begin) * scale, (right - left) * scale
        if width >= 0 and left <= end:
            yield from _box(span, x, y, max(width, 1.5))


def _box(span: Span, x: float, y: float, width: float) -> Iterator[str]:
    state = short_state(span.state)
    kind = {"READY": "ready", "NOTREADY": "notready"}.get(state, "unknown")
    times = " to ".join(
        datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        for at in (span.begin, span.end)
    )
    about = ", ".join(filter(None, (state, span.reason, times, span.actor)))
    yield f'<g><title>{_text(about)}</title><rect class="{kind}" x="{x:.1f}" y="{y + 3}"'
    yield f' width="{width:.1f}" height="{ROW - 6}"/>'
    text = span.reason or state
    if len(text) * LETTER < width - 6:
        yield f'<text class="in" x="{x + 4:.1f}" y="{y + 15}">{_text(text)}</text>'
    yield "</g>"


def _cut(text: str, width: float) -> str:
    """Return *text*, escaped, cut to *width*."""
    most = int(width / LETTER)
    shown = visible(text)
    return escape(shown if len(shown) <= most else f"{shown[: most - 1]}…")


def _text(text: str) -> str:
    """Return *text* with escapes for what is not seen, and for HTML."""
    return escape(visible(text))
