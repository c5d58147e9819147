"""Agreement of the JSON schema in the wheel with the program, and with docs/cli.md."""

from __future__ import annotations

import importlib
import json
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator

from registry import Status, Store
from registry.cli.output.views import View, fields_of
from registry.cli.program import VERBS
from registry.cli.verbs import fleet
from tests.cli.program import KNOWN, SAMPLES, Call
from tests.tools import NOTREADY, READY, execute, sandbox, tamper

SCHEMA: dict[str, Any] = json.loads(
    resources.files("registry.cli.output").joinpath("schema.json").read_text(encoding="utf-8")
)
ROWS = {"reconcile": "findings", "import": "sandboxes", "salvage": "losses"}
"""Verbs whose JSON is one object, and the field with the objects of their table."""


def schema_of(verb: str) -> dict[str, Any]:
    """Return the schema of the output of *verb*, which knows no further field."""

    def closed(schema: Any) -> Any:
        if isinstance(schema, list):
            return [closed(each) for each in schema]
        if not isinstance(schema, dict):
            return schema
        found = {name: closed(each) for name, each in schema.items()}
        if "required" in found:
            found["additionalProperties"] = False
        return found

    return {**closed(SCHEMA["properties"][verb]), "$defs": SCHEMA["$defs"]}


FLEET = {
    "fleet nodes": fleet.NODES,
    "fleet silent": fleet.NODES,
    "fleet list": fleet.SANDBOXES,
    "fleet history": fleet.TRANSITIONS,
}
"""Views of the verbs of `fleet`, whose output the tests of the fleet validate."""


def view_of(verb: str) -> View:
    """Return the view of *verb*."""
    if verb in FLEET:
        return FLEET[verb]
    found = getattr(importlib.import_module(VERBS[verb].partition(":")[0]), "VIEW")  # noqa: B009
    assert isinstance(found, View)
    return found


@pytest.mark.parametrize("verb", SCHEMA["properties"])
def test_views_have_the_fields_of_the_schema(verb: str) -> None:
    """In the same order; every field has a description, and a table has no field that is none."""
    schema, view = SCHEMA["properties"][verb], view_of(verb)
    if verb in ROWS:
        schema = schema["properties"][ROWS[verb]]
    properties = schema.get("items", schema)["properties"]
    assert list(properties) == fields_of(view)
    assert all(each["description"] for each in properties.values())
    for kind in ("table", "wide"):
        assert set(view.columns(kind).values()) <= set(view.fields)
    assert {view.name, view.id} <= set(view.fields)


def test_every_verb_that_prints_objects_has_a_schema() -> None:
    """Export prints containerd's documents, metrics those of OpenMetrics, sql what is queried."""
    others = {"export", "metrics", "sql", "demo", "completion", "fleet"}
    expected = {verb for verb in VERBS if verb not in others} | FLEET.keys()
    assert expected == SCHEMA["properties"].keys()
    Draft202012Validator.check_schema(SCHEMA)


@pytest.fixture
def outputs(path: str, tmp_path: Path) -> dict[str, list[list[str]]]:
    """Return the command lines of each verb, in an order in which all of them print objects."""
    with Store.open(path, reconcile=False) as store:
        gone = sandbox("7a", netns_path="/run/netns/never-created", additional_ips=("::1",))
        store.add(gone, Status(NOTREADY.state, 0, 1, 2, 137, "Broken", "it broke"))
        store.add(sandbox("7b", netns_path="/run/netns/never-created-2"), READY)
    damaged = str(tmp_path / "damaged.db")
    with Store.open(damaged) as store:
        store.add(sandbox("a"), NOTREADY)
    tamper(damaged, "DELETE FROM sandbox_statuses")
    document = next(file for file in SAMPLES if KNOWN)
    backup = str(tmp_path / "backup.db")
    return {
        "list": [["list", "--all"], ["list", "--pod", "x"]],
        "inspect": [["inspect", "3f"], ["inspect", "7a"], ["inspect", "5abc"]],
        "why": [["why", "3f"], ["why", "7a"], ["why", "7b"], ["why", "5abc"]],
        "history": [["history"]],
        "who": [["who"]],
        "reconcile": [["reconcile", "--dry-run"], ["reconcile"]],
        "delete": [["delete", "5abc"], ["delete", "5abc"]],
        "backup": [["backup", backup]],
        "restore": [["restore", backup]],
        "salvage": [["salvage", damaged, str(tmp_path / "new.db")]],
        "import": [["import", str(document)], ["import", str(document)]],
        "upgrade": [["upgrade"], ["upgrade", "--dry-run"]],
        "check": [["check"]],
    }


def test_the_output_of_every_verb_is_valid(
    path: str, call: Call, outputs: dict[str, list[list[str]]]
) -> None:
    """Real output, as JSON, as YAML and as lines; no field is missing in the schema."""
    for verb, commands in outputs.items():
        for command in commands:
            if verb == "check":
                execute(path, "DROP VIEW IF EXISTS why_not_ready")
            found = json.loads(call(*command, "-o", "json").out)
            errors = list(Draft202012Validator(schema_of(verb)).iter_errors(found))
            assert not errors, (command, errors)
    for verb in ("list", "inspect", "history", "check"):
        command = outputs[verb][0] if verb != "inspect" else ["inspect", "3f"]
        found = json.loads(call(*command, "-o", "json").out)
        assert found == yaml.safe_load(call(*command, "-o", "yaml").out)
        lines = [json.loads(line) for line in call(*command, "-o", "jsonl").out.splitlines()]
        assert lines == (found if isinstance(found, list) else [found])
