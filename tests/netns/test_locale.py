"""The path of a namespace names the same file in a process of any locale."""

from __future__ import annotations

import os

import pytest

from registry import InvalidArgumentError, NetNS, Store
from tests import needs
from tests.conftest import RunInLocale
from tests.tools import READY, sandbox

pytestmark = [
    pytest.mark.netns,
    needs.namespaces,
]


def test_namespace_recorded_in_utf_8_is_open_in_latin_1(
    store: Store, path: str, base_dir: str, latin1: RunInLocale
) -> None:
    """It stays READY there, can be entered, and is removed."""
    netns = NetNS.create(f"{base_dir}/näme 一")
    store.add(sandbox("a", netns_path=netns.path), READY)
    out = latin1(
        """
        import os, sys
        from registry import Store
        with Store.open(sys.argv[1]) as store:
            handle = store.get("a")
            print(sys.getfilesystemencoding(), *store.recovery.counts, handle.status_as_read.state)
            print(handle.netns.do(os.getpid) == os.getpid())
            handle.remove_netns()
            print(handle.netns)
        """,
        path,
    )
    assert ["iso8859-1 OPEN SANDBOX_READY", "True", "None"] == out
    assert netns.closed
    assert [] == os.listdir(base_dir)


def test_namespace_recorded_in_latin_1_is_open_in_utf_8(
    store: Store, path: str, base_dir: str, latin1: RunInLocale
) -> None:
    """Its directory, which is not ASCII either, is searched for orphans."""
    latin1(
        """
        import sys
        from registry import Metadata, NetNS, State, Status, Store
        with Store.open(sys.argv[1]) as store:
            base_dir = sys.argv[2] + "/d\\xe4ta"
            for id in "ab":
                made = NetNS.create(store.new_netns_path(base_dir))
                store.add(Metadata(id, id, None, netns_path=made.path), Status(State.READY))
            store.delete("b")
        """,
        path,
        base_dir,
    )
    report = store.reconcile()
    assert (0, 1) == (len(report.findings), sum(report.counts.values()))
    (orphan,) = report.orphans
    assert orphan.startswith(f"{base_dir}/däta/")
    found = latin1(
        """
        import sys
        from registry import Store
        with Store.open(sys.argv[1]) as store:
            print(len(store.recovery.orphans))
        """,
        path,
    )
    assert ["1"] == found
    assert [orphan] == store.remove_orphans([orphan])
    store.get("a").remove_netns()
    assert [] == os.listdir(f"{base_dir}/däta")


def test_a_path_that_is_not_utf_8_is_refused(store: Store, base_dir: str) -> None:
    """Before anything is made or recorded, by whatever call."""
    odd = os.fsdecode(os.fsencode(base_dir) + b"/n\xe4me")
    for call, field in (
        (lambda: NetNS.create(odd), "path"),
        (lambda: NetNS.load(odd), "path"),
        (lambda: store.new_netns_path(odd), "base_dir"),
        (lambda: store.add(sandbox("a", netns_path=odd), READY), "netns_path"),
        (lambda: store.remove_orphans([odd]), "paths"),
    ):
        with pytest.raises(InvalidArgumentError, match="no UTF-8") as caught:
            call()
        assert field == caught.value.field
    assert [] == os.listdir(base_dir)
    assert [] == store.list()
