"""The documents: snippets are run, and lists are compared with the sources."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import registry
from benchmarks import report
from registry import State, Status, Store, Verdict
from registry.tables import version
from registry.tables.document import page
from tests import needs
from tests.documents import DOCUMENTS, blocks, text_of
from tests.tools import ROOT, environment, execute, pod, query, sandbox

PYTHON, SQL = dict(blocks("python")), dict(blocks("sql"))


@pytest.mark.netns
@needs.namespaces
@pytest.mark.parametrize("name", PYTHON)
def test_python_snippet_runs_twice(name: str, tmp_path: Path) -> None:
    """Unchanged, in one directory; it prints the states that its comments promise."""
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, "-c", PYTHON[name]],
            cwd=tmp_path,
            env=environment(),
            capture_output=True,
            text=True,
            check=False,
        )
        assert 0 == done.returncode, done.stderr
        promised = re.findall(r"print\([^\n]*\)\s+# (SANDBOX_\w+)", PYTHON[name])
        assert promised == [line for line in done.stdout.split() if line in promised]
    with Store.open(tmp_path / "registry.db", reconcile=False) as store:
        assert [] == store.check()


ELSEWHERE = ("docs/questions.md", "docs/fleet.md")
"""Documents whose queries are run by tests of their own, on databases with the answers."""


@pytest.mark.parametrize("name", [name for name in SQL if not name.startswith(ELSEWHERE)])
def test_sql_snippet_runs(name: str, store: Store, path: str) -> None:
    """On a registry with the sandboxes that it names; a SELECT returns a row."""
    named = store.add(
        sandbox("4a333b1c", config=pod("web-0", app="web")), Status(State.READY, created_at=1)
    )
    named.extensions.update(lambda _: {"sandboxer": b"runc"})
    store.add(sandbox("5b"), Status(State.NOTREADY, reason="ProcessExited"))
    if SQL[name].startswith("SELECT"):
        assert query(path, SQL[name])
    else:
        execute(path, *SQL[name].strip().rstrip(";").split(";"))
        assert ["5b"] == [each.id for each in store.list()]


def test_every_link_leads_to_a_file() -> None:
    """Relative paths of the project; other sites are not asked."""
    for document in DOCUMENTS:
        text = text_of(document)
        for target in re.findall(r"\]\(([^)#]+)\)", text):
            if not target.startswith("http"):
                assert Path(ROOT, document).parent.joinpath(target).exists(), target


def anchors(document: str) -> set[str]:
    """Return the anchors of the headings of a document, as GitHub names them."""
    headings = re.findall(r"^#+ (.*)$", text_of(document), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_every_link_to_a_section_leads_to_a_heading() -> None:
    """Of the same document, or of another one."""
    missing = []
    for document in DOCUMENTS:
        for target, anchor in re.findall(r"\]\(([^)#:]*)#([^)]+)\)", text_of(document)):
            path = os.path.normpath(os.path.join(os.path.dirname(document), target))
            if anchor not in anchors(path if target else document):
                missing.append(f"{document}: {target}#{anchor}")
    assert not missing, "\n".join(missing)


def test_every_test_that_a_document_names_exists() -> None:
    """By its node id, or by its file."""
    missing = []
    for document in DOCUMENTS:
        text = text_of(document)
        for file, _, name in re.findall(r"`(tests/[\w/]+\.py)(::(\w+))?", text):
            path = Path(ROOT, file)
            source = path.read_text(encoding="utf-8") if path.exists() else ""
            if not re.search(rf"^(async )?def {name}\(" if name else ".", source, re.MULTILINE):
                missing.append(f"{document}: {file}::{name}")
    assert not missing, "\n".join(missing)


def test_every_promise_names_a_test() -> None:
    """Each section of docs/guarantees.md below "Promises"."""
    text = text_of("docs/guarantees.md")
    promises = text.split("## Promises\n")[1].split("\n## ")[0].split("\n### ")[1:]
    assert len(promises) > 20
    for promise in promises:
        assert re.search(r"`tests/[\w/]+\.py::\w+`", promise), promise


def test_every_section_that_an_error_names_exists() -> None:
    """Errors lead to docs/operators.md, some of them to a section of it."""
    document = text_of("docs/operators.md")
    named = [
        section
        for source in Path(ROOT, "registry").rglob("*.py")
        for section in re.findall(r"docs/operators\.md, '([^']+)'", source.read_text("utf-8"))
    ]
    assert named
    for section in named:
        assert re.search(rf'^## "?{re.escape(section)}"?$', document, re.MULTILINE), section


def test_the_backup_before_an_upgrade_is_named_after_the_newest_revision() -> None:
    """A document that names another one was forgotten with a new revision."""
    named = {each for name in DOCUMENTS for each in re.findall(r"-before-(\d+)", text_of(name))}
    assert {version.REVISION} == named


def test_figures_of_the_documents_equal_the_measured_ones() -> None:
    """The table is generated, and not changed by hand."""
    document = text_of("docs/performance.md")
    figures = Path(ROOT, "benchmarks", "results", "figures.json").read_text(encoding="utf-8")
    assert document == report.replace_table(document, json.loads(figures))


def test_every_make_target_of_the_documents_exists() -> None:
    """The two commands of the README among them."""
    makefile = Path(ROOT, "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z]+):", makefile, re.MULTILINE))
    for document in DOCUMENTS:
        text = text_of(document)
        for named in re.findall(
            r"`make ([a-z]+)`|^ *\$ make ([a-z ]+?)(?: +#| [A-Z]+=|$)", text, re.MULTILINE
        ):
            assert set(" ".join(named).split()) <= targets, named


def test_docs_schema_lists_every_table_and_view(store: Store, path: str) -> None:
    """With every column, in order; the drawing shows all of them."""
    store.list()
    text = text_of("docs/schema.md")
    assert f"Revision {version.REVISION}." in text
    assert f"| {version.REVISION} |" in text
    sections = re.findall(r"^### `(\w+)`$(.*?)(?=^#|^<)", text, re.DOTALL | re.MULTILINE)
    listed = {name: re.findall(r"^\| `(\w+)` \|", rows, re.MULTILINE) for name, rows in sections}
    found = {}
    for (name,) in query(path, "SELECT name FROM sqlite_master WHERE type IN ('table', 'view')"):
        if name != "alembic_version" and not name.startswith("sqlite_"):
            columns = query(path, f"SELECT name FROM pragma_table_info('{name}')")
            found[name] = [column for (column,) in columns]
            assert f" {name} " in text.split("```")[1]
    assert found == listed


def test_docs_schema_is_what_make_sql_generates() -> None:
    """From the comments of the schema; otherwise run `make sql`."""
    assert text_of("docs/schema.md") == page(text_of("docs/schema.md"))


def test_docs_schema_names_every_trigger(store: Store, path: str) -> None:
    """Beside the rule that it enforces."""
    store.list()
    rules = text_of("docs/schema.md").split("## Rules")[1].split("## The file")[0]
    triggers = query(path, "SELECT name FROM sqlite_master WHERE type = 'trigger'")
    assert {name for (name,) in triggers} == set(
        re.findall(r"`((?:sandbox|registry)\w*_\w+)`", rules)
    )


def test_docs_reconcile_lists_every_verdict() -> None:
    """Each in a row of the table."""
    text = text_of("docs/reconcile.md")
    assert set(Verdict) == {Verdict(word) for word in re.findall(r"\| `([A-Z]+)` \|", text)}


def test_docs_differences_lists_every_symbol_of_the_seed() -> None:
    """In the first table."""
    text = text_of("docs/differences.md")
    table = text.split("## Departures")[0]
    symbols = (
        "ErrClosedNetNS Metadata MarshalJSON UnmarshalJSON NetNS NewNetNS LoadNetNS Remove Closed"
        " GetPath Sandbox NewSandbox State Status StatusStorage StoreStatus Store NewStore Add Get"
        " GetAll List Delete StopCh UpdateFunc Container ID Name Config NetNSPath IP AdditionalIPs"
        " RuntimeHandler CNIResult ProcessLabel"
    )
    for symbol in re.findall(r"\w+", symbols):
        assert re.search(rf"\b{symbol}\b", table), symbol


def test_the_changelog_names_the_revision_and_the_public_api() -> None:
    """The revision under Schema; what is exported by its name; methods of Store in full."""
    text = text_of("CHANGELOG.md")
    assert f"- {version.REVISION}: " in text.split("### Schema")[1]
    methods = [f"Store.{name}" for name in vars(Store) if not name.startswith("_")]
    for name in [*registry.__all__, *methods]:
        assert f"`{name}`" in text, name
