"""Verbs of the command line: exit code, stdout and stderr of each."""

from __future__ import annotations

import json
import re
import sqlite3
import subprocess
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from registry import CNIResult, Metadata, NetNSError, Report, State, Status, Store, Verdict
from registry.cli.verbs import listing, summary
from registry.cli.verbs.report import ORPHANS
from tests.cli.program import (
    CREATED,
    LONG,
    SHOWN_CREATED,
    Call,
    Done,
    ids,
    run,
)
from tests.tools import NOTREADY, execute, pod, query, sandbox

# One real run of each verb.


def test_list_prints_a_line_for_each_sandbox(path: str) -> None:
    """The newest first, with short ids and ages; UNKNOWN ones are left out."""
    code, out, err = run("--db", path, "list")
    assert (0, "") == (code, err)
    header, long, short = out.splitlines()
    assert ["ID", "STATE", "SINCE", "AGE", "NAMESPACE", "POD", "REASON"] == header.split()
    assert ["3f2a", "READY", "shop", "web", "-"] == [*short.split()[:2], *short.split()[4:]]
    assert re.fullmatch(r"\d+[smhdy]", short.split()[2])
    assert long.startswith(f"{LONG[:8]}  NOTREADY")


def test_inspect_prints_everything_about_one_sandbox(path: str) -> None:
    """The sandbox is found by a prefix; the config is JSON."""
    code, out, err = run("--db", path, "inspect", "3f")
    assert (0, "") == (code, err)
    assert re.search(rf"^created_at +{SHOWN_CREATED} \(\d+[dy] ago\)$", out, re.MULTILINE)
    assert re.search(r"^host_network +yes$", out, re.MULTILINE)
    _, _, config = out.partition("config:\n")
    assert {"app": "web", "tier": "front"} == json.loads(config)["labels"]


def test_history_prints_a_line_for_each_transition(path: str) -> None:
    """The newest first."""
    code, out, err = run("--db", path, "history")
    assert (0, "") == (code, err)
    assert [("SEQ", "ID"), ("3", "5abc"), ("2", LONG[:8]), ("1", "3f2a")] == [
        (line.split()[0], line.split()[2]) for line in out.splitlines()
    ]


def test_reconcile_marks_closed_sandboxes_and_reports_them(path: str) -> None:
    """Beside a sandbox that is being created, and one whose namespace was never created."""
    gone = sandbox("6def", netns_path="/run/netns/never-created")
    with Store.open(path, reconcile=False) as store:
        store.add(gone, Status(State.READY, created_at=CREATED + 2))
    code, out, err = run("--db", path, "reconcile")
    assert (0, "") == (code, err)
    verdicts = {line.split()[0]: line.split()[1:5] for line in out.splitlines()}
    assert ["CLOSED", "yes", "NetNSClosed"] == verdicts["6def"][:3]
    assert ["CREATING", "no", "-"] == verdicts["5abc"][:3]
    assert LONG not in verdicts
    assert "sandboxes: 1 CLOSED, 1 CREATING, 1 HOST, 1 OPEN" == out.splitlines()[-1]


def test_check_finds_no_violation_in_a_sound_registry(path: str) -> None:
    """It prints that there are none."""
    assert Done(0, "no violations\n", "") == run("--db", path, "check")


def test_delete_deletes_one_sandbox(path: str) -> None:
    """It says of the network namespace that it is gone."""
    expected = f"deleted {LONG}; network namespace /run/netns/never-created is gone\n"
    assert Done(0, expected, "") == run("--db", path, "delete", "4f")
    assert [("3f2a",), ("5abc",)] == query(path, "SELECT id FROM sandboxes ORDER BY id")
    ((actor,),) = query(path, "SELECT actor FROM sandbox_transitions WHERE event = 'deleted'")
    assert re.fullmatch(r"sandbox-registry\[\d+\]", actor)


# Arguments and options of each verb.


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        ("", [LONG, "3f2a"]),
        ("--all", [LONG, "3f2a", "5abc"]),
        ("--state READY", ["3f2a"]),
        ("--state sandbox_notready", [LONG]),
        ("--state UNKNOWN", ["5abc"]),
        ("-s READY --state NOTREADY", [LONG, "3f2a"]),
        ("--state READY --state UNKNOWN --state READY", ["3f2a", "5abc"]),
        ("--selector app=web,tier!=back,!canary", ["3f2a"]),
        ("-l app!=web", [LONG]),
        ("-l app -l !app", [LONG]),
        ("-l app --label tier=front", ["3f2a"]),
        ("--oldest-first", ["3f2a", LONG]),
        ("--limit 1", [LONG]),
        ("--latest", [LONG]),
        ("--latest --sort id", [LONG]),
        ("--latest --oldest-first", [LONG]),
        ("-l", [LONG]),
        ("-l --state READY", ["3f2a"]),
        ("-l app=web", ["3f2a"]),
        ("-l app=web --selector tier=back", []),
        ("-n 1 --oldest-first --all", ["5abc"]),
        ("--last 2 -a", [LONG, "3f2a"]),
        ("--sort id", ["3f2a", LONG]),
        ("--sort -id -n 1", [LONG]),
        ("--sort created_at", ["3f2a", LONG]),
        ("--sort reason", [LONG, "3f2a"]),
        ("--since 2023-11-14", [LONG, "3f2a"]),
        ("--since 2999-01-01T00:00:00.000001Z", []),
        ("--since 1h", [LONG, "3f2a"]),
        ("--since 00:00+23:59", [LONG, "3f2a"]),
        ("--reason Broken", [LONG]),
        ("--filter state=ready", ["3f2a"]),
        ("--filter label=app --filter label=tier=front", ["3f2a"]),
        ("-f namespace=shop -f pod=web -f id=3 -f name=name-3f2a", ["3f2a"]),
        ("-f reason=Broken -f status=ready", []),
        ("--label app=web --label tier=front", ["3f2a"]),
        ("--label app=web --label tier=back", []),
        ("--label app=", []),
        ("--pod web", ["3f2a"]),
        ("--namespace shop", ["3f2a"]),
        ("--name name-3f2a", ["3f2a"]),
        ("--id 4f", [LONG]),
        ("--id 4f --state READY", []),
    ],
)
def test_list_returns_sandboxes_that_match_every_filter(
    call: Call, args: str, expected: list[str]
) -> None:
    """The filters are ANDed."""
    done = call("list", *args.split(), "--json")
    assert (0, "") == (done.code, done.err)
    assert expected == ids(done)


def test_list_since_is_about_the_present_state_and_not_the_creation(
    tmp_path: Path, main: Call
) -> None:
    """All sandboxes are two days old; one failed then, one fails now, one goes on."""
    path, now = str(tmp_path / "since.db"), time.time_ns()
    clock = [now - 2 * 86400 * 10**9]
    with Store.open(path, clock=lambda: clock[0]) as store:
        created = Status(State.READY, created_at=clock[0])
        old, fresh, _ = (store.add(sandbox(each, netns_path=""), created) for each in "abc")
        old.status.update(lambda status: replace(status, state=State.NOTREADY))
        clock[0] = now
        fresh.status.update(lambda status: replace(status, state=State.NOTREADY))
    wanted = ("list", "--db", path, "--json", "--since")
    assert ["b"] == ids(main(*wanted, "1h")) == ids(main(*wanted, "1d", "--state", "notready"))
    assert ["c", "b", "a"] == ids(main(*wanted, "3d"))
    assert ["c"] == ids(main(*wanted, "3d", "--latest"))


@pytest.mark.parametrize(
    ("command", "note"),
    [
        ("list --pod x", "no sandbox matches\n"),
        ("list --pod x --sort pod", "no sandbox matches\n"),
        ("history --since 2999-01-01", "no transition matches\n"),
    ],
)
def test_nothing_that_matches_is_a_header_and_a_note_or_an_empty_array(
    call: Call, command: str, note: str
) -> None:
    """Neither is an error, and programs get no note."""
    for form in ("table", "wide"):
        code, out, err = call(*command.split(), "-o", form)
        assert (0, 1, note) == (code, out.count("\n"), err)
    assert Done(0, "[]\n", "") == call(*command.split(), "--json")
    assert Done(0, "", "") == call(*command.split(), "-o", "name")
    assert Done(0, "", note) == call(*command.split(), "-q")


@pytest.mark.parametrize(
    ("command", "hint"),
    [
        ("list --reason broke", "no sandbox matches; there is no reason 'broke', only Broken"),
        ("list -f reason=broke", "no sandbox matches; there is no reason 'broke', only Broken"),
        ("list --namespace Shop", "no sandbox matches; there is no namespace 'Shop\\u200b', only "),
        ("list --namespace shop --pod x", "no sandbox matches\n"),
        ("history --reason x", "no transition matches; there is no reason 'x', only Broken\n"),
        ("history --reason broken --since 2999-01-01", "no transition matches\n"),
    ],
)
def test_a_reason_or_namespace_that_does_not_exist_is_told_with_those_that_do(
    call: Call, command: str, hint: str
) -> None:
    """A value that exists, and that other filters have left out, needs no hint."""
    command = command.replace("Shop", "Shop\u200b")
    code, _, err = call(*command.split())
    assert 0 == code
    assert err.startswith(hint)


def test_a_long_list_of_reasons_is_cut(call: Call, path: str) -> None:
    """The hint names the first ones."""
    with Store.open(path, reconcile=False) as store:
        for n in range(12):
            store.add(sandbox(f"r{n}"), Status(State.NOTREADY, reason=f"R{n:02}"))
    err = call("list", "--reason", "x").err
    assert "there is no reason 'x', only Broken, R00, R01, " in err
    assert err.endswith(", R08 and 3 more\n")


@pytest.mark.parametrize("word", ["broken", "BROKEN", "Broken"])
def test_a_reason_is_found_in_any_case(call: Call, word: str) -> None:
    """By each verb and each form of the filter."""
    assert [LONG] == ids(call("list", "--reason", word, "--json"))
    assert [LONG] == ids(call("list", "-f", f"reason={word}", "--json"))
    (found,) = json.loads(call("history", "--reason", word, "--json").out)
    assert (LONG, "Broken") == (found["sandbox_id"], found["reason"])


def test_list_shows_sandboxes_as_they_were_when_read(
    path: str, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A list is one snapshot: no state that the filter excludes, no error after a deletion."""
    read = summary.summaries

    def change_then_return(*args: Any, **filters: Any) -> Any:
        found = read(*args, **filters)
        execute(path, *statements)
        return found

    monkeypatch.setattr(listing, "summaries", change_then_return)
    statements = ["UPDATE sandbox_statuses SET state = 'SANDBOX_NOTREADY', changed_at = 9"]
    before = call("list", "--state", "READY", "--json")
    assert {"SANDBOX_READY"} == {each["state"] for each in json.loads(before.out)}
    statements = ["DELETE FROM sandboxes"]
    after = call("list", "--json")
    assert {"SANDBOX_NOTREADY"} == {each["state"] for each in json.loads(after.out)}
    assert Done(0, "[]\n", "") == call("list", "--json")


def test_list_includes_a_sandbox_whose_config_cannot_be_read(path: str, call: Call) -> None:
    """A list has the columns alone; inspect writes the cause to stderr, and its code is 1."""
    execute(path, "UPDATE sandboxes SET config = x'ff', config_json = '{}' WHERE id = '5abc'")
    code, out, err = call("list", "--all", "--json")
    assert (0, [LONG, "3f2a", "5abc"], "") == (code, [each["id"] for each in json.loads(out)], err)
    code, out, err = call("inspect", "5abc", "--json")
    assert (1, "5abc", None) == (code, json.loads(out)["id"], json.loads(out)["config"])
    assert re.fullmatch(r"sandbox-registry: error: read metadata of sandbox '5abc': .*\n", err)
    assert f"sandbox-registry: error: {json.loads(out)['error']}\n" == err


def test_inspect_finds_a_sandbox_under_creation(call: Call) -> None:
    """Values that are not set are null."""
    done = call("inspect", "5abc", "--json")
    found = json.loads(done.out)
    assert (0, "SANDBOX_UNKNOWN", None) == (done.code, found["state"], found["config"])
    assert (None, None, None) == (found["created_at"], found["exit_status"], found["cni_result"])


def test_inspect_prints_every_field_of_the_metadata(path: str, call: Call) -> None:
    """For programs, and a line each for people."""
    metadata = sandbox("6", additional_ips=("10.0.0.8", "::1"), cni_result=CNIResult(), ip="::2")
    with Store.open(path, reconcile=False) as store:
        store.add(metadata, NOTREADY)
    found = json.loads(call("inspect", "6", "--json").out)
    assert (["10.0.0.8", "::1"], {"Interfaces": None, "DNS": None, "Routes": None}) == (
        found["additional_ips"],
        found["cni_result"],
    )
    assert set(Metadata.__dataclass_fields__) | set(Status.__dataclass_fields__) <= set(found)
    assert '["10.0.0.8", "::1"]\n' in call("inspect", "6").out


def test_maps_of_a_config_are_sorted_by_key(path: str, call: Call) -> None:
    """In `inspect` and `check`; protobuf has them in another order in each process."""
    keys = [f"key-{n}" for n in range(10)]
    config = pod("web", **dict.fromkeys(reversed(keys), "x"))
    config.annotations.update(dict.fromkeys(reversed(keys), "x"))
    config.linux.sysctls.update(dict.fromkeys(reversed(keys), "x"))
    with Store.open(path, reconcile=False) as store:
        store.add(sandbox("6", config=config), Status(State.UNKNOWN))
    found = json.loads(call("inspect", "6", "--json").out)["config"]
    for each in (found["labels"], found["annotations"], found["linux"]["sysctls"]):
        assert keys == list(each)
    execute(path, "DELETE FROM sandbox_labels WHERE sandbox_id = '6'")
    (violation,) = json.loads(call("check", "--json").out)
    assert repr(dict.fromkeys(keys, "x")) == violation["expected"]


def test_history_takes_an_id_a_name_or_a_pod_also_of_a_deleted_sandbox(call: Call) -> None:
    """The same that inspect takes; of a deleted sandbox as the history has them."""
    for named in ("3f", "3f2a", "name-3f2a", "shop/web", "web"):
        found = json.loads(call("history", named, "--json").out)
        assert ["3f2a"] == [each["sandbox_id"] for each in found]
    call("delete", "3f2a")
    for named in ("3f", "3f2a", "name-3f2a", "shop/web", "web"):
        found = json.loads(call("history", named, "--json").out)
        assert [("SANDBOX_READY", None), (None, "SANDBOX_READY")] == [
            (each["from_state"], each["to_state"]) for each in found
        ]
    assert Done(0, "[]\n", "") == call("history", "3f2a", "--after", "99", "--json")
    for named in ("nope", "shop/nope", "nope/web"):
        assert 1 == call("history", named).code


def test_history_of_several_deleted_sandboxes_lists_them(path: str, call: Call) -> None:
    """An error with their ids."""
    for id in ("6a", "6b"):
        with Store.open(path, reconcile=False) as store:
            store.add(sandbox(id, config=pod("job", "shop")), NOTREADY)
            store.delete(id)
    code, out, err = call("history", "shop/job")
    assert (2, "") == (code, out)
    assert "read history of sandbox 'shop/job': 2 sandboxes match, the newest first: 6b, 6a;" in err


def test_inspect_takes_an_id_a_name_or_a_pod(path: str, call: Call) -> None:
    """Several matches are an error that lists them; a full id or name wins."""
    for named in ("3f", "3f2a", "name-3f2a", "shop/web", "web"):
        assert "3f2a" == json.loads(call("inspect", named, "--json").out)["id"]
    with Store.open(path, reconcile=False) as store:
        failed = Status(State.NOTREADY, created_at=CREATED + 1)
        store.add(Metadata("9e", "3f2a", pod("web", "other")), failed)
    assert "3f2a" == json.loads(call("inspect", "3f2a", "--json").out)["id"]
    assert "3f2a" == json.loads(call("inspect", "shop/web", "--json").out)["id"]
    code, out, err = call("inspect", "web")
    assert (2, "") == (code, out)
    assert (
        "2 sandboxes match, the newest first: 9e (3f2a, NOTREADY), 3f2a (name-3f2a, READY);" in err
    )
    assert 2 == call("inspect", "").code


def test_delete_names_the_id_of_a_name_or_a_pod(path: str, call: Call) -> None:
    """It deletes only by id, so that a script does not delete the next sandbox of the pod."""
    for named in ("name-3f2a", "shop/web", "web"):
        code, out, err = call("delete", named)
        assert (2, "") == (code, out)
        assert "the command takes an id, and sandbox 'name-3f2a' has id 3f2a" in err
        assert err.endswith(f"; use `sandbox-registry --db {path} delete 3f2a`\n")
    with Store.open(path, reconcile=False) as store:
        store.add(Metadata("9e", "other", pod("web", "other")), NOTREADY)
    assert "9e (other, NOTREADY)" in call("delete", "web").err
    assert 4 == len(ids(call("list", "--all", "--json")))


def test_history_obeys_after_and_limit(call: Call) -> None:
    """UNKNOWN, whose value is 0, is printed as a state."""

    def seqs(*args: str) -> list[int]:
        return [each["seq"] for each in json.loads(call("history", *args, "--json").out)]

    assert [3, 2] == seqs("--after", "1") == seqs("-n", "2") == seqs("--limit", "2")
    assert [2] == seqs("--after", "1", "--limit", "1", "--oldest-first")
    assert ([3, 2, 1], []) == (seqs("--since", "1h"), seqs("--since", "2999-01-01"))
    assert ([], [3, 2, 1]) == (seqs("--until", "1h"), seqs("--until", "2999-01-01"))
    assert ([2], []) == (seqs("--reason", "Broken"), seqs("--reason", "Broken", "--until", "1h"))
    (last,) = json.loads(call("history", "--after", "2", "--json").out)
    assert ("SANDBOX_UNKNOWN", None) == (last["to_state"], last["from_state"])


def test_history_that_is_no_longer_kept_is_code_1(path: str, call: Call) -> None:
    """A program that follows the history learns that it has missed transitions."""
    with closing(sqlite3.connect(path)) as connection, connection:
        for (name,) in connection.execute(
            "SELECT name FROM sqlite_master WHERE type = 'trigger'"
            " AND tbl_name = 'sandbox_transitions'"
        ).fetchall():
            connection.execute(f"DROP TRIGGER {name}")
        connection.execute("DELETE FROM sandbox_transitions WHERE seq < 3")
    code, out, err = call("history", "--after", "1")
    assert (1, "") == (code, out)
    assert "compacted" in err


def test_dry_run_writes_nothing_and_reports_the_same(path: str, call: Call) -> None:
    """Its counts equal those of the reconcile that follows."""
    with Store.open(path, reconcile=False) as store:
        store.add(sandbox("7", netns_path="/run/netns/never-created"), Status(State.READY))
    before = query(path, "SELECT * FROM sandbox_statuses ORDER BY sandbox_id")
    dry = json.loads(call("reconcile", "--dry-run", "--remove-orphans", "--json").out)
    assert before == query(path, "SELECT * FROM sandbox_statuses ORDER BY sandbox_id")
    assert {"5abc": False, "7": True} == {
        each["sandbox_id"]: each["would_change"] for each in dry["findings"] if not each["changed"]
    }
    shown = call("reconcile", "--dry-run").out
    assert "WOULD_CHANGE" in shown.splitlines()[0]
    assert re.search(r"^7 +CLOSED +yes +NetNSClosed", shown, re.MULTILINE)
    assert "dry run: nothing was changed" in shown
    wet = json.loads(call("reconcile", "--json").out)
    assert (dry["counts"], True, False) == (wet["counts"], dry["dry_run"], wet["dry_run"])
    assert [("7", "CLOSED", True, False)] == [
        (each["sandbox_id"], each["verdict"], each["changed"], each["would_change"])
        for each in wet["findings"]
        if each["changed"]
    ]
    assert [("SANDBOX_NOTREADY", "NetNSClosed")] == query(
        path, "SELECT state, reason FROM sandbox_statuses WHERE sandbox_id = '7'"
    )


def test_dry_run_would_not_change_what_is_not_ready(path: str, call: Call) -> None:
    """The verdict alone does not tell it."""
    with subprocess.Popen(["sleep", "60"]) as process:
        with Store.open(path, reconcile=False) as store:
            store.add(sandbox("7"), Status(State.NOTREADY, process.pid))
            store.add(sandbox("8"), Status(State.READY, process.pid))
        process.kill()
    out = call("reconcile", "--dry-run", "--json").out
    assert {("7", "EXITED", False), ("8", "EXITED", True)} < {
        (each["sandbox_id"], each["verdict"], each["would_change"])
        for each in json.loads(out)["findings"]
    }


@pytest.fixture
def orphans(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every reconcile find two orphans, the first of which cannot be removed."""

    def remove(store: Store, paths: list[str]) -> list[str]:
        if paths == ["/run/netns/sr-a"]:
            raise NetNSError("remove '/run/netns/sr-a': busy", path=paths[0], errno=16)
        return paths

    report = Report((), {}, ("/run/netns/sr-a", "/run/netns/sr-b"), {})
    monkeypatch.setattr(Store, "reconcile", lambda *_, **__: report)
    monkeypatch.setattr(Store, "remove_orphans", remove)


def test_reconcile_names_the_verdict_on_each_id(call: Call) -> None:
    """Also on those without a finding, which the counts have."""
    found = json.loads(call("reconcile", "--dry-run", "--json").out)
    assert {"3f2a": "HOST", LONG: "OPEN", "5abc": "CREATING"} == found["verdicts"]
    assert 1 == found["counts"]["OPEN"]


def test_the_help_of_reconcile_explains_each_verdict() -> None:
    """Without the documents."""
    out = run("reconcile", "--help").out
    for verdict in Verdict:
        assert re.search(rf"^    {verdict} +\w", out, re.MULTILINE)


def test_orphans_are_reported_with_a_warning(orphans: None, call: Call) -> None:
    """They are removed only on request, and never by a dry run."""
    assert Done(
        0,
        "sandboxes: none\n"
        "orphan /run/netns/sr-a: no sandbox owns it\n"
        "orphan /run/netns/sr-b: no sandbox owns it\n"
        f"{ORPHANS}\n",
        "",
    ) == call("reconcile")
    assert "--remove-orphans" in ORPHANS
    assert "no copy and was not restored from a backup" in ORPHANS
    assert (
        []
        == json.loads(call("reconcile", "--dry-run", "--remove-orphans", "--json").out)["removed"]
    )


def test_an_orphan_that_cannot_be_removed_does_not_stop_the_rest(orphans: None, call: Call) -> None:
    """The report is printed too, and the code is 1."""
    code, out, err = call("reconcile", "--remove-orphans", "--json")
    found = json.loads(out)
    assert (1, ["/run/netns/sr-b"]) == (code, found["removed"])
    assert ["/run/netns/sr-a", "/run/netns/sr-b"] == found["orphans"]
    assert "sandbox-registry: error: remove '/run/netns/sr-a': busy\n" == err
    out = call("reconcile", "--remove-orphans").out
    assert "orphan /run/netns/sr-a: not removed\norphan /run/netns/sr-b: removed\n" in out
    assert "restored" not in out


def test_check_reports_violations_with_code_1(path: str, call: Call) -> None:
    """The output is a table, or an array."""
    execute(path, "DROP VIEW why_not_ready", "DROP VIEW sandbox_overview")
    code, out, err = call("check")
    assert (1, "", 3) == (code, err, len(out.splitlines()))
    code, out, err = call("check", "--json")
    assert (1, "") == (code, err)
    assert ["schema_is_whole"] * 2 == [each["rule"] for each in json.loads(out)]


def test_second_delete_reports_a_missing_sandbox(call: Call) -> None:
    """The output has the full id, or the argument if there is no such sandbox."""
    assert {"id": "5abc", "deleted": True} == json.loads(call("delete", "5", "--json").out)
    code, out, err = call("delete", "5", "--json")
    assert (1, {"id": "5", "deleted": False}) == (code, json.loads(out))
    assert "sandbox-registry: error: delete sandbox '5': there is no such sandbox\n" == err


@pytest.mark.parametrize(
    "verb", ["list", "inspect 3f2a", "history", "reconcile --dry-run", "check", "export"]
)
def test_reading_verbs_leave_the_file_unchanged(path: str, call: Call, verb: str) -> None:
    """No lock file is made either."""
    for file in Path(path).parent.glob("*-lock"):
        file.unlink()
    before = Path(path).read_bytes()
    assert 0 == call(*verb.split()).code
    assert before == Path(path).read_bytes()
    assert [] == list(Path(path).parent.glob("*-lock"))
