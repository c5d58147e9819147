"""Plain values: Status, State, Metadata, CNIResult, and their way into rows and back."""

from __future__ import annotations

import dataclasses
import json
import os
from dataclasses import FrozenInstanceError, replace
from pathlib import Path

import pytest

from registry import (
    DNS,
    CNIResult,
    Interface,
    IPConfig,
    Metadata,
    MetadataError,
    Route,
    State,
    Status,
    Store,
)
from registry.cri import NamespaceMode, PodSandboxConfig
from registry.model import cni
from registry.model.status import TRANSITIONS
from registry.tables import queries
from tests.tools import READY, ROOT, execute, ids, query, sandbox

CONFIGS = sorted(Path(ROOT, "tests/data/containerd").glob("*.config.pb"))


def test_state_has_the_cris_names_and_the_seeds_numbers() -> None:
    """`str()` is what SQL stores; no number ever is."""
    assert {0: "SANDBOX_UNKNOWN", 1: "SANDBOX_READY", 2: "SANDBOX_NOTREADY"} == {
        state.value: str(state) for state in State
    }
    assert all(state is State.parse(str(state)) for state in State)
    names = "SANDBOX_UNKNOWN, SANDBOX_READY, SANDBOX_NOTREADY"
    with pytest.raises(ValueError, match=f"'READY' is not a sandbox state; pass one of {names}"):
        State.parse("READY")


def test_the_life_cycle_is_a_table() -> None:
    """Every state has a row; nothing leads to UNKNOWN, and nothing out of NOTREADY."""
    assert set(State) == TRANSITIONS.keys()
    assert State.UNKNOWN not in set().union(*TRANSITIONS.values())
    assert not TRANSITIONS[State.NOTREADY]


def test_status_and_metadata_are_frozen_and_state_has_no_default() -> None:
    """A half-made sandbox must not be called ready."""
    with pytest.raises(TypeError):
        Status()  # type: ignore[call-arg]
    with pytest.raises(FrozenInstanceError):
        READY.pid = 1  # type: ignore[misc]
    with pytest.raises(FrozenInstanceError):
        sandbox("a").ip = ""  # type: ignore[misc]
    assert dataclasses.is_dataclass(Metadata)


def test_the_fields_and_defaults_are_the_contracts() -> None:
    """In order, by name."""
    assert [
        ("state", dataclasses.MISSING),
        ("pid", 0),
        ("created_at", 0),
        ("exited_at", 0),
        ("exit_status", None),
        ("reason", ""),
        ("message", ""),
    ] == [(field.name, field.default) for field in dataclasses.fields(Status)]
    assert [
        ("id", dataclasses.MISSING),
        ("name", dataclasses.MISSING),
        ("config", dataclasses.MISSING),
        ("netns_path", ""),
        ("ip", ""),
        ("additional_ips", None),
        ("runtime_handler", ""),
        ("cni_result", None),
        ("process_label", ""),
    ] == [(field.name, field.default) for field in dataclasses.fields(Metadata)]


RESULTS = {
    "nil": CNIResult(),
    "empty": CNIResult(interfaces={}, dns=(), routes=()),
    "nils inside": CNIResult(
        interfaces={"eth0": None, "lo": Interface(ip_configs=(None,))}, dns=(DNS(),), routes=(None,)
    ),
    "full": CNIResult(
        interfaces={
            "eth0": Interface(
                ip_configs=(IPConfig("10.88.0.7", "10.88.0.1"), IPConfig("fd00::7", "")),
                mac="0a:58:0a:58:00:07",
                sandbox="/run/netns/x",
            ),
            "lo": Interface(ip_configs=()),
        },
        dns=(DNS(nameservers=("10.0.0.2",), domain="d", search=("s",), options=("ndots:5",)),),
        routes=(Route("0.0.0.0/0", "10.88.0.1"), Route("10.0.0.0/8")),
    ),
}


@pytest.mark.parametrize("name", RESULTS)
def test_a_cni_result_survives_the_store(store: Store, name: str) -> None:
    """Nil and empty differ, as in Go."""
    given = RESULTS[name]
    assert given == cni.load(json.loads(json.dumps(cni.dump(given))))
    store.add(sandbox("a", cni_result=given), READY)
    assert given == store.get("a").cni_result


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: file.name)
def test_every_config_of_containerd_survives_the_store(store: Store, file: Path) -> None:
    """Message for message, as JSON for people too, and with its unknown fields."""
    config = PodSandboxConfig.FromString(file.read_bytes())
    store.add(sandbox("a", config=config), READY)
    assert config == store.get("a").config
    unknown = b"\xfa\x3f\x05later"
    config.MergeFromString(unknown)
    store.add(sandbox("b", config=config), READY)
    kept = store.get("b").config
    assert kept is not None
    assert unknown in kept.SerializeToString()
    assert [] == store.check()


def test_fields_of_filters_have_their_own_columns(store: Store, path: str) -> None:
    """They are copied from the config."""
    config = PodSandboxConfig(labels={"app": "web"})
    config.metadata.name, config.metadata.namespace = "web-0", "prod"
    config.metadata.uid, config.metadata.attempt = "u-1", 3
    config.linux.security_context.namespace_options.network = NamespaceMode.NODE
    store.add(sandbox("a", config=config, runtime_handler="kata"), READY)
    assert [("web-0", "prod", "u-1", 3, "kata", 1)] == query(
        path, "SELECT pod, namespace, uid, attempt, runtime_handler, host_network FROM sandboxes"
    )
    assert store.get("a").metadata.host_network


def test_unset_times_are_null_and_set_ones_integers(store: Store, path: str) -> None:
    """Never 0."""
    store.add(sandbox("a"), replace(READY, created_at=0))
    store.add(sandbox("b"), replace(READY, created_at=5, exited_at=2**63 - 1, exit_status=0))
    assert [(None, None, None), (5, 2**63 - 1, 0)] == query(
        path,
        "SELECT created_at, exited_at, exit_status FROM sandbox_statuses ORDER BY sandbox_id",
    )
    assert (0, None) == (
        store.get("a").status.get().created_at,
        store.get("a").status.get().exit_status,
    )


def test_unreadable_record_keeps_its_name_and_affects_no_other(store: Store, path: str) -> None:
    """Its handle has id, name and status; reading its metadata says which one it is."""
    store.add(sandbox("a", name="n"), Status(State.UNKNOWN))
    store.add(sandbox("b"), READY)
    execute(path, "UPDATE sandboxes SET config = x'ffff' WHERE id = 'a'")
    store.get("a", include_unknown=True).status.update(lambda old: replace(old, state=State.READY))
    assert ["b", "a"] == ids(store.list()) or ["a", "b"] == ids(store.list())
    handle = store.get("a")
    assert ("a", "n", State.READY) == (handle.id, handle.name, handle.status.get().state)
    with pytest.raises(MetadataError) as caught:
        _ = handle.metadata
    assert "a" == caught.value.id
    assert {"a"} == {violation.sandbox_id for violation in store.check()}
    assert {} != store.reconcile().counts
    assert store.delete("a")


def test_a_prefixs_range_is_what_startswith_says() -> None:
    """Compared as bytes, from the prefix up to what UTF-8 does not have."""
    for prefix in ("a", "é", "\U0010ffff", "%"):
        params = queries.prefix_params(prefix)
        for text in ("a", "ab", "b", "é", "éa", "\U0010ffff", "\U0010ffff\U0010ffff", "%", "&"):
            end = params["end"]
            assert isinstance(end, bytes)
            inside = prefix.encode() <= text.encode() < end
            assert text.startswith(prefix) == inside


def test_the_data_of_the_peer_is_there() -> None:
    """Otherwise the test above would run on nothing."""
    assert len(CONFIGS) > 10
    assert os.path.exists(f"{ROOT}/tests/data/cri")
