"""The verb `why`, on real processes: text for people, and fields for programs."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from registry import Metadata, NetNS, State, Status, Store
from tests import needs
from tests.cli.program import HOSTILE, Call, clean, real
from tests.cli.terminals import terminal
from tests.tools import READY, execute, make_old_registry, pod, query, running, sandbox, tamper

FIELDS = [
    *("id", "name", "namespace", "pod", "state", "since", "since_ns", "reason", "message", "pid"),
    *("netns_path", "transition", "writer", "verdict", "finding", "marks", "left"),
    *("sentences", "next"),
]


def flat(text: str) -> str:
    """Return *text* without its line breaks, at which `why` folds it."""
    return " ".join(text.split())


@pytest.fixture
def path(tmp_path: Path) -> str:
    """Return a registry of a sandbox that runs, one that is gone, and one that was deleted."""
    path = str(tmp_path / "registry.db")
    with Store.open(path, reconcile=False, actor=f"shim[{os.getpid()}]") as store:
        running_here = Status(State.READY, os.getpid())
        store.add(Metadata("a1b2", "web_shop", pod("web", "shop")), running_here)
        gone = store.add(sandbox("c3d4", netns_path="/run/netns/never-made"), READY)
        assert gone.id == "c3d4"
        store.add(sandbox("e5f6", name="old", config=pod("old", "shop")), READY).delete()
    return path


def test_a_sandbox_that_runs_is_explained_too(call: Call) -> None:
    """It may be named by its pod; the commands name the registry."""
    code, out, err = call("why", "shop/web")
    assert (0, "") == (code, err)
    assert flat(out).startswith(
        "Sandbox a1b2 (web_shop), pod web in namespace shop, has been READY for "
    )
    assert f"; process {os.getpid()} (" in flat(out)
    in_order = "It is in order, as far as can be observed: no network namespace is recorded; "
    assert in_order in flat(out)
    assert "\nNext:\n  # shows every change of it\n  sandbox-registry --db " in out


def test_a_sandbox_that_is_gone_is_observed_and_not_marked(call: Call, path: str) -> None:
    """The next command is the reconcile that marks it."""
    out = call("why", "c3").out
    shown = flat(out)
    assert "A reconcile would mark it NOTREADY now (NetNSClosed): network namespace is " in shown
    assert ["reconcile", "delete c3d4", "history c3d4"] == [
        line.strip().removeprefix(f"sandbox-registry --db {path} ")
        for line in out.partition("Next:\n")[2].splitlines()
        if not line.startswith("  # ")
    ]
    with Store.open(path, read_only=True) as store:
        assert State.READY is store.get("c3d4").status.get().state
    assert 0 == call("reconcile").code
    out = flat(call("why", "c3").out)
    assert "has been NOTREADY for " in out
    assert "The recorded reason is NetNSClosed: its network namespace is gone; " in flat(out)
    assert "changed it from READY to NOTREADY; sandbox-registry[" in flat(out)
    assert "Nothing is left to clean up but the record. " in out


def test_the_commands_are_short_if_the_environment_names_the_registry(
    main: Call, path: str
) -> None:
    """They can be copied as they are."""
    out = main("why", "c3", SANDBOX_REGISTRY_DB=path).out
    assert "\n  sandbox-registry reconcile\n" in out


def test_a_deleted_sandbox_is_explained_by_the_history(call: Call) -> None:
    """By its id, a prefix of it, its name or its pod."""
    for name in ("e5f6", "e5", "old", "shop/old"):
        code, out, err = call("why", name)
        assert (0, "") == (code, err)
        begins = "Sandbox e5f6 (old), pod old in namespace shop, was deleted "
        assert flat(out).startswith(begins)
    code, out, err = call("why", "zz")
    assert (1, "") == (code, out)
    assert "explain sandbox 'zz': there is no such sandbox, and no history of one is kept" in err


def test_the_process_that_is_left_is_named_with_the_command_that_ends_it(
    call: Call, path: str
) -> None:
    """The writer, another process, has ended."""
    with running("import sys; sys.stdin.read()") as process:
        with Store.open(path, reconcile=False, actor=f"shim[{process.pid}]") as store:
            left = Status(State.NOTREADY, process.pid, reason="Evicted")
            store.add(sandbox("b7"), left)
        found = json.loads(call("why", "b7", "--json").out)
        assert [f"process {process.pid} runs"] == found["left"]
        assert f"kill {process.pid}" == found["next"][0]["command"]
        assert f"process {process.pid} (" in found["writer"]
        process.kill()
        process.wait()
        found = json.loads(call("why", "b7", "--json").out)
        assert [] == found["left"]
        assert f"no process {process.pid} runs here now" == found["writer"]


def test_another_process_with_the_pid_of_the_writer_is_recognised(call: Call, path: str) -> None:
    """It has started after the transition."""
    with running("print(1); import sys; sys.stdin.read()") as process:
        assert process.stdout is not None
        process.stdout.readline()
        tamper(path, f"UPDATE sandbox_transitions SET actor = 'shim[{process.pid}]', at = 7")
        writer = json.loads(call("why", "a1", "--json").out)["writer"]
        assert f"process {process.pid} has ended, and another one has its pid" == writer
    tamper(path, "UPDATE sandbox_transitions SET boot_id = '0000-other'")
    assert (
        "that was before the host was booted"
        == json.loads(call("why", "a1", "--json").out)["writer"]
    )


def test_a_change_by_sql_has_no_process(call: Call, path: str) -> None:
    """The history has the author `sql`."""
    execute(
        path, "UPDATE sandbox_statuses SET state = 'SANDBOX_NOTREADY' WHERE sandbox_id = 'a1b2'"
    )
    out = call("why", "a1").out
    assert "; a client wrote it with SQL, such as the sqlite3 shell. " in flat(out)
    assert "No reason is recorded.\n" in out


def test_fields_of_why_are_those_of_the_contract(call: Call) -> None:
    """Of a sandbox and of a deleted one; the transition has its times twice, as in `history`."""
    for id in ("a1", "e5"):
        found = json.loads(call("why", id, "-o", "json").out)
        assert FIELDS == list(found)
        assert found["transition"]["at_ns"] == found["since_ns"]
        assert {"command", "purpose"} == set(found["next"][0])


def test_hostile_text_of_a_record_is_shown_with_escapes(call: Call, path: str) -> None:
    """No control character and no line break reaches the terminal."""
    with Store.open(path, reconcile=False) as store:
        bad = Status(State.NOTREADY, message=HOSTILE)
        store.add(sandbox("x1", config=pod(HOSTILE)), bad)
    out = call("why", "x1").out
    assert "\x1b" not in out
    assert r"one\ntwo \x1b[31mred\x1b[0m" in flat(out)


def test_a_damaged_record_is_explained_with_its_damage(call: Call, path: str) -> None:
    """The exit code is 1, and nothing is proposed that would remove it."""
    tamper(path, "UPDATE sandbox_statuses SET state = 'SANDBOX_ODD' WHERE sandbox_id = 'a1b2'")
    code, out, err = call("why", "a1b2")
    assert 1 == code
    assert "its record is damaged" in flat(out)
    assert "read status of sandbox 'a1b2'" in err
    assert "delete" not in out.partition("Next:")[2]
    tamper(path, "UPDATE sandbox_statuses SET state = 'SANDBOX_READY' WHERE sandbox_id = 'a1b2'")


def test_why_says_whether_the_last_writer_but_the_command_line_still_runs(call: Call) -> None:
    """The shim added the sandbox, and the command line has marked it since."""
    assert 0 == call("reconcile").code
    step = next(
        each
        for each in json.loads(call("why", "c3", "--json").out)["next"]
        if " delete " in each["command"]
    )
    begins = "deletes the record, if its shim is gone: the last shim in its history is "
    assert step["purpose"].startswith(f"{begins}shim[{os.getpid()}], and process {os.getpid()} (")
    assert step["purpose"].endswith(") still runs")


def test_why_calls_no_shim_the_last_writer_of_what_sql_wrote_later(call: Call, path: str) -> None:
    """The shim is the last one in the history, and a client of SQL wrote after it."""
    execute(
        path, "UPDATE sandbox_statuses SET state = 'SANDBOX_NOTREADY' WHERE sandbox_id = 'a1b2'"
    )
    out = flat(call("why", "a1b2").out)
    assert "a client wrote it with SQL" in out
    assert f"the last shim in its history is shim[{os.getpid()}]" in out.replace("# ", "")
    assert "wrote it last" not in out


def test_why_tells_the_damage_once_and_proposes_what_helps(call: Call, path: str) -> None:
    """A registry that is damaged refuses `delete` and `reconcile`."""
    with Store.open(path, reconcile=False) as store, store.transaction():
        for number in range(100):
            gone = Status(State.NOTREADY, reason="Evicted")
            store.add(sandbox(f"id{number:05}", config=pod(f"pod{number}", "shop")), gone)
    pages = "SELECT pageno FROM dbstat WHERE name = 'sandboxes' AND pagetype = 'leaf' ORDER BY path"
    ((page,),) = query(path, f"{pages} LIMIT 1 OFFSET 1")
    with open(path, "r+b") as file:
        file.seek((page - 1) * 4096)
        file.write(b"\xff" * 4096)
    readable = json.loads(call("list", "--json", "--namespace", "shop", "--reason", "Evicted").out)
    id, name = readable[0]["id"], f"shop/{readable[0]['pod']}"
    for text in (id, name):
        code, out, err = call("why", text)
        assert (1, 1) == (code, len(err.splitlines()))
        assert f"age {page}: btreeInitPage() returns error code 11" in err
        assert max(len(line) for line in out.splitlines() if "sandbox-registry" not in line) <= 80
        salvaged = os.path.join(os.path.dirname(path), "salvaged.db")
        assert [
            f"  sandbox-registry --db {path} check",
            f"  sandbox-registry salvage {path} {salvaged}",
            f"  sandbox-registry --db {path} restore BACKUP",
            f"  sandbox-registry --db {path} history {id}",
        ] == [line for line in out.splitlines() if line.startswith("  sandbox-registry")]
    lost = min({f"id{n:05}" for n in range(100)}.difference(each["id"] for each in readable))
    code, out, err = call("why", lost)
    assert (1, 1) == (code, len(err.splitlines()))
    assert 1 == err.count("restore a backup with")
    assert "has a record that cannot be read. Its last known state is NOTREADY, since" in flat(out)
    history = f"sandbox-registry --db {path} history {lost}"
    assert f"  {history}" == out.splitlines()[-1]
    assert lost in call(*history.split()[3:], "--json").out


def test_why_folds_its_sentences_on_a_terminal_and_no_command(path: str) -> None:
    """Commands can be copied: they stay in one line."""
    long = f"{path}-{'x' * 60}.db"
    os.rename(path, long)
    with terminal(real("--db", long, "why", "c3"), clean(TERM="xterm")) as shell:
        assert 0 == shell.wait()
        shell.expect("history c3d4")
    lines = shell.text.replace("\r", "").splitlines()
    assert max(len(line) for line in lines if "sandbox-registry --db" not in line) <= 80
    place = lines.index(f"  sandbox-registry --db {long} reconcile")
    assert lines[place - 1].startswith("  # records this")


def test_an_older_schema_is_refused_with_the_way_out(main: Call, tmp_path: Path) -> None:
    """Reading verbs do not upgrade it."""
    old = str(tmp_path / "old.db")
    make_old_registry(old)
    code, _, err = main("--db", old, "why", "s1")
    assert (3, True) == (code, "`sandbox-registry upgrade` brings it up to date" in err)


@pytest.mark.netns
@needs.namespaces
def test_a_deletion_says_whether_the_namespace_still_exists(
    call: Call, path: str, tmp_path: Path
) -> None:
    """It is left alone, or gone; what cannot be seen is neither."""
    made = NetNS.create(str(tmp_path / "netns" / "n1"))
    loop = str(tmp_path / "loop")
    try:
        with Store.open(path, reconcile=False) as store:
            for id in ("d9", "e9"):
                store.add(sandbox(id, netns_path=made.path), READY)
            store.add(sandbox("f9", netns_path=f"{loop}/n"), READY)
        os.symlink(loop, loop)
        expected = f"deleted d9; network namespace {made.path} is left alone\n"
        assert expected == call("delete", "d9").out
        made.remove()
        assert f"deleted e9; network namespace {made.path} is gone\n" == call("delete", "e9").out
        expected = f"deleted f9; network namespace {loop}/n, if it still exists, is left alone\n"
        assert expected == call("delete", "f9").out
    finally:
        made.remove()
        os.system(f"umount {tmp_path}/netns 2>/dev/null")


@pytest.mark.netns
@needs.namespaces
def test_an_open_namespace_of_a_stopped_sandbox_is_left_to_clean_up(
    call: Call, path: str, tmp_path: Path
) -> None:
    """The command that removes it works."""
    made = NetNS.create(str(tmp_path / "netns" / "n1"))
    try:
        with Store.open(path, reconcile=False) as store:
            added = store.add(sandbox("d9", netns_path=made.path), READY)
            added.status.update(lambda old: replace(old, state=State.NOTREADY))
        out = call("why", "d9").out
        assert f"Left to clean up: network namespace '{made.path}' is open. " in flat(out)
        command = f"umount {made.path} && rm {made.path}"
        assert f"\n  {command}\n" in out
        assert 0 == os.system(command)
        assert "Nothing is left to clean up but the record.\n" in call("why", "d9").out
    finally:
        made.remove()
        os.system(f"umount {tmp_path}/netns 2>/dev/null")
