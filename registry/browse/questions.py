"""The thirty questions of an operator, each with its SQL on the views."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from importlib import resources
from typing import NamedTuple


class Question(NamedTuple):
    """A question: its name in addresses, its text, a remark, its SQL, and example parameters."""

    name: str
    title: str
    about: str
    sql: str
    example: Mapping[str, str | int]


def load() -> list[Question]:
    """Return the questions, in their order."""
    text = resources.files(__package__ or "").joinpath("questions.toml").read_text("utf-8")
    return [
        Question(
            each["name"],
            each["title"],
            each.get("about", ""),
            each["sql"].strip(),
            each.get("example", {}),
        )
        for each in tomllib.loads(text)["question"]
    ]
