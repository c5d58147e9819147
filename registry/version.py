"""The version of the distribution: read by hatchling for its metadata, and by the programs."""

from __future__ import annotations

from typing import Final

__version__: Final = "0.1.0"
