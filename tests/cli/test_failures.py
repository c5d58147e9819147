"""Errors of the command line: which registry, exit codes, one line on stderr."""

from __future__ import annotations

import ast
import json
import os
import re
import shlex
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from importlib.metadata import version
from pathlib import Path

import pytest

import registry
from registry import Store
from registry.cli.failures import ADVICE
from tests import needs
from tests.cli.program import (
    Call,
    Done,
    clean,
    run,
)
from tests.tools import NOTREADY, environment, execute, pod, sandbox

# Path of the registry.


def test_registry_is_named_after_the_verb_before_it_or_by_the_environment(
    path: str, tmp_path: Path, main: Call
) -> None:
    """The first of these takes precedence."""
    other = str(tmp_path / "other.db")
    assert 0 == main("check", "--db", path).code
    assert 0 == main("check", SANDBOX_REGISTRY_DB=path).code
    assert 0 == main("--db", path, "check", SANDBOX_REGISTRY_DB=other).code
    assert 0 == main("--db", other, "check", "--db", path, SANDBOX_REGISTRY_DB=other).code
    assert 3 == main("--db", path, "check", "--db", other, SANDBOX_REGISTRY_DB=path).code


def test_no_registry_named_is_usage(main: Call) -> None:
    """The error has both ways to name one."""
    for variables in ({}, {"SANDBOX_REGISTRY_DB": ""}):
        code, out, err = main("list", **variables)
        assert (2, "", 1) == (code, out, err.count("\n"))
        assert "--db" in err
        assert "SANDBOX_REGISTRY_DB" in err


# Exit codes.


@pytest.mark.parametrize(
    "args",
    [
        "lst",
        "",
        "list --foo",
        "list surplus",
        "inspect",
        "list --state RUNNING",
        "list --state=",
        "list --limit 0",
        "list --limit x",
        "list --state READY --state GONE",
        "list --selector app,",
        "list -l app=web,tier=(db)",
        "list --label app",
        "list --label app=a --label app=b",
        "list --label app!=web",
        "list --label app==web",
        "list --label !app=web",
        "list --label =web",
        "list --label app=web,tier=db",
        "list --label -app=web",
        "list --label app/=web",
        "list --label /app=web",
        "list --label a/b/c=web",
        "list --label UPPER.example/app=web",
        f"list --label {'a' * 64}=web",
        f"list --label {'a.' * 127}a/app=web",
        "list --id=",
        "list --db=",
        "history --after -1",
        "history --after x",
        "history --limit 9223372036854775808",
        "delete 3f2a --timeout nan",
        "delete 3f2a --timeout inf",
        "delete 3f2a --timeout -1",
        "delete --",
    ],
)
def test_bad_arguments_are_usage(call: Call, args: str) -> None:
    """Code 2, nothing on stdout, one line on stderr."""
    code, out, err = call(*args.split())
    assert (2, "") == (code, out)
    assert re.fullmatch(r"sandbox-registry: error: .+\n", err)


@pytest.mark.parametrize("text", ["app in (a,b)", "app notin (a=b)", "!app", "app", "a b=c"])
def test_selector_with_an_operator_is_usage(call: Call, text: str) -> None:
    """It would match nothing; the message has the accepted form."""
    code, out, err = call("list", "--label", text)
    assert (2, "") == (code, out)
    assert f"{text!r} is not KEY=VALUE" in err


@pytest.mark.parametrize("key", ["app", "A.b_c-d", "io.kubernetes.pod/name", "a" * 63, "0"])
def test_label_key_of_kubernetes_is_accepted(path: str, call: Call, key: str) -> None:
    """Its value may contain any operator but a leading `=` or a comma."""
    with Store.open(path, reconcile=False) as store:
        store.add(sandbox("9", config=pod("labelled", **{key: "a=b c"})), NOTREADY)
    code, out, _ = call("list", "--label", f"{key}=a=b c", "--json")
    assert (0, ["9"]) == (code, [each["id"] for each in json.loads(out)])


def test_no_error_names_a_parameter_of_the_library() -> None:
    """Each advice that does is replaced by one for operators."""
    found = set()
    for file in Path(registry.__file__).parent.rglob("*.py"):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        docstrings = {id(each.value) for each in ast.walk(tree) if isinstance(each, ast.Expr)}
        for node in ast.walk(tree):
            if not isinstance(node, ast.Constant) or id(node) in docstrings:
                continue
            if isinstance(node.value, str):
                found |= set(re.findall(r"[^;]*\b\w+=(?:True|False)\b", node.value))
                assert "include_unknown" not in node.value
    assert {text.strip() for text in found} == ADVICE.keys()


@needs.namespaces
@pytest.mark.parametrize("verb", ["reconcile", "delete 3f2a", "import /dev/null"])
def test_error_on_a_read_only_mount_advises_operators(path: str, verb: str) -> None:
    """The advice lists the verbs that work, and names no parameter of the library."""
    folder = os.path.dirname(path)
    program = shlex.join([sys.executable, "-m", "registry", "--db", path, *verb.split()])
    script = f"mount --bind {folder} {folder} && mount -o remount,ro,bind {folder} && cd / && exec"
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", f"{script} {program}"],
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert (3, "") == (done.returncode, done.stdout)
    assert "mount its file system writable" in done.stderr
    assert "read_only=" not in done.stderr


def test_error_for_an_older_schema_names_the_verb_that_upgrades(path: str) -> None:
    """`list` only reads, so it does not upgrade."""
    execute(path, "UPDATE registry SET level = 0, min_reader = 0, min_writer = 0")
    done = run("--db", path, "list")
    assert 3 == done.code
    assert "`sandbox-registry upgrade` brings it up to date" in done.err


def test_unknown_verb_is_usage() -> None:
    """The error suggests a similar verb."""
    code, out, err = run("lst")
    assert (2, "") == (code, out)
    assert "sandbox-registry: error: No such command 'lst'. Did you mean 'list'?" in err


@pytest.mark.parametrize(
    ("args", "hint"),
    [
        ("get", "No such command 'get'. Did you mean 'list'? (see sandbox-registry --help)"),
        ("rm a", "Did you mean 'delete'?"),
        ("events", "Did you mean 'watch'?"),
        ("describe a", "Did you mean 'inspect'?"),
        ("logs a", "Did you mean 'history'?"),
        ("help", "Did you mean '--help'?"),
        ("pods", "Did you mean 'list'?"),
        (
            "reconcile -n",
            "No such option '-n'. Did you mean '--dry-run'? (see sandbox-reg",
        ),
        ("upgrade -n", "Did you mean '--dry-run'?"),
        ("check -n", "No such option '-n'. (see sandbox-registry check --help)"),
        ("list web-0", "argument 'web-0'. Did you mean `inspect web-0` or `--pod web-0`? (see"),
        ("list -n shop", "'shop' is not a whole number; -n is the limit, and --namespace the"),
        ("list -A", "The sandboxes of all namespaces are listed, unless --namespace filters them."),
        ("ls --all-namespaces", "No such option '--all-namespaces'. The sandboxes of all"),
        ("delete --latest", "No such option '--latest'. (see sandbox-registry delete --help)"),
    ],
)
def test_a_habit_of_another_program_gets_a_hint(call: Call, args: str, hint: str) -> None:
    """Verbs and options of kubectl, crictl and podman."""
    code, out, err = call(*args.split())
    assert (2, "", True) == (code, out, hint in err), err


@pytest.mark.parametrize(
    "args", ["list --foo", "ls surplus", "inspect", "list --state RUNNING", "sql 1 --limit x"]
)
def test_an_error_of_usage_names_the_help_of_the_verb(call: Call, args: str) -> None:
    """Also where the verb itself finds the error, which click does not."""
    err = call(*args.split()).err
    verb = args.split(maxsplit=1)[0]
    assert err.endswith(f" (see sandbox-registry {verb} --help)\n")


def test_the_bare_command_prints_the_help_as_an_error(main: Call) -> None:
    """On stderr: a script that forgot the verb must not take it for output."""
    code, out, err = main()
    assert (2, "") == (code, out)
    assert err == main("--help").out


def test_an_ambiguous_prefix_is_usage(path: str, call: Call) -> None:
    """The error names the operation, and all ids that begin with the prefix."""
    with Store.open(path, reconcile=False) as store:
        store.add(sandbox("3f2b"), NOTREADY)
    operations = {"history": "read history of", "inspect": "inspect", "delete": "delete"}
    for verb, operation in (operations | {"export": "export"}).items():
        code, out, err = call(verb, "3f")
        assert (2, "") == (code, out)
        assert f"error: {operation} sandbox '3f': 2 sandboxes match, the newest first: " in err
        assert "3f2a" in err
        assert "3f2b" in err


@pytest.mark.parametrize("verb", ["inspect", "delete", "history"])
def test_missing_sandbox_is_code_1(call: Call, verb: str) -> None:
    """One line on stderr names the sandbox."""
    code, out, err = call(verb, "nope")
    assert (1, "") == (code, out)
    assert re.fullmatch(r"sandbox-registry: error: .*'nope'.*\n", err)


def test_version_needs_no_registry(main: Call) -> None:
    """It is the version of the distribution."""
    assert (0, f"sandbox-registry {version('sandbox-registry')}\n", "") == main("--version")


@pytest.mark.parametrize("verb", ["list", "check", "reconcile", "reconcile --dry-run", "delete a"])
def test_missing_file_is_unavailable_and_stays_missing(
    main: Call, tmp_path: Path, verb: str
) -> None:
    """A disk that is not mounted yet must not look like an empty node."""
    missing = tmp_path / "a" / "registry.db"
    code, out, err = main("--db", str(missing), *verb.split())
    assert (3, "") == (code, out)
    assert re.fullmatch(r"sandbox-registry: error: .*registry\.db.*\n", err)
    assert [] == list(tmp_path.iterdir())


@pytest.mark.parametrize("verb", ["list", "reconcile"])
def test_file_that_is_no_registry_is_unavailable(main: Call, tmp_path: Path, verb: str) -> None:
    """A binary file, an empty one, and a database of another program."""
    (tmp_path / "binary.db").write_bytes(bytes(range(256)) * 64)
    (tmp_path / "empty.db").touch()
    execute(str(tmp_path / "other.db"), "CREATE TABLE sandboxes (id)")
    for name in ("binary.db", "empty.db", "other.db"):
        code, out, err = main("--db", str(tmp_path / name), verb)
        assert (3, "") == (code, out)
        assert re.fullmatch(rf"sandbox-registry: error: .*{name}.*\n", err)


def test_a_directory_is_usage(main: Call, tmp_path: Path) -> None:
    """The error names a file in it to use instead."""
    code, out, err = main("--db", str(tmp_path), "list")
    assert (2, "") == (code, out)
    assert "registry.db" in err


@pytest.mark.parametrize("column", ["level = 0", "level = 9, min_reader = 9, min_writer = 9"])
def test_a_schema_of_another_level_is_unavailable(path: str, call: Call, column: str) -> None:
    """Both older and newer ones, for a verb that only reads."""
    execute(path, f"UPDATE registry SET {column}")
    code, out, err = call("list")
    assert (3, "") == (code, out)
    assert re.fullmatch(r"sandbox-registry: error: .* schema .*\n", err)


@pytest.mark.parametrize("verb", ["delete 3f2a", "reconcile"])
def test_a_locked_registry_is_unavailable_after_the_timeout(path: str, verb: str) -> None:
    """Reading verbs work meanwhile."""
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        code, out, err = run("--db", path, *verb.split(), "--timeout", "0.2")
        assert 0 == run("--db", path, "list").code
    assert (3, "") == (code, out)
    assert re.fullmatch(r"sandbox-registry: error: .*\n", err)


def test_ctrl_c_ends_the_program_with_130(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is written."""

    def interrupted(*args: object, **options: object) -> None:
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(Store, "open", interrupted)
    assert Done(130, "", "") == call("list")


@pytest.mark.parametrize(
    ("missing", "extra", "verb"),
    [
        *(("click", "cli", "serve"), ("grpc", "shim", "serve")),
        ("prometheus_client", "metrics", "metrics"),
    ],
)
def test_missing_dependency_names_the_extra_to_install(
    missing: str, extra: str, verb: str, path: str
) -> None:
    """The library itself works without them."""
    code = (
        f"import sys; sys.modules[{missing!r}] = None\n"
        f"sys.argv[1:] = [{verb!r}, '--db', {path!r}]\n"
        "from registry.__main__ import main; sys.exit(main())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=clean(), capture_output=True, text=True, check=False
    )
    expected = f"sandbox-registry: error: this needs {missing}: install sandbox-registry[{extra}]\n"
    assert (2, "", expected) == (done.returncode, done.stdout, done.stderr)
