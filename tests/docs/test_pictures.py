"""The pictures of terminals in the documents show what the commands print."""

from __future__ import annotations

import html
import re

import pytest

pytest.importorskip("rich", reason="the extra docs is not installed")

from docs.tools import pictures


def words(picture: str) -> list[str]:
    """Return the words of an SVG; digits, which times and ages have, are all 0."""
    text = html.unescape(re.sub(r"<style>.*?</style>|<[^>]*>", " ", picture, flags=re.DOTALL))
    return re.sub(r"\d+", "0", text).split()


@pytest.mark.parametrize("name", pictures.PICTURES)
def test_a_picture_shows_what_the_commands_print(name: str) -> None:
    """Otherwise run `python -m docs.tools.pictures`."""
    stored = pictures.ROOT.joinpath("docs", "pictures", name).read_text(encoding="utf-8")
    assert words(stored) == words(pictures.draw(*pictures.PICTURES[name]))
