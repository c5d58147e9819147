"""Every code block of the documents is run by a test, or is an exception with a reason."""

from __future__ import annotations

import fnmatch
import json
import re
import subprocess
import sys
from base64 import b64encode
from collections import Counter
from pathlib import Path

import pytest

from registry import State, Status, Store
from tests import needs
from tests.documents import all_blocks
from tests.tools import ROOT, environment, query, sandbox

WHOLE = {
    ("*", "python"): "tests/docs/test_docs.py::test_python_snippet_runs_twice",
    ("*", "sql"): "tests/docs/test_docs.py::test_sql_snippet_runs",
    ("docs/api.md", "py"): (
        "tests/docs/test_api.py::test_api_shows_every_public_name_as_the_code_has_it"
    ),
    ("docs/cli.md", "console"): (
        "tests/cli/test_docs_cli.py::test_examples_print_the_documented_output"
    ),
    ("docs/fleet.md", "sql"): "tests/fleet/test_docs.py::test_twenty_questions_have_answers",
    ("docs/questions.md", "text"): (
        "tests/docs/test_questions.py::test_the_page_is_what_make_questions_generates"
    ),
}
"""The test that runs every block of a language in the documents of a pattern."""

MAKE = "the tests are what these targets run; another test finds the targets"
PARTS = {
    ("CONTRIBUTING.md", "console"): {
        MAKE: 2,
        "runs the unit tests, which are run anyway": 1,
        "writes a revision into the checkout": 1,
    },
    ("README.md", "console"): {
        MAKE: 1,
        "installs from an index of packages; `make wheel` installs what was built": 1,
    },
    ("docs/browse.md", "sh"): {
        "tests/browse/test_server.py::test_the_command_of_the_document_serves_the_page": 1
    },
    ("docs/differences.md", "sh"): {
        "tests/docs/test_blocks.py::test_the_commands_of_an_import_from_containerd_run": 1
    },
    ("docs/fleet.md", "sh"): {
        "tests/fleet/test_docs.py::test_setup_runs_as_it_stands": 2,
        "tests/fleet/test_docs.py::test_rule_12_certificate_is_the_identity_of_a_node": 1,
    },
    ("docs/fleet.md", "text"): {
        "tests/fleet/test_docs.py::test_setup_runs_as_it_stands": 2,
        "tests/fleet/test_docs.py::test_rule_12_certificate_is_the_identity_of_a_node": 2,
    },
    ("docs/metrics.md", "sh"): {
        "tests/docs/test_blocks.py::test_the_command_of_the_textfile_collector_runs": 1
    },
    ("docs/operators.md", "sh"): {
        "tests/cli/test_backups.py::test_the_recipes_of_the_document_work": 3,
        (
            "tests/cli/test_backups.py::test_the_recipe_of_the_document_brings_a_lost_sandbox_back"
        ): 1,
        "tests/maintenance/test_salvage.py::test_the_recipe_for_operators_runs": 2,
        "tests/docs/test_blocks.py::test_a_backup_by_the_sqlite_shell_runs": 1,
        "tests/docs/test_blocks.py::test_the_way_back_from_an_upgrade_runs": 1,
    },
    ("docs/questions.md", "sh"): {
        "tests/docs/test_blocks.py::test_the_command_of_the_questions_runs": 1
    },
    ("docs/schema.md", "text"): {"a drawing": 1},
    ("docs/shim.md", "console"): {
        "tests/shim/test_docs.py::test_pod_of_docs_is_run_by_the_calls_of_crictl": 1,
        "tests/shim/test_docs.py::test_serve_command_of_docs_has_the_options_of_the_program": 1,
    },
    ("docs/shim.md", "text"): {
        "tests/shim/test_networks.py::test_network_of_docs_connects_pods_and_host": 1
    },
    ("docs/shim.md", "json"): {
        "tests/shim/test_docs.py::test_pod_of_docs_is_run_by_the_calls_of_crictl": 1
    },
}
"""How many blocks of a document each test runs, or are not run for a reason.

A new block makes a number wrong, and so asks for a test.
"""

TESTS = {
    *WHOLE.values(),
    *(each for part in PARTS.values() for each in part if each[:5] == "tests"),
}


def test_every_code_block_is_run_by_a_test() -> None:
    """Each has a language, and no block is an exception without a reason."""
    found = Counter((each.document, each.language) for each in all_blocks())
    left = {
        (document, language): number
        for (document, language), number in found.items()
        if not any(fnmatch.fnmatch(document, pattern) and language == its for pattern, its in WHOLE)
    }
    assert {place: sum(part.values()) for place, part in PARTS.items()} == left


@pytest.mark.parametrize("node", sorted(TESTS))
def test_a_test_that_runs_code_blocks_exists(node: str) -> None:
    """By its node id."""
    file, _, name = node.partition("::")
    assert f"def {name}" in Path(ROOT, file).read_text(encoding="utf-8")


def run(document: str, part: str, places: dict[str, str]) -> str:
    """Run the block of *document* with the text *part*, with other places; return its output."""
    (text,) = [
        each.text for each in all_blocks() if each.document == document and part in each.text
    ]
    for place, other in places.items():
        text = text.replace(place, other)
    done = subprocess.run(
        ["bash", "-euc", text], env=environment(), check=True, capture_output=True, text=True
    )
    return done.stdout


@pytest.fixture
def shim(tmp_path: Path) -> Path:
    """Return a folder in the place of /var/lib/shim, with a registry of one sandbox."""
    folder = tmp_path / "shim"
    with Store.open(folder / "registry.db", reconcile=False) as store:
        store.add(sandbox("a1"), Status(State.NOTREADY, reason="ProcessExited"))
    return folder


@needs.program("sqlite3")
def test_a_backup_by_the_sqlite_shell_runs(shim: Path, tmp_path: Path) -> None:
    """Of docs/operators.md: the copy has the sandbox."""
    places = {"/var/lib/shim": str(shim), "'/backup": f"'{tmp_path}"}
    run("docs/operators.md", ".backup", places)
    assert [("a1",)] == query(str(tmp_path / "registry.db"), "SELECT id FROM sandboxes")


def test_the_way_back_from_an_upgrade_runs(shim: Path) -> None:
    """Of docs/operators.md: the copy that an upgrade has left takes the place of the registry."""
    (name,) = {
        word.strip('"').rpartition("/")[2]
        for each in all_blocks()
        for word in each.text.split()
        if each.document == "docs/operators.md" and "-before-" in word
    }
    with Store.open(shim / "registry.db", reconcile=False) as store:
        store.backup(shim / name)
        store.delete("a1")
    run("docs/operators.md", name, {"/var/lib/shim": str(shim)})
    assert [("a1",)] == query(str(shim / "registry.db"), "SELECT id FROM sandboxes")


@needs.program("sqlite3")
def test_the_command_of_the_questions_runs(shim: Path) -> None:
    """It prints the reason in a box."""
    assert "ProcessExited" in run(
        "docs/questions.md", "sqlite3 -readonly -box", {"/var/lib/shim": str(shim)}
    )


def test_the_command_of_the_textfile_collector_runs(shim: Path, tmp_path: Path) -> None:
    """Of docs/metrics.md: the file says that the registry is up."""
    places = {
        "sandbox-registry --db /var/lib/shim": f'"{sys.executable}" -m registry --db {shim}',
        "/var/lib/prometheus/node-exporter": str(tmp_path),
    }
    run("docs/metrics.md", "--output-file", places)
    text = tmp_path.joinpath("sandbox-registry.prom").read_text(encoding="utf-8")
    assert re.search(r"^sandbox_registry_up(\{.*\})? 1.0$", text, re.MULTILINE)


CTR = """#!/bin/sh
for last; do :; done
case "$*" in
    "-n k8s.io containers ls -q "*) cat "{folder}/ids" ;;
    "-n k8s.io containers info "*) cat "{folder}/$last" ;;
    "pods -o json") cat "{folder}/pods" ;;
    *) exit 1 ;;
esac
"""
"""Program in the place of `ctr` and `crictl`, which prints what containerd 1.6 does."""


@needs.program("jq")
def test_the_commands_of_an_import_from_containerd_run(tmp_path: Path) -> None:
    """Of docs/differences.md: metadata of containerd come out of an export as they went in."""
    data = Path(ROOT, "tests", "data", "containerd")
    stored = [(data / name).read_text("utf-8").strip() for name in ("hostnet.json", "dns.json")]
    ids = [json.loads(each)["Metadata"]["ID"] for each in stored]
    for id, text in zip(ids, stored, strict=True):
        value = {"type_url": "a/Metadata", "value": b64encode(text.encode()).decode()}
        info = {"ID": id, "Extensions": {"io.cri-containerd.sandbox.metadata": value}}
        (tmp_path / id).write_text(json.dumps(info, indent=4), "utf-8")
    (tmp_path / "ids").write_text("".join(f"{id}\n" for id in ids), "utf-8")
    pod = {"state": "SANDBOX_NOTREADY", "createdAt": "1795826045383802073"}
    (tmp_path / "pods").write_text(json.dumps({"items": [{"id": id, **pod} for id in ids]}))
    for name in ("ctr", "crictl"):
        (tmp_path / name).write_text(CTR.format(folder=tmp_path), "utf-8")
        (tmp_path / name).chmod(0o700)
    first = "ctr -n k8s.io containers ls"
    places = {
        "sandbox-registry --db registry.db": f'"{sys.executable}" -m registry --db registry.db',
        first: f'cd "{tmp_path}"; PATH=.:$PATH; {first}',
    }
    run("docs/differences.md", "io.cri-containerd.kind", places)
    with Store.open(tmp_path / "registry.db", reconcile=False) as store:
        found = store.list()
        assert sorted(stored) == sorted(each.metadata.marshal_json().decode() for each in found)
        assert {(State.NOTREADY, 1795826045383802073)} == {
            (each.status_as_read.state, each.status_as_read.created_at) for each in found
        }
