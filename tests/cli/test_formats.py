"""Formats of the output: tables, ids, ages, and what programs read."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import time
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from registry import Store
from registry.__main__ import ABOVE
from registry.cli import program
from registry.cli.moments import Moment, read_moment
from registry.cli.output import formats
from registry.cli.output.cells import cut, width
from registry.cli.output.ids import LEAST, shortened
from registry.cli.output.terminal import fit, render
from registry.cli.output.values import age, clock_time
from tests.cli.program import CREATED, LONG, SHOWN_CREATED, Call, Done, clean, run
from tests.tools import READY, pod, python, sandbox

SECOND = 10**9


# Short ids, ages, widths.


@given(st.sets(st.text("01", min_size=1, max_size=30), max_size=40))
def test_no_other_id_begins_with_a_short_id(ids: set[str]) -> None:
    """Unless it is the whole id, which wins over longer ones."""
    short = shortened(ids)
    assert ids == short.keys()
    for id, cut_id in short.items():
        assert id.startswith(cut_id)
        assert len(cut_id) >= min(LEAST, len(id))
        assert [id] == [each for each in ids if each.startswith(cut_id)] or cut_id == id


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        *((-5, "0s"), (0, "0s"), (119, "119s"), (120, "2m"), (7199, "119m"), (7200, "2h")),
        *((172_799, "47h"), (172_800, "2d"), (63_071_999, "729d"), (63_072_000, "2y")),
    ],
)
def test_an_age_has_the_largest_unit_of_which_there_are_two(seconds: int, expected: str) -> None:
    """A time in the future, by another clock, has no age."""
    assert expected == age(CREATED, CREATED + seconds * SECOND)


def test_a_cell_is_cut_by_columns_not_by_characters() -> None:
    """A wide character has two columns, a combining one none."""
    assert ["abc", "ab…", "…"] == [cut("abc", 3), cut("abcd", 3), cut("abcd", 1)]
    assert "漢…" == cut("漢字漢字", 4)
    assert 3 == width(cut("漢字漢字", 4))
    assert "e\u0301e\u0301…" == cut("e\u0301" * 5, 3)
    assert "web-7c…-9l4wq" == cut("web-7c5ddbdf54-9l4wq", 13, middle=True)
    assert "漢…字" == cut("漢字漢字", 6, middle=True)


def test_the_widest_columns_are_cut_first() -> None:
    """And none below its least width: the table may stay too wide."""
    for room, expected in ((200, [8, 60, 20]), (48, [8, 20, 20]), (30, [8, 11, 11]), (9, [8] * 3)):
        sizes = [8, 60, 20]
        fit(sizes, room, [LEAST] * len(sizes))
        assert expected == sizes


def test_several_columns_are_folded_until_the_table_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between words: a path stays whole, and its column as wide; a cell goes on below itself."""
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("NO_COLOR", "1")
    words, path = "one word after another, and more of them still", "/run/netns/of-a-long-name"
    table = render(
        [["RULE", "r"], ["AT", path], ["FOUND", words], ["EXPECTED", words]],
        titled=True,
        cuts=False,
        folds=True,
    )
    lines = table.splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[1].startswith(f"r     {path}  one")
    assert lines[1].endswith("  one word after")


# Formats.


def test_yaml_of_many_objects_is_written_in_parts_as_one_document(
    call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its nodes would take 400 MB of 20,000 objects."""
    whole = call("list", "--all", "-o", "yaml").out
    none = call("list", "--pod", "x", "-o", "yaml").out
    monkeypatch.setattr(formats, "PART", 2)
    assert whole == call("list", "--all", "-o", "yaml").out
    assert "[]\n" == none == call("list", "--pod", "x", "-o", "yaml").out


def test_wide_has_exact_times_and_more_columns(call: Call) -> None:
    """Ids are short, unless --no-trunc is given."""
    header, line, _ = call("list", "-o", "wide").out.splitlines()
    assert {"CREATED", "PID", "IP", "NETNS", "NAME"} < set(header.split())
    assert line.startswith(f"{LONG[:LEAST]}  NOTREADY")
    assert "2023-11-14T22:13:20.123456790Z" in line
    assert call("list", "-o", "wide", "--no-trunc").out.splitlines()[1].startswith(LONG)


def test_custom_columns_are_fields_and_paths_into_them(call: Call) -> None:
    """As kubectl has them; a value that is missing is a dash."""
    columns = "ID:.id,APP:{.labels.app},NONE:labels.none,AT:created_at,NS:created_at_ns"
    done = call("list", "-o", f"custom-columns={columns}", "--state", "ready")
    expected = ["3f2a", "web", "-", SHOWN_CREATED, str(CREATED)]
    assert [["ID", "APP", "NONE", "AT", "NS"], expected] == [
        line.split() for line in done.out.splitlines()
    ]
    done = call("inspect", "3f2a", "-o", "custom-columns=UID:config.metadata.uid", "--no-headers")
    assert Done(0, "uid-1\n", "") == done


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        ("-o tabel", "'tabel' is none of table, wide, json, yaml, jsonl, name"),
        ("-o custom-columns=pod", "'pod' is not TITLE:FIELD"),
        ("-o custom-columns=A:pod,A:id", "'A' is given twice"),
        ("-o custom-columns=A:pdo", "print the field 'pdo': there is no such field; the fields"),
        ("--sort pdo", "sort by the field 'pdo': there is no such field; the fields are id, name"),
        ("--since yesterday", "'yesterday' is neither a duration such as 30m"),
        ("--filter colour=red", "is not KEY=VALUE with a KEY of id, label, name, namespace"),
        ("--filter pod", "is not KEY=VALUE"),
        ("--filter pod=a --pod b", "'pod' cannot have two values"),
        ("-n 0", "0 is not between 1 and"),
    ],
)
def test_a_mistake_in_an_option_of_the_output_is_usage(
    call: Call, args: str, expected: str
) -> None:
    """The error says what is possible, and the registry is not read."""
    code, out, err = call("list", *args.split())
    assert (2, "", True) == (code, out, expected in err), err


@pytest.mark.parametrize("title", ["TIME", "time", "At"])
def test_the_title_of_a_column_names_its_field(call: Call, title: str) -> None:
    """In any case of its letters, of a table and of a wide one, and so does a field."""
    columns = "custom-columns=T:{},ID:{},TO:{}".format
    named = call("history", "-o", columns(title, "Id", "to"))
    assert call("history", "-o", columns("at", "sandbox_id", "to_state")) == named
    assert 0 == named.code


def test_a_list_is_sorted_by_the_title_of_a_column(call: Call) -> None:
    """`AGE` is the time of the creation."""
    for sort, field in (("age", "created_at"), ("-AGE", "-created_at"), ("Netns", "netns_path")):
        expected = call("list", "--all", "--json", "--sort", field)
        assert (0, expected.out) == call("list", "--all", "--json", "--sort", sort)[:2]


def test_quiet_prints_whole_ids_and_name_prints_names(call: Call) -> None:
    """One on a line, for a shell."""
    assert f"{LONG}\n3f2a\n" == call("list", "-q").out == call("ls", "--quiet").out
    assert "name-3f2a\n" == call("ps", "-o", "name", "--state", "ready").out
    assert f"5abc\n{LONG}\n3f2a\n" == call("history", "-q").out
    assert "3f2a\n" == call("list", "-q", "--sort", "-created_at", "--state", "ready").out


def test_no_headers_leaves_out_the_titles(call: Call) -> None:
    """The lines are the same."""
    whole, bare = (call("list", "-o", "wide", *each).out for each in ([], ["--no-headers"]))
    assert [line.split() for line in whole.splitlines()[1:]] == [
        line.split() for line in bare.splitlines()
    ]
    assert "" == call("list", "--no-headers", "--pod", "x").out


def test_a_format_stands_before_the_verb_or_after_it(path: str, main: Call) -> None:
    """The one after the verb takes precedence; verbs without formats take no notice."""
    whole = json.loads(main("--db", path, "list", "--json").out)
    for args in (["--json", "list"], ["-o", "json", "list"], ["-o", "yaml", "list", "--json"]):
        assert whole == json.loads(main("--db", path, *args).out)
    assert "name-3f2a" in main("--json", "--db", path, "list", "-o", "name").out
    assert 0 == main("--json", "--db", path, "export").code


def test_programs_lose_no_digit_of_a_time(call: Call) -> None:
    """The integer is text: jq and JavaScript have floating point numbers."""
    found = json.loads(call("list", "--state", "ready", "--json").out)[0]
    assert (SHOWN_CREATED, str(CREATED)) == (found["created_at"], found["created_at_ns"])
    assert (None, None) == (found["exited_at"], found["exited_at_ns"])


def test_a_pod_with_the_name_of_a_state_keeps_it(path: str, call: Call) -> None:
    """Only states are shortened."""
    with Store.open(path, reconcile=False) as store:
        store.add(sandbox("77", config=pod("SANDBOX_READY")), READY)
    assert ["READY", "SANDBOX_READY"] == [
        call("list", "--id", "77").out.split()[-n] for n in (6, 2)
    ]


def test_a_format_without_its_library_names_the_extra(path: str) -> None:
    """As for click."""
    code = """
        import sys
        sys.modules["yaml"] = None
        from registry.__main__ import main
        sys.exit(main())
        """
    done = subprocess.run(
        python(code, "--db", path, "list", "-o", "yaml"),
        env=clean(),
        capture_output=True,
        text=True,
        check=False,
    )
    expected = "sandbox-registry: error: this needs yaml: install sandbox-registry[cli]\n"
    assert (2, "", expected) == (done.returncode, done.stdout, done.stderr)


# Times on the command line.


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90s", 90), ("30m", 1800), ("1h30m", 5400), ("2d", 172_800), ("1w", 604_800)],
)
def test_a_duration_is_before_now(text: str, seconds: int) -> None:
    """In units of a shell's sleep, and weeks."""
    before = time.time_ns()
    found = Moment().convert(text, None, None)
    assert before <= found + seconds * SECOND <= time.time_ns()


@pytest.mark.parametrize(
    "text", ["2023-11-14T22:13:20Z", "2023-11-14T22:13:20", "2023-11-14T23:13:20+01:00"]
)
def test_a_date_without_a_zone_is_utc(text: str) -> None:
    """As the times that the program prints."""
    assert 1_700_000_000 * SECOND == Moment().convert(text, None, None)


@pytest.mark.parametrize(
    ("text", "since", "expected"),
    [
        ("02:59", None, "2026-11-27T02:59:00"),
        ("03:00", None, "2026-11-27T03:00:00"),
        ("22:00", None, "2026-11-26T22:00:00"),
        ("05:30+02:00", None, "2026-11-26T03:30:00"),
        ("03:10", "2026-11-26T22:00:00", "2026-11-27T03:10:00"),
        ("23:00", "2026-11-26T22:00:00", "2026-11-26T23:00:00"),
        ("2026-11-27T22:00", None, "2026-11-27T22:00:00"),
    ],
)
def test_a_clock_time_that_is_still_ahead_is_of_yesterday(
    text: str, since: str | None, expected: str
) -> None:
    """Unless the range, which begins before, would end before it begins; at three at night."""
    now = _ns("2026-11-27T03:00:00")
    begin = None if since is None else _ns(since)
    assert _ns(expected) == read_moment(text, now, begin)


def _ns(text: str) -> int:
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()) * SECOND


@pytest.mark.parametrize(
    ("args", "why"),
    [
        ("--since 2026-11-27T21:19 --until 2026-11-27T21:18", "(2026-11-27T21:18:00.000000000Z)"),
        ("--until 2026-11-27 --since 2026-11-28", "--since, 2026-11-28T00:00:00.000000000Z; give "),
        ("--since 1h --until 2h", "'2h' ("),
    ],
)
def test_a_range_that_ends_before_it_begins_is_an_error(call: Call, args: str, why: str) -> None:
    """In either order of the options."""
    code, out, err = call("history", *args.split())
    assert (2, "") == (code, out)
    assert "Invalid value for '--until': " in err
    assert why in err


@pytest.mark.parametrize(
    ("moment", "text"),
    [
        ("2026-11-27T00:00:00", "00:00:00Z"),
        ("2026-11-27T23:59:59.9", "23:59:59Z"),
        ("2026-11-26T23:55:03", "11-26T23:55:03Z"),
        ("2025-11-27T09:12:03", "2025-11-27T09:12:03Z"),
    ],
)
def test_a_time_by_the_clock_leaves_out_what_it_shares_with_today(moment: str, text: str) -> None:
    """The date of today, or the year."""
    now, at = (
        int(datetime.fromisoformat(f"{each}+00:00").timestamp() * 10) * SECOND // 10
        for each in ("2026-11-27T20:00:00", moment)
    )
    assert text == clock_time(at, now)


def test_a_time_of_this_year_can_be_given_as_the_history_shows_it() -> None:
    """Without the year; UTC."""
    years = {datetime.now(UTC).year}
    found = Moment().convert("01-02T03:04:05Z", None, None), Moment().convert("01-02", None, None)
    years.add(datetime.now(UTC).year)  # it may be New Year
    days = [datetime(year, 1, 2, tzinfo=UTC).timestamp() for year in years]
    assert found in {((day + 11045) * SECOND, day * SECOND) for day in days}


@pytest.mark.parametrize("text", ["13:05", "13:05:00", "13:05Z", "14:05+01:00"])
def test_a_time_without_a_date_is_of_today_in_utc(text: str) -> None:
    """Today by UTC, also if it is another day where the operator is."""
    now = _ns("2026-11-27T20:00:00")
    assert _ns("2026-11-27T13:05:00") == read_moment(text, now)


# The help, and progress.


@pytest.mark.parametrize("verb", [*program.VERBS, *ABOVE])
def test_the_help_of_a_verb_ends_with_examples(verb: str) -> None:
    """Nothing is cut, and each option has a metavar that can be read."""
    code, out, err = run(verb, "--help")
    assert (0, "") == (code, err)
    assert re.search(r"\n  Examples:\n(    sandbox-registry .*\n){1,2}$", out)
    assert not re.search(r"\.\.\.(?!$|\n|  )", out.replace("FILE...", "").replace("[ID...]", ""))
    assert not re.search(r"[<{]\w+", out)


def test_an_unknown_verb_and_option_name_those_that_are_alike(call: Call) -> None:
    """One line on stderr."""
    assert "Did you mean one of: 'inspect'" in call("inspct", "3f").err
    assert "'--namespace'" in call("list", "--namspace", "x").err


def test_version_is_printed_without_click(path: str) -> None:
    """And by the group of verbs, beside other options."""
    code = "import sys; from registry.__main__ import main; main(); print('click' in sys.modules)"
    done = subprocess.run(python(code, "--version"), capture_output=True, text=True, check=False)
    version, loaded = done.stdout.splitlines()
    assert "False" == loaded
    assert f"{version}\n" == run("--db", path, "--version").out


@pytest.mark.parametrize("terminal", [True, False], ids=["terminal", "pipe"])
def test_progress_is_shown_on_a_terminal_alone(terminal: bool) -> None:
    """A pipe on stderr gets nothing, and rich is not imported."""
    code = """
        import sys, time
        from registry.cli.output import progress
        progress.DELAY = 0
        with progress.Progress("the [b]work[/b]") as bar:
            while sys.stderr.isatty() and bar._bar is None:
                time.sleep(0.01)
            bar(1, 2)
        print("rich" in sys.modules)
        """
    reader, writer = pty.openpty() if terminal else os.pipe()
    env = clean(TERM="xterm")
    with subprocess.Popen(
        python(code), env=env, stdout=subprocess.PIPE, stderr=writer, text=True
    ) as done:
        out, _ = done.communicate()
    os.write(writer, b"end\n")
    shown = os.read(reader, 1 << 16).decode()
    os.close(reader)
    os.close(writer)
    assert (f"{terminal}\n", terminal) == (out, "the [b]work[/b]" in shown)
