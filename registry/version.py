"""The version of the distribution: read by hatchling for its metadata, and by the programs."""

from __future__ import annotations

# hatchling finds no version behind `: Final`.
__version__ = "0.1.0"
