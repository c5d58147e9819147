"""Evidence for and against a reboot of the host; pure.

A boot id that differs from ours does not prove a reboot: containers (LXC, nspawn) show their own,
and a mount may hide the host's. It is weighed against the other observations.

1. The recorded process, identified by its start time, still runs: the host was not rebooted.
2. A recorded process started later after its boot than this boot is old: the host was rebooted.
3. Something exists that may be the recorded object: a process that cannot be compared, or a
   namespace with the recorded kernel id. Pids and kernel ids start again on each boot, so this may
   be chance. It counts unless 2 applies: an object that cannot be observed is not presumed gone.

Evidence for one sandbox holds for all that were recorded under the same boot id.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from enum import Enum
from typing import Final, NamedTuple


class Weight(Enum):
    """Conclusion from an observation about the boot under whose id something was recorded."""

    SAME = "it is this boot"
    MAYBE = "it may be this boot"
    OVER = "it is over"


class Evidence(NamedTuple):
    """Observation of an object that was recorded under *boot_id*."""

    boot_id: str
    weight: Weight
    text: str


class BootEvidence:
    """Evidence about the boots under whose ids sandboxes were recorded."""

    def __init__(self, evidence: Iterable[Evidence]) -> None:
        """Collect *evidence* of all sandboxes; one of each weight is kept for a boot id."""
        self._texts: Final[dict[tuple[str, Weight], str]] = {}
        for each in evidence:
            self._texts.setdefault((each.boot_id, each.weight), each.text)

    def against_reboot(self, boot_ids: Collection[str], own: Collection[Evidence]) -> str:
        """Return the evidence against a reboot since one sandbox was recorded; "" if there is none.

        Args:
            boot_ids: boot ids under which the sandbox was recorded, except ours.
            own: evidence of the sandbox itself.
        """
        same = self._text(boot_ids, own, Weight.SAME)
        if same or any((boot_id, Weight.OVER) in self._texts for boot_id in boot_ids):
            return same
        return self._text(boot_ids, own, Weight.MAYBE)

    def _text(self, boot_ids: Collection[str], own: Collection[Evidence], weight: Weight) -> str:
        texts = [each.text for each in own if each.weight is weight]
        texts = texts or [
            f"under the same boot id was recorded: {self._texts[boot_id, weight]}"
            for boot_id in boot_ids
            if (boot_id, weight) in self._texts
        ]
        return "; ".join(dict.fromkeys(texts))
