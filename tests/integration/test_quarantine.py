"""Quarantined records: metadata that cannot be decoded stops nothing, and is kept until deleted."""

from __future__ import annotations

import json
import os
import re
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from registry import (
    Metadata,
    MetadataError,
    NameReservedError,
    RegistryError,
    Sandbox,
    State,
    Status,
    Store,
    Verdict,
)
from registry.cli import program
from tests.tools import READY, UNKNOWN, execute, ids, pod, query, sandbox, tamper

DAMAGES = {
    "config: no protobuf": "config = x'ff'",
    "config: cut off": "config = substr(config, 1, 5)",
    "config: no UTF-8": "config = x'1201ff'",
    "additional_ips: no JSON": "additional_ips = '[\"10.0.0.1'",
    "additional_ips: text": "additional_ips = '\"10.0.0.1\"'",
    "additional_ips: numbers": "additional_ips = '[7]'",
    "additional_ips: an object": "additional_ips = '{}'",
    "additional_ips: deep": f"additional_ips = '{'[' * 100_000}'",
    "additional_ips: no UTF-8": "additional_ips = CAST(x'5b22ff225d' AS TEXT)",
    "cni_result: no JSON": "cni_result = 'no'",
    "cni_result: an array": "cni_result = '[]'",
    "cni_result: newer layout": 'cni_result = \'{"Layout":2,"Links":[]}\'',
    "cni_result: newer field": (
        'cni_result = \'{"Interfaces":null,"DNS":null,"Routes":[{"dst":"::/0","mtu":9}]}\''
    ),
    "cni_result: no UTF-8": "cni_result = CAST(x'7bff7d' AS TEXT)",
    "ip: no UTF-8": "ip = CAST(x'3130ff' AS TEXT)",
    "netns_path: no UTF-8": "netns_path = CAST(x'2f72756eff' AS TEXT)",
    "name: no UTF-8": "name = CAST(x'6eff' AS TEXT)",
}


@pytest.fixture(params=list(DAMAGES))
def path(request: pytest.FixtureRequest, path: str) -> str:
    """Return a registry of three sandboxes, `bad` of which is damaged."""
    with Store.open(path) as store:
        store.add(sandbox("bad", config=pod("lost", app="x"), ip="10.0.0.9"), READY)
        store.add(sandbox("good", config=pod(app="x")), READY)
        store.add(sandbox("new"), UNKNOWN)
    tamper(path, f"UPDATE sandboxes SET {DAMAGES[request.param]} WHERE id = 'bad'")
    return path


@pytest.fixture
def store(path: str) -> Iterator[Store]:
    """Return an open store on it."""
    with Store.open(path, actor="test") as store:
        yield store


def reason(store: Store) -> str:
    """Return why its metadata cannot be read, which is all that is wrong with the others' too."""
    with pytest.raises(MetadataError) as caught:
        _ = store.get("bad").metadata
    assert "bad" == caught.value.id
    return str(caught.value)


def test_open_reconciles_all(path: str) -> None:
    """The damaged one too, by its columns; a path that cannot be read is not called gone."""
    with Store.open(path) as store:
        assert store.recovery is not None
        assert 3 == sum(store.recovery.counts.values())
        assert 1 == store.recovery.counts[Verdict.CREATING]
        dry = store.reconcile(dry_run=True)
        assert store.reconcile().counts == dry.counts
        assert State.READY is store.get("bad").status.get().state


def test_containers_are_loaded(path: str) -> None:
    """A loader that reads the metadata fails for this one alone."""
    asked = []

    def load(sandbox: Sandbox) -> None:
        asked.append((sandbox.id, sandbox.metadata))

    with Store.open(path, container_loader=load):
        assert {"good", "new"} == {id for id, _ in asked}


def test_quarantined_sandbox_is_marked_when_its_namespace_is_gone(path: str) -> None:
    """The identity of its namespace is in columns of its own."""
    gone = "netns_path = '/run/netns/never-made', netns_inode = 1, netns_boot_id = NULL"
    tamper(path, f"UPDATE sandboxes SET {gone} WHERE id = 'bad'")
    with Store.open(path) as store:
        assert "NetNSClosed" == store.get("bad").status.get().reason
        assert State.READY is store.get("good").status.get().state


def test_quarantined_sandbox_is_listed_and_found(store: Store) -> None:
    """By the id, prefix, label and pod in its columns."""
    assert ["bad", "good"] == ids(store.list()) == ids(store.list(labels={"app": "x"}))
    assert ["bad"] == ids(store.list(pod="lost")) == ids(store.list(id="ba"))
    found = store.get("b")
    assert ("bad", READY) == (found.id, found.status_as_read)
    assert repr(found)
    assert store.get("good").metadata == sandbox("good", config=pod(app="x"))


def test_its_metadata_says_why_it_cannot_be_read(store: Store) -> None:
    """And the columns are there as they are."""
    message = reason(store)
    assert message.startswith("read metadata of sandbox 'bad': ")
    assert message.endswith("; its id and name stay reserved until it is deleted")
    expected = {"host_network", "additional_ips", "process_label", "cni_result", "config"}
    assert expected | set(Status.__dataclass_fields__) == set(store.get("bad").stored)


def test_its_id_and_name_stay_reserved(store: Store, path: str) -> None:
    """Until it is deleted."""
    (kept,) = (each for each in store.list() if each.id == "bad")
    if kept.name == "name-bad":
        with pytest.raises(NameReservedError) as caught:
            store.add(sandbox("other", name="name-bad"), READY)
        assert "bad" == caught.value.holder
    assert [("bad",)] == query(path, "SELECT id FROM sandboxes WHERE id = 'bad'")
    assert store.delete("bad")
    store.add(sandbox("bad"), READY)
    assert [] == store.check()


def test_its_status_can_be_updated_and_it_can_be_deleted(store: Store) -> None:
    """The history has both, by who did it."""
    found = store.get("bad")
    found.status.update(lambda old: replace(old, state=State.NOTREADY, reason="Damaged"))
    assert found.stopped.is_set()
    assert "Damaged" == store.get("bad").status.get().reason
    assert found.delete()
    assert not store.delete("bad")
    events = [(each.event, each.actor == "test") for each in store.history("bad")]
    assert [("created", False), ("changed", True), ("deleted", True)] == events
    assert 5 == len(store.history())
    assert [] == store.check()


def test_update_metadata_refuses_a_quarantined_sandbox(path: str) -> None:
    """There is no old value to give to the function."""
    with Store.open(path) as store:
        store.delete("good")
    tamper(path, "UPDATE sandbox_statuses SET state = 'SANDBOX_UNKNOWN' WHERE sandbox_id = 'bad'")
    with Store.open(path) as store, pytest.raises(MetadataError, match="'bad'"):
        store.update_metadata("bad", lambda old: old)


def test_others_can_be_added_changed_and_deleted(store: Store) -> None:
    """Nothing else is touched by it."""
    store.update_metadata("new", lambda old: replace(old, ip="10.0.0.7"))
    store.get("new", include_unknown=True).status.update(lambda _: READY)
    store.add(sandbox("more"), READY)
    assert store.delete("good")
    assert ["bad", "more", "new"] == ids(store.list())


def test_check_says_why_and_finds_nothing_of_the_others(store: Store) -> None:
    """With the reason that its metadata gives."""
    found = store.check()
    assert all("bad" == each.sandbox_id or "file_is_whole" == each.rule for each in found)
    (why,) = (each.found for each in found if each.rule == "values_are_valid")
    assert reason(store) == why


def test_quarantined_sandbox_appears_in_the_views(store: Store, path: str) -> None:
    """Also when it is not ready."""
    store.get("bad").status.update(lambda old: replace(old, state=State.NOTREADY, reason="X"))
    execute(path, "UPDATE sandbox_statuses SET message = 'm' WHERE sandbox_id = 'bad'")
    overview = "SELECT id, state, reason FROM sandbox_overview WHERE id = 'bad'"
    assert [("bad", "SANDBOX_NOTREADY", "X")] == query(path, overview)
    assert [("bad", "X")] == query(path, "SELECT id, reason FROM why_not_ready")


# The command line.


def call(capfd: pytest.CaptureFixture[str], path: str, *args: str) -> tuple[int, str, str]:
    """Run the command line in this process."""
    code = program.main(["--db", path, *args])
    return code, *capfd.readouterr()


def test_cli_list_shows_all(path: str, capfd: pytest.CaptureFixture[str]) -> None:
    """A list decodes no metadata: `inspect` and `check` say why it cannot be read."""
    for form in ([], ["--json"]):
        code, out, err = call(capfd, path, "list", "--all", *form)
        assert (0, "") == (code, err)
        assert all(id in out for id in ("bad", "good", "new"))


def test_cli_inspect_shows_its_columns_and_the_reason(
    path: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """With code 1; the config where that can be read."""
    code, out, err = call(capfd, path, "inspect", "bad", "--json")
    found: dict[str, Any] = json.loads(out)
    assert (1, "bad", "SANDBOX_READY") == (code, found["id"], found["state"])
    assert found["error"].startswith("read metadata of sandbox 'bad': ")
    assert err.startswith("sandbox-registry: error: read metadata of sandbox 'bad': ")
    stored = query(
        path,
        "SELECT CAST(additional_ips AS BLOB), CAST(cni_result AS BLOB) FROM"
        " sandboxes WHERE id = 'bad'",
    )[0]
    for name, data in zip(("additional_ips", "cni_result"), stored, strict=True):
        text = None if data is None else data.decode("utf-8", "surrogateescape")
        assert text == found[name]
    if found["config"] is not None:
        assert "lost" == found["config"]["metadata"]["name"] == found["pod"]
    code, out, _ = call(capfd, path, "inspect", "bad")
    assert (1, True) == (code, "error " in out)
    assert out.isprintable() or all(c.isprintable() for c in out if c != "\n")
    code, out, err = call(capfd, path, "inspect", "good", "--json")
    assert (0, "", None) == (code, err, json.loads(out)["error"])


def test_cli_export_writes_the_others(path: str, capfd: pytest.CaptureFixture[str]) -> None:
    """And says which one is missing, and why."""
    code, out, err = call(capfd, path, "export", "--status", os.devnull)
    assert (1, 1) == (code, err.count("\n"))
    assert "read metadata of sandbox 'bad'" in err
    assert {"good", "new"} == {Metadata.unmarshal_json(line).id for line in out.splitlines()}


@pytest.mark.parametrize("args", ["history", "history bad", "reconcile", "reconcile --dry-run"])
def test_cli_history_and_reconcile_do_not_mind(
    path: str, capfd: pytest.CaptureFixture[str], args: str
) -> None:
    """Nothing is missing in either."""
    for form in ([], ["--json"]):
        code, out, err = call(capfd, path, *args.split(), *form)
        assert (0, "") == (code, err)
        assert "bad" in out or "sandboxes: 1 CREATING" in out or '"counts"' in out


def test_cli_check_and_delete(path: str, capfd: pytest.CaptureFixture[str]) -> None:
    """It is found, it is deleted, and nothing is wrong any more."""
    code, out, _ = call(capfd, path, "check", "--json")
    assert (1, True) == (code, "bad" in {each["sandbox_id"] for each in json.loads(out)})
    assert 0 == call(capfd, path, "delete", "bad")[0]
    assert (0, "no violations\n", "") == call(capfd, path, "check")
    assert 0 == call(capfd, path, "list", "--all")[0]


# What else text may hold.


@pytest.fixture
def sound(tmp_path: Any) -> str:
    """Return a registry of two sandboxes of which none is damaged yet."""
    path = str(tmp_path / "sound.db")
    with Store.open(path) as store:
        store.add(sandbox("bad", netns_path="/run/netns/x"), READY)
        store.add(sandbox("good"), READY)
    return path


def test_a_nul_in_a_path_stops_no_reconcile(sound: str) -> None:
    """It names nothing; `check` says so."""
    tamper(sound, "UPDATE sandboxes SET netns_path = CAST(x'2f0061' AS TEXT) WHERE id = 'bad'")
    with Store.open(sound) as store:
        assert store.recovery is not None
        assert 1 == store.recovery.counts[Verdict.UNREACHABLE]
        assert {"bad"} == {violation.sandbox_id for violation in store.check()}
        bad = store.get("bad")
        with pytest.raises(RegistryError, match=r"/\\x00a"):
            _ = bad.netns
        with pytest.raises(RegistryError, match=r"/\\x00a"):
            bad.remove_netns()


@pytest.mark.parametrize("damaged", ["62ff", "62c361", "62ffff"])
def test_a_damaged_id_is_found_by_the_prefix_that_is_left(sound: str, damaged: str) -> None:
    """No text that a caller may give names it whole."""
    tamper(
        sound,
        *(
            f"UPDATE {table} SET {column} = CAST(x'{damaged}' AS TEXT) WHERE {column} = 'bad'"
            for table, column in (("sandboxes", "id"), ("sandbox_statuses", "sandbox_id"))
        ),
    )
    with Store.open(sound) as store:
        bad = store.get("b")
        bad.status.update(lambda _: Status(State.NOTREADY))
        assert [bad.id] == ids(store.list(id="b"))
        assert store.delete("b")
        assert not bad.delete()
        assert ["good"] == ids(store.list())


# A status that cannot be decoded.

DAMAGED = "UPDATE sandbox_statuses SET {} WHERE sandbox_id = 'bad'"


def test_a_damaged_time_does_not_keep_a_sandbox_from_being_marked(tmp_path: Path) -> None:
    """Only what changes is written; `check` names what does not."""
    path = str(tmp_path / "damaged.db")
    with Store.open(path) as store:
        store.add(sandbox("bad", netns_path="/run/netns/none"), READY)
    tamper(path, DAMAGED.format("created_at = -9"))
    with Store.open(path) as store:
        assert State.NOTREADY is store.get("bad").status_as_read.state
        assert "bad" in {violation.sandbox_id for violation in store.check()}


def test_a_damaged_status_stops_the_reconcile_of_no_other(tmp_path: Path) -> None:
    """The others are marked, it is left as it is, and reading it raises MetadataError."""
    path = str(tmp_path / "damaged.db")
    with Store.open(path) as store:
        for id in ("bad", "good"):
            store.add(sandbox(id, netns_path=f"/run/netns/none-{id}"), READY)
    tamper(path, DAMAGED.format("state = 'SANDBOX_NEWER'"))
    with Store.open(path) as store:
        assert State.NOTREADY is store.get("good").status_as_read.state
        assert store.recovery is not None
        told = {each.sandbox_id: each.message for each in store.recovery.findings}
        assert "its record is damaged: state is 'SANDBOX_NEWER'" in told["bad"]
        assert "bad" in {violation.sandbox_id for violation in store.check()}
        bad = store.get("bad")
        for read in (
            bad.status.get,
            lambda: bad.status_as_read,
            lambda: bad.status.update(lambda s: s),
        ):
            with pytest.raises(MetadataError, match=r"'bad'.*SANDBOX_NEWER") as caught:
                read()
            assert "bad" == caught.value.id


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        ("reason = CAST(x'4b69ff' AS TEXT)", "reason"),
        ("reason = 'Killed' || char(0)", "reason"),
        ("reason = 'Kil)ed'", "reason"),
        ("pid = -2", "pid"),
        ("pid = 2147483648", "pid"),
    ],
)
def test_a_status_that_a_constraint_forbids_is_never_returned(
    sound: str, damage: str, told: str
) -> None:
    """`check` tells; the sandbox is left as it is, and can be deleted."""
    tamper(sound, DAMAGED.format(damage))
    with Store.open(sound) as store:
        assert store.recovery is not None
        (finding,) = [each for each in store.recovery.findings if each.sandbox_id == "bad"]
        assert f"its record is damaged: {told} is " in finding.message
        assert "bad" in {each.sandbox_id for each in store.check()}
        (listed,) = [each for each in store.list() if each.id == "bad"]
        for read in (store.get("bad").status.get, lambda: listed.status_as_read):
            with pytest.raises(MetadataError, match=f"'bad': {told} is "):
                read()
        assert store.delete("bad")


def test_a_sandbox_with_a_damaged_state_can_be_deleted(sound: str) -> None:
    """The history says from which state that was known."""
    tamper(sound, DAMAGED.format("state = 'SANDBOX_NEWER'"))
    with Store.open(sound, reconcile=False) as store:
        assert store.delete("bad")
        last = store.history("bad")[-1]
        assert ("deleted", State.READY) == (last.event, last.from_state)
        assert [] == store.check()


@pytest.mark.parametrize(
    ("before", "state", "events"),
    [
        ("READY", "READY", ["created"]),
        ("READY", "NOTREADY", ["created", "changed"]),
        ("UNKNOWN", "UNKNOWN", ["created"]),
        ("UNKNOWN", "READY", ["created", "changed"]),
    ],
)
def test_a_damaged_state_can_be_mended_by_sql(
    path: str, before: str, state: str, events: list[str]
) -> None:
    """The history goes on from the state that was known, and says who wrote."""
    path = f"{path}-mended"
    with Store.open(path, reconcile=False) as store:
        store.add(sandbox("bad"), Status(State[before]))
    tamper(path, DAMAGED.format("state = 'SANDBOX_NEWER'"))
    execute(path, DAMAGED.format(f"state = 'SANDBOX_{state}', message = 'mended'"))
    assert [("sql",)] == query(path, "SELECT actor FROM sandbox_statuses")
    with Store.open(path, reconcile=False) as store:
        assert events == [each.event for each in store.history("bad")]
        assert [] == store.check()


def test_a_state_that_was_damaged_past_the_constraints_can_be_mended_and_deleted(
    sound: str,
) -> None:
    """The history has it too, and then does not count."""
    for end in ("UPDATE sandbox_statuses SET state = 'SANDBOX_READY'", "DELETE FROM sandboxes"):
        with closing(sqlite3.connect(sound)) as shell, shell:
            shell.execute("PRAGMA ignore_check_constraints = ON")
            shell.execute("UPDATE sandbox_statuses SET state = 'FOO'")
        execute(sound, end)
    assert [] == query(sound, "SELECT * FROM sandboxes")


@pytest.mark.parametrize("verb", ["DELETE FROM sandboxes", "UPDATE sandbox_statuses"])
def test_a_damaged_state_whose_history_is_compacted_is_left_as_unknown(
    sound: str, verb: str
) -> None:
    """Nothing says any more what it was."""
    tamper(
        sound,
        DAMAGED.format("state = 'SANDBOX_NEWER'"),
        "DELETE FROM sandbox_transitions WHERE sandbox_id = 'bad'",
        "UPDATE sandbox_transitions SET seq = 200000",
    )
    change = f"{verb} SET state = 'SANDBOX_NOTREADY'" if "UPDATE" in verb else verb
    where = "sandbox_id" if "UPDATE" in verb else "id"
    execute(sound, f"{change} WHERE {where} = 'bad'")
    with Store.open(sound, reconcile=False) as store:
        assert [State.UNKNOWN] == [each.from_state for each in store.history("bad")]


def test_cli_shows_a_damaged_state_as_it_is(
    sound: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Beside all others; their statuses are exported without it."""
    tamper(sound, DAMAGED.format("state = 'SANDBOX_NEWER'"))
    for args in (["list"], ["list", "--json"], ["inspect", "bad"], ["inspect", "bad", "--json"]):
        code, out, err = call(capfd, sound, *args)
        assert (1, True, 1) == (code, "NEWER" in out, err.count("\n"))
        assert re.search("read (status of )?sandbox 'bad'", err)
        assert args[0] == "inspect" or "good" in out
    assert "read status" in json.loads(call(capfd, sound, "inspect", "bad", "--json")[1])["error"]
    code, out, _ = call(capfd, sound, "export")
    assert (0, 2) == (code, out.count("\n"))
    statuses = tmp_path / "statuses"
    code, out, err = call(capfd, sound, "export", "--status", str(statuses))
    assert (1, 2, 1) == (code, out.count("\n"), err.count("\n"))
    assert ["good"] == [json.loads(each)["id"] for each in statuses.read_text().splitlines()]
    assert 0 == call(capfd, sound, "delete", "bad")[0]
    assert 0 == call(capfd, sound, "check")[0]


def test_a_damaged_transition_is_named_by_its_number(sound: str) -> None:
    """So that one can read on behind it."""
    tamper(sound, "UPDATE sandbox_transitions SET to_state = 'SANDBOX_NEWER' WHERE seq = 1")
    with Store.open(sound, reconcile=False) as store:
        with pytest.raises(MetadataError, match="read transition 1 of sandbox 'bad'"):
            store.history()
        assert [2] == [each.seq for each in store.history(after=1)]
        assert "bad" in {each.sandbox_id for each in store.check()}


def test_cli_history_shows_all_but_the_damaged_transitions(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Of all sandboxes and of one, newest first; stderr has a line for each damaged one."""
    path = str(tmp_path / "history.db")
    with Store.open(path, reconcile=False) as store:
        for id in ("bad", "good"):
            store.add(sandbox(id), UNKNOWN)
            store.get(id, include_unknown=True).status.update(lambda _: READY)
            store.get(id).status.update(lambda _: Status(State.NOTREADY))
    damage = "UPDATE sandbox_transitions SET {} = 'SANDBOX_NEWER' WHERE seq = {}"
    tamper(path, damage.format("to_state", 1), damage.format("from_state", 3))

    def shown(*args: str) -> tuple[list[int], list[str]]:
        code, out, err = call(capfd, path, "history", *args, "--json")
        assert (1 if err else 0) == code
        return [each["seq"] for each in json.loads(out)], err.splitlines()

    found, errors = shown()
    assert ([6, 5, 4, 2], 2) == (found, len(errors))
    assert "read transition 3 of sandbox 'bad': 'SANDBOX_NEWER'" in errors[0]
    assert "read transition 1 of sandbox 'bad': 'SANDBOX_NEWER'" in errors[1]
    assert [2, 4, 5, 6] == shown("--oldest-first")[0]
    assert ([2], 2) == (shown("bad")[0], len(shown("bad")[1]))
    assert ([6, 5, 4], []) == shown("good")
    assert ([2], 1) == (shown("--limit", "2", "--oldest-first")[0], len(shown("-n", "5")[1]))
    assert [6, 5, 4] == shown("--after", "2")[0] == shown("--after", "3")[0]


def test_cli_shows_a_damaged_id_beside_all_others(
    sound: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """It has no UTF-8: it is printed with an escape, and left out of an export."""
    damaged = "CAST(x'62ff' AS TEXT)"
    for table, column in (("sandboxes", "id"), ("sandbox_statuses", "sandbox_id")):
        tamper(sound, f"UPDATE {table} SET {column} = {damaged} WHERE {column} = 'bad'")
    for args in (["list"], ["list", "--json"], ["inspect", "b"], ["inspect", "b", "--json"]):
        code, out, err = call(capfd, sound, *args)
        assert (0, "", True) == (code, err, "b\\udcff" in out)
        assert args[0] == "inspect" or "good" in out
    code, out, err = call(capfd, sound, "export")
    assert (1, 1) == (code, out.count("\n"))
    assert "good" in out
