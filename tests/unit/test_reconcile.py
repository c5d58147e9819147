"""`decide` is pure: what rows and observations mean, as a table."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from types import ModuleType

import pytest

from registry import State, Verdict
from registry.host.context import HostContext
from registry.host.namespaces import NetNSObservation, Presence
from registry.host.process import Liveness, ProcessObservation
from registry.model.identity import NetNSIdentity
from registry.recovery import evidence, verdicts
from registry.recovery.evidence import Evidence, Weight
from registry.recovery.verdicts import Observation, decide, report
from registry.tables.rows import AnyRow, Row, StatusRow, load_status

HERE = HostContext(boot_id="boot-1", mount_ns=10, pid_ns=20, time_ns=30)
NETNS = NetNSIdentity("boot-1", number=7, inode=70, mount_ns=10)
OPEN = NetNSObservation("/n", Presence.OPEN, NETNS)
OTHER = NetNSObservation("/n", Presence.OPEN, NetNSIdentity("boot-1", 8, 70, 10))
BY_INODE = NetNSObservation("/n", Presence.OPEN, NetNSIdentity("boot-1", None, 70, 10))
ABSENT = NetNSObservation("/n", Presence.ABSENT)
PLAIN = NetNSObservation("/n", Presence.NOT_A_NAMESPACE)
WRONG_TYPE = NetNSObservation("/n", Presence.OTHER_TYPE, more=" 0x4000000, not net")
UNSEEN = NetNSObservation("/n", Presence.UNSEEN, errno=13, more=": Permission denied")
RUNS = ProcessObservation(Liveness.RUNNING, "process 5 runs")
GONE = ProcessObservation(Liveness.GONE, "process 5 is gone")
HIDDEN = ProcessObservation(Liveness.UNSEEN, "process 5 is hidden")
CONTAINER = ProcessObservation(Liveness.RUNNING, "container 'c1' runs as process 5")
SAME = Evidence("boot-0", Weight.SAME, "process 5 runs")
MAYBE = Evidence("boot-0", Weight.MAYBE, "pid namespace 9 still exists")
OVER = Evidence(
    "boot-0", Weight.OVER, "process 5 had started later after its boot than this boot is old"
)


def row(state: State = State.READY, **columns: object) -> AnyRow:
    """Return the row of a sandbox with a recorded namespace; *columns* differ."""
    kind: type[Row | StatusRow] = Row if state is State.UNKNOWN else StatusRow
    fields = {
        "creation": 1,
        "id": "a",
        "netns_path": "/n",
        "host_network": 0,
        "netns_boot_id": "boot-1",
        "netns_number": 7,
        "netns_inode": 70,
        "netns_mount_ns": 10,
        "state": str(state),
        "pid": 0,
        "reason": "",
        "message": "",
        "changed_at": 1_000_000_000,
        "boot_id": "boot-1",
    }
    if kind is Row:
        fields |= {"creator_pid": 4, "creator_boot_id": "boot-1"}
    return kind(**{**dict.fromkeys(kind._fields), **fields, **columns})  # type: ignore[arg-type]


def never_noted(state: State = State.READY, **columns: object) -> AnyRow:
    """Return a row whose namespace was never there."""
    missing = dict.fromkeys(("netns_boot_id", "netns_number", "netns_inode", "netns_mount_ns"))
    return row(state, **{**missing, **columns})


@dataclass(frozen=True)
class Case:
    """A row, its observation, and the expected decision."""

    row: AnyRow
    observation: Observation
    verdict: Verdict
    reason: str = ""
    marks: bool = False
    reported: bool = True
    says: str = ""
    left: str = ""


UNKNOWN, NOTREADY = State.UNKNOWN, State.NOTREADY
CASES = {
    "open": Case(row(), Observation(OPEN), Verdict.OPEN, reported=False),
    "open, process runs": Case(row(pid=5), Observation(OPEN, RUNS), Verdict.OPEN, reported=False),
    "host": Case(row(host_network=1), Observation(), Verdict.HOST, reported=False),
    "host, process gone": Case(
        row(host_network=1), Observation(None, GONE), Verdict.EXITED, "ProcessExited", marks=True
    ),
    "nothing recorded": Case(
        never_noted(netns_path=""), Observation(), Verdict.OPEN, reported=False
    ),
    "never noted, there now": Case(never_noted(), Observation(OPEN), Verdict.OPEN, reported=False),
    "absent": Case(row(), Observation(ABSENT), Verdict.CLOSED, "NetNSClosed", marks=True),
    "absent, without a recorded mount namespace": Case(
        row(netns_mount_ns=None), Observation(ABSENT), Verdict.CLOSED, "NetNSClosed", marks=True
    ),
    "plain file": Case(row(), Observation(PLAIN), Verdict.CLOSED, "NetNSClosed", marks=True),
    "never noted, absent": Case(
        never_noted(), Observation(ABSENT), Verdict.CLOSED, "NetNSClosed", marks=True
    ),
    "another one": Case(row(), Observation(OTHER), Verdict.REPLACED, "NetNSReplaced", marks=True),
    "another one, process runs": Case(
        row(pid=5), Observation(OTHER, RUNS), Verdict.REPLACED, "NetNSReplaced", marks=True,
        left="still to be cleaned up: process 5 runs",
    ),
    "another one, in which the process lives": Case(
        row(pid=5), Observation(OTHER, RUNS, lives_at_path=True), Verdict.UNREACHABLE,
        says="but the recorded process lives in it",
    ),
    "another one, in which a process lived that is gone": Case(
        row(pid=5), Observation(OTHER, GONE, lives_at_path=True), Verdict.REPLACED, "NetNSReplaced",
        marks=True,
    ),
    "never noted, there now, process gone": Case(
        never_noted(pid=5), Observation(OPEN, GONE), Verdict.EXITED, "ProcessExited", marks=True,
        left="still to be cleaned up: '/n' is a network namespace, though it is not recorded which "
        "one it should be",
    ),
    "another type": Case(
        row(), Observation(WRONG_TYPE), Verdict.REPLACED, "NetNSReplaced", marks=True
    ),
    "same by inode only": Case(row(), Observation(BY_INODE), Verdict.OPEN, says="only the inode"),
    "another boot, namespace": Case(
        row(netns_boot_id="boot-0"), Observation(OTHER), Verdict.CLOSED, "HostRebooted", marks=True,
        says="another network namespace",
    ),
    "another boot, process": Case(
        row(process_boot_id="boot-0", pid=5), Observation(ABSENT, GONE),
        Verdict.CLOSED, "HostRebooted",
        marks=True, says="process 5 ran before the host was booted",
    ),
    "another boot, status": Case(
        row(boot_id="boot-0", host_network=1), Observation(),
        Verdict.CLOSED, "HostRebooted", marks=True
    ),
    "another boot, process recorded elsewhere": Case(
        row(boot_id="boot-0", process_boot_id="boot-0", pid=5, host_network=1),
        Observation(None, HIDDEN), Verdict.CLOSED, "HostRebooted", marks=True, says="ran before",
    ),
    "another boot, UNKNOWN": Case(
        never_noted(UNKNOWN, creator_boot_id="boot-0"), Observation(ABSENT, None, GONE),
        Verdict.CLOSED, "HostRebooted", marks=True, says="interrupted: process 4 ran before",
    ),
    "another boot, UNKNOWN, creator recorded elsewhere": Case(
        never_noted(UNKNOWN, creator_boot_id="boot-0"), Observation(ABSENT, None, HIDDEN),
        Verdict.CLOSED, "HostRebooted", marks=True, says="interrupted",
    ),
    "another boot, but the process runs": Case(
        row(process_boot_id="boot-0", pid=5), Observation(OPEN, RUNS, evidence=(SAME,)),
        Verdict.UNREACHABLE, says="and this is boot 'boot-1', but process 5 runs",
    ),
    "another boot, but a namespace may exist": Case(
        row(boot_id="boot-0"), Observation(ABSENT, evidence=(MAYBE,)),
        Verdict.CLOSED, "NetNSClosed", marks=True, says="but pid namespace 9 still exists",
    ),
    "another boot, but a namespace may exist, host network": Case(
        row(boot_id="boot-0", host_network=1), Observation(evidence=(MAYBE,)), Verdict.UNREACHABLE,
        says="but pid namespace 9 still exists",
    ),
    "another boot, its process started later than this boot is old": Case(
        row(boot_id="boot-0", host_network=1), Observation(evidence=(MAYBE, OVER)), Verdict.CLOSED,
        "HostRebooted", marks=True,
    ),
    "another boot, a process that runs outweighs what is over": Case(
        row(boot_id="boot-0", host_network=1), Observation(evidence=(OVER, SAME)),
        Verdict.UNREACHABLE,
        says="process 5 runs",
    ),
    "another boot, but a container runs": Case(
        row(process_boot_id="boot-0", pid=5, host_network=1),
        Observation(None, CONTAINER, attached=True, evidence=(SAME._replace(boot_id=""),)),
        Verdict.UNREACHABLE, says="process 5 runs",
    ),
    "another boot, a container has no task": Case(
        row(process_boot_id="boot-0", pid=5, host_network=1),
        Observation(None, GONE._replace(detail="no task"), attached=True),
        Verdict.CLOSED, "HostRebooted", marks=True, says="no task",
    ),
    "another boot, but the process runs, and its namespace is closed": Case(
        row(process_boot_id="boot-0", netns_boot_id="boot-0", pid=5),
        Observation(ABSENT, RUNS, evidence=(SAME,)), Verdict.CLOSED, "NetNSClosed", marks=True,
        says="but process 5 runs", left="still to be cleaned up: process 5 runs",
    ),
    "another boot, but something lives, and the process is gone": Case(
        row(process_boot_id="boot-0", netns_boot_id="boot-0", pid=5),
        Observation(OPEN, GONE, evidence=(MAYBE,)), Verdict.EXITED, "ProcessExited", marks=True,
        left="still to be cleaned up: network namespace '/n' is open",
    ),
    "another boot, UNKNOWN, but its creator lives": Case(
        never_noted(UNKNOWN, creator_boot_id="boot-0"),
        Observation(ABSENT, None, RUNS, evidence=(SAME,)),
        Verdict.UNREACHABLE, says="its creator: process",
    ),
    "another boot, UNKNOWN, something lives, and its creator is gone": Case(
        never_noted(UNKNOWN, creator_boot_id="boot-0"),
        Observation(ABSENT, None, GONE, evidence=(MAYBE,)),
        Verdict.INTERRUPTED, "CreationInterrupted",
        marks=True,
    ),
    "another boot, adopted": Case(
        never_noted(UNKNOWN, creator_pid=None, boot_id="boot-0"), Observation(ABSENT),
        Verdict.UNVERIFIED,
    ),
    "another boot, NOTREADY": Case(
        row(NOTREADY, netns_boot_id="boot-0"), Observation(ABSENT), Verdict.CLOSED, "HostRebooted"
    ),
    "another boot, NOTREADY, with a pid": Case(
        row(NOTREADY, process_boot_id="boot-0", pid=5), Observation(ABSENT, HIDDEN),
        Verdict.CLOSED, "HostRebooted", marks=True, says="ran before",
    ),
    "another boot, NOTREADY, with a pid, but the pid namespace exists": Case(
        row(NOTREADY, process_boot_id="boot-0", pid=5),
        Observation(ABSENT, HIDDEN, evidence=(MAYBE,)),
        Verdict.CLOSED, "NetNSClosed", says="still exists",
    ),
    "another boot, NOTREADY, but its namespace is open": Case(
        row(NOTREADY, netns_boot_id="boot-0"), Observation(OPEN, evidence=(MAYBE,)),
        Verdict.UNREACHABLE,
        left="still to be cleaned up: network namespace '/n' is open",
    ),
    "unseen": Case(row(), Observation(UNSEEN), Verdict.UNREACHABLE, says="Permission denied"),
    "unseen, process gone": Case(
        row(pid=5), Observation(UNSEEN, GONE), Verdict.EXITED, "ProcessExited", marks=True,
        says="Permission denied",
    ),
    "unseen, process lives there": Case(
        row(pid=5), Observation(UNSEEN, RUNS, lives_in_netns=True), Verdict.UNREACHABLE,
        says="still lives in the recorded namespace",
    ),
    "absent here, made elsewhere": Case(
        row(netns_mount_ns=11), Observation(ABSENT), Verdict.UNREACHABLE, says="in another one"
    ),
    "plain file here, made elsewhere": Case(
        row(netns_mount_ns=11), Observation(PLAIN), Verdict.UNREACHABLE
    ),
    "another here, made elsewhere": Case(
        row(netns_mount_ns=11), Observation(OTHER), Verdict.UNREACHABLE, says="in another one"
    ),
    "another type here, made elsewhere": Case(
        row(netns_mount_ns=11), Observation(WRONG_TYPE), Verdict.UNREACHABLE, says="in another one"
    ),
    "NOTREADY, process gone, still open": Case(
        row(NOTREADY, pid=5), Observation(OPEN, GONE), Verdict.EXITED, "ProcessExited",
        says="cleaned up: network namespace '/n' is open",
    ),
    "interrupted, its namespace made and its process running": Case(
        never_noted(UNKNOWN, pid=5), Observation(OPEN, RUNS, GONE), Verdict.INTERRUPTED,
        "CreationInterrupted", marks=True, says="cleaned up: ",
    ),
    "open, made elsewhere": Case(
        row(netns_mount_ns=11), Observation(OPEN), Verdict.OPEN, reported=False
    ),
    "process gone": Case(
        row(pid=5), Observation(OPEN, GONE), Verdict.EXITED, "ProcessExited", marks=True
    ),
    "process hidden": Case(
        row(pid=5), Observation(OPEN, HIDDEN), Verdict.UNREACHABLE, says="hidden"
    ),
    "closed and gone": Case(
        row(pid=5), Observation(ABSENT, GONE), Verdict.CLOSED, "NetNSClosed", marks=True,
        says="process 5 is gone",
    ),
    "replaced and gone": Case(
        row(pid=5), Observation(OTHER, GONE), Verdict.REPLACED, "NetNSReplaced", marks=True,
        says="process 5 is gone",
    ),
    "creating": Case(
        never_noted(UNKNOWN), Observation(ABSENT, None, RUNS), Verdict.CREATING, says="for 2.0 s"
    ),
    "creator hidden": Case(
        never_noted(UNKNOWN), Observation(ABSENT, None, HIDDEN), Verdict.UNREACHABLE, says="creator"
    ),
    "interrupted before the namespace": Case(
        never_noted(UNKNOWN), Observation(ABSENT, None, GONE), Verdict.INTERRUPTED,
        "CreationInterrupted", marks=True, says="nothing is at '/n'",
    ),
    "interrupted after the namespace": Case(
        row(UNKNOWN), Observation(OPEN, None, GONE), Verdict.INTERRUPTED, "CreationInterrupted",
        marks=True,
    ),
    "interrupted, namespace gone since": Case(
        row(UNKNOWN), Observation(ABSENT, None, GONE), Verdict.CLOSED, "NetNSClosed", marks=True,
        says="interrupted",
    ),
    "interrupted, process gone": Case(
        row(UNKNOWN, pid=5), Observation(OPEN, GONE, GONE), Verdict.EXITED, "ProcessExited",
        marks=True, says="interrupted",
    ),
    "imported": Case(
        never_noted(UNKNOWN, creator_pid=None), Observation(ABSENT), Verdict.UNVERIFIED
    ),
    "imported, could not be observed at": Case(
        never_noted(UNKNOWN, creator_pid=None), Observation(None, HIDDEN, HIDDEN),
        Verdict.UNVERIFIED
    ),
    "could not be observed": Case(
        row(boot_id="boot-0"), Observation(failure="why"), Verdict.UNREACHABLE, says="why"
    ),
    "imported, and damaged": Case(
        never_noted(UNKNOWN, creator_pid=None), Observation(failure="why"), Verdict.UNREACHABLE,
        says="why",
    ),
    "creator gone, and the process is uncertain": Case(
        never_noted(UNKNOWN, pid=5), Observation(ABSENT, HIDDEN, GONE), Verdict.INTERRUPTED,
        "CreationInterrupted", marks=True, says="hidden",
    ),
    "NOTREADY, its namespace never made": Case(
        never_noted(NOTREADY), Observation(ABSENT), Verdict.OPEN, reported=False
    ),
    "NOTREADY, its namespace never made, process runs": Case(
        never_noted(NOTREADY, pid=5), Observation(ABSENT, RUNS), Verdict.OPEN, says="process 5 runs"
    ),
    "NOTREADY, its namespace never made, but the file for it": Case(
        never_noted(NOTREADY), Observation(PLAIN), Verdict.OPEN, left=
        "still to be cleaned up: '/n' is no namespace",
    ),
    "NOTREADY, closed": Case(row(NOTREADY), Observation(ABSENT), Verdict.CLOSED, "NetNSClosed"),
    "NOTREADY, still open": Case(row(NOTREADY), Observation(OPEN), Verdict.OPEN, says="cleaned up"),
    "NOTREADY, process runs": Case(
        row(NOTREADY, host_network=1, pid=5), Observation(None, RUNS),
        Verdict.HOST, says="process 5"
    ),
    "NOTREADY, nothing left": Case(
        never_noted(NOTREADY, netns_path=""), Observation(), Verdict.OPEN, reported=False
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_plan(name: str) -> None:
    """One row of the table."""
    case = CASES[name]
    (decision,) = decide([(case.row, case.observation)], HERE, now=3_000_000_000)
    assert (case.verdict, case.reason, case.marks, case.reported) == (
        decision.verdict,
        decision.reason,
        decision.marks,
        decision.reported,
    )
    message = decision.finding(changed=False).message
    assert case.says in message
    assert not case.left or case.left == decision.left
    assert message or not decision.reported


def test_every_verdict_is_in_the_table() -> None:
    """None is forgotten."""
    assert set(Verdict) == {case.verdict for case in CASES.values()}


def test_a_host_whose_boot_id_cannot_be_read_reboots_no_sandbox() -> None:
    """An unknown boot id is not a different one."""
    blind = HostContext("", 10, 20, 30)
    (decision,) = decide([(row(), Observation(OPEN))], blind, now=0)
    assert Verdict.OPEN is decision.verdict


def test_a_boot_id_that_was_shown_to_this_process_is_of_this_boot() -> None:
    """No process outlives the boot, whatever is shown to it later."""
    context = HostContext("boot-1", 10, 20, 30, boot_ids=frozenset({"boot-0", "boot-1"}))
    recorded = row(boot_id="boot-0", netns_boot_id="boot-0", host_network=1)
    (decision,) = decide([(recorded, Observation())], context, now=0)
    assert (Verdict.HOST, False) == (decision.verdict, decision.reported)


BOOTS = {
    "a process of another sandbox runs": ((), (SAME,), Verdict.UNREACHABLE),
    "a namespace of another sandbox may exist": ((), (MAYBE,), Verdict.UNREACHABLE),
    "its own may exist, and the boot is over": ((MAYBE,), (OVER,), Verdict.CLOSED),
    "another's may exist, and the boot is over": ((OVER,), (MAYBE,), Verdict.CLOSED),
    "nothing is known": ((), (), Verdict.CLOSED),
    "another boot is this one": ((), (SAME._replace(boot_id="boot-7"),), Verdict.CLOSED),
}


@pytest.mark.parametrize("beside", [True, False], ids=["of a row", "of no row"])
@pytest.mark.parametrize("name", BOOTS)
def test_evidence_counts_for_all_that_was_recorded_under_the_same_boot_id(
    name: str, beside: bool
) -> None:
    """Whichever of the two comes first, and also where nothing but the boot id is recorded."""
    own, others, verdict = BOOTS[name]
    decided = (row(boot_id="boot-0", host_network=1), Observation(evidence=own))
    other = (row(creation=2, boot_id="boot-0", host_network=1), Observation(evidence=others))
    for observed in ([decided, other], [other, decided]) if beside else ([decided],):
        decisions = decide(observed, HERE, now=0, evidence=() if beside else iter(others))
        found = {each.row.creation: each for each in decisions}[1]
        assert (verdict, verdict is Verdict.CLOSED) == (found.verdict, found.marks)


def test_a_mark_keeps_what_it_does_not_know_better() -> None:
    """Only state, reason and message change; the pid when the process is gone."""
    alive = row(pid=5, exit_status=3, created_at=9)
    for observation, pid in ((Observation(ABSENT, RUNS), 5), (Observation(ABSENT, GONE), 0)):
        (decision,) = decide([(alive, observation)], HERE, now=0)
        status = decision.applied_to(load_status(alive))
        assert (State.NOTREADY, pid, 9, 3, "NetNSClosed") == (
            status.state,
            status.pid,
            status.created_at,
            status.exit_status,
            status.reason,
        )


def test_the_report_counts_each_sandbox_once_and_finds_only_what_is_worth_saying() -> None:
    """OPEN ones are counted, not found; the order is that of a list."""
    fine, *decided = decide(
        [
            (row(), Observation(OPEN)),
            (row(creation=3, id="c", created_at=7), Observation(ABSENT)),
            (row(creation=2, id="b", created_at=7), Observation(ABSENT)),
            (row(creation=4, id="a", created_at=8), Observation(ABSENT)),
            (row(creation=5, id="d"), Observation(ABSENT)),
        ],
        HERE,
        now=0,
    )
    assert not fine.reported
    found = [(str(each.row.id), each.verdict) for each in (fine, *decided)]
    made = report(decided, found, {2}, ["/run/netns/x"])
    assert {Verdict.OPEN: 1, Verdict.CLOSED: 4} == made.counts
    assert [("d", False), ("b", True), ("c", False), ("a", False)] == [
        (each.sandbox_id, each.changed) for each in made.findings
    ]
    assert ("/run/netns/x",) == made.orphans
    assert dict(found) == made.verdicts


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_the_shortcut_for_open_sandboxes_changes_no_decision(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever it takes for OPEN, the long way does too."""
    observed = [(case.row, case.observation)]
    short = [*decide(observed, HERE, now=0)]
    monkeypatch.setattr(verdicts, "_is_as_recorded", lambda *_: False)
    assert short == [*decide(observed, HERE, now=0)]


IMPURE = {"os", "time", "socket", "subprocess", "fcntl", "logging"}


@pytest.mark.parametrize("module", [evidence, verdicts], ids=["evidence", "verdicts"])
def test_verdicts_import_values_only(module: ModuleType) -> None:
    """Nothing in them can look at the host: no function of `registry.host` is imported."""
    for name, value in vars(module).items():
        assert name not in IMPURE
        if inspect.ismodule(value) or inspect.isfunction(value):
            source = value.__name__ if inspect.ismodule(value) else value.__module__
            assert not source.startswith(("registry.host", "registry.engine", "registry.handles"))
