"""Errors of modules that are imported when they are first used."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from registry.errors import ResourceExhaustedError
from registry.sync.interrupts import reraise_interrupt

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def late_import(name: str) -> Iterator[None]:
    """Raise ResourceExhaustedError if the body cannot import module *name*.

    An import opens files, which fails in a process that has no file descriptor left.
    """
    try:
        yield
    except (OSError, ImportError) as error:
        reraise_interrupt(error)
        raise ResourceExhaustedError(
            f"import {name}: {error}; close descriptors, free memory, or raise the limit"
        ) from error
