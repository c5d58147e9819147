"""Data on one sandbox, from which its state is explained."""

from __future__ import annotations

from dataclasses import dataclass

from registry.host.process import Liveness
from registry.recovery.findings import Verdict
from registry.recovery.verdicts import Decision, Observation
from registry.tables.incarnation import SALVAGE
from registry.tables.rows import Transition, load_netns


@dataclass(frozen=True, slots=True)
class Facts:
    """Data on one sandbox.

    Attributes:
        id: full id.
        name: of the sandbox.
        namespace: Kubernetes namespace of the pod; "" if it is not known.
        pod: name of the pod; "" if it is not known.
        state: stored state; None: the sandbox was deleted. If its record cannot be read, the last
            state in the history.
        pid: recorded pid; 0 without one.
        netns_path: recorded path of the network namespace; "" without one.
        host_network: it is on the host network.
        reason: cause of the state, one word.
        message: cause of the state.
        exited_at: end of the sandbox, in ns since the Unix epoch; 0: not set.
        exit_status: None if it is not known.
        changed_at: time of the last write to the status, in ns since the Unix epoch; 0: not known.
        transition: the last one that is kept.
        writer: whether the process that wrote the transition still runs; "" if that is not known.
        shim: the last writer other than this program, and whether its process still runs; "" if
            that is not known.
        damaged: path of the registry if it is damaged; else "".
        unreadable: its record cannot be read; the history has the facts.
        observation: observation of now; None of a deleted sandbox, or without its record.
        decision: what a reconcile would decide now; None as for the observation.
    """

    id: str
    name: str = ""
    namespace: str = ""
    pod: str = ""
    state: str | None = None
    pid: int = 0
    netns_path: str = ""
    host_network: bool = False
    reason: str = ""
    message: str = ""
    exited_at: int = 0
    exit_status: int | None = None
    changed_at: int = 0
    transition: Transition | None = None
    writer: str = ""
    shim: str = ""
    damaged: str = ""
    unreadable: bool = False
    observation: Observation | None = None
    decision: Decision | None = None

    @property
    def since(self) -> int:
        """Time of the change to this state in ns since the Unix epoch; 0: not known."""
        if self.transition is None:
            return self.changed_at
        if self.is_salvaged and self.changed_at:
            return min(self.changed_at, self.transition.at)
        return self.transition.at

    @property
    def is_salvaged(self) -> bool:
        """True if a salvage wrote the transition, later than the change: the history was lost."""
        return self.transition is not None and self.transition.actor == SALVAGE

    @property
    def is_uncertain(self) -> bool:
        """True if the sandbox cannot be observed for certain."""
        return self.decision is not None and self.decision.verdict is Verdict.UNREACHABLE

    @property
    def netns_is_open(self) -> bool:
        """True if the network namespace at the path is the recorded one."""
        if self.decision is None or self.observation is None or self.observation.netns is None:
            return False
        recorded, found = load_netns(self.decision.row), self.observation.netns.identity
        return recorded is not None and found is not None and recorded.same_as(found)

    @property
    def process_runs(self) -> bool:
        """True if the recorded process is observed to run."""
        seen = None if self.observation is None else self.observation.process
        return seen is not None and seen.liveness is Liveness.RUNNING
