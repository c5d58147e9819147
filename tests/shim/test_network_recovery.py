"""Servers that are killed while real plugins connect and disconnect pods."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest

from registry import State, Store
from registry.shim.network import Network
from tests import needs
from tests.shim.conftest import NOTHING, left_of, remove_all
from tests.shim.node import NO_NETWORK, PLUGINS, PORTMAP, Node, bridged, node, plugins
from tests.shim.test_recovery import SHARDS, Shims, died, every_line, recovered
from tests.tools import query, running, until

pytestmark = [
    pytest.mark.netns,
    pytest.mark.crash,
    needs.namespaces,
    plugins,
    needs.program("iptables"),
]

SERVE = """
import sys
from registry import NetNS
from registry.shim.network import Network
from tests.shim.dying import serve
path, conf_dir, bin_dir, *names = sys.argv[1:]
NetNS.load(path).do(lambda: serve(Network(conf_dir, [bin_dir]), names))
"""


class Place:
    """Node whose shims die."""

    def __init__(self, made: Node, shims: Shims, db: str) -> None:
        self.node, self.shims, self.db = made, shims, db
        self.network = Network(str(made.conf_dir), [PLUGINS])

    def died(self, verb: str, argument: str, place: int = 0) -> bool:
        """Make a call in a shim that is killed before its *place*-th line, as `died` does."""
        return died(self.shims, self.db, verb, argument, place)

    def recovered(self) -> list[tuple[str, State]]:
        """Start and end a shim on the host network of the node, as `recovered` does."""
        return self.node.host.do(lambda: recovered(self.db, self.network))

    def is_clean(self) -> bool:
        """Return whether neither the node nor the host has anything of a sandbox."""
        ids = [
            id for (id,) in query(self.db, "SELECT DISTINCT sandbox_id FROM sandbox_transitions")
        ]
        return NOTHING == left_of(self.db) and NO_NETWORK == self.node.left(*ids)

    def clear(self) -> None:
        """Remove all sandboxes."""
        self.node.host.do(lambda: remove_all(self.db, self.network))


@pytest.fixture
def place(tmp_path: Path, db: str) -> Iterator[Place]:
    """Return a node with a bridge and forwarded ports, and a registry."""
    names = ["network", "plugins", "recovery", "sandboxer"]
    with node(tmp_path) as made:
        made.configure(bridged(made.data, PORTMAP))
        with running(SERVE, made.host.path, str(made.conf_dir), PLUGINS, *names) as shims:
            yield Place(made, shims, db)


@every_line
def test_run_killed_before_any_line_leaves_no_network(place: Place, first: int) -> None:
    """No address, interface or rule; a sandbox that is READY has its own."""
    at, lived = first, 0
    while lived < 12 / SHARDS:
        lived = 0 if place.died("run", "web:30080", at) else lived + 1
        found = place.recovered()
        assert found or not lived
        if found:
            assert [State.READY] == [state for _, state in found]
            assert (2, 1) == (len(place.node.addresses()), len(place.node.links()))
            place.clear()
        until(place.is_clean)
        at += SHARDS
    assert at > 100


@every_line
@pytest.mark.parametrize("verb", ["stop", "remove"])
def test_stop_and_remove_killed_before_any_line_leave_no_network(
    place: Place, verb: str, first: int
) -> None:
    """Before the intent is recorded, the pod keeps its network."""
    begun = False
    for at in itertools.count(first, SHARDS):
        assert not place.died("run", "web:30080")
        with Store.open(place.db, read_only=True) as store:
            (sandbox,) = store.list()
        end = not place.died(verb, sandbox.id, at)
        found = place.recovered()
        begun = begun or [(sandbox.id, State.READY)] != found
        if begun:
            assert ([] if verb == "remove" else [(sandbox.id, State.NOTREADY)]) == found
            assert place.is_clean()
        place.clear()
        assert place.is_clean()
        if end:
            break
    assert begun
    assert at > 30
