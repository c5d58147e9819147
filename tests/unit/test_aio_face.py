"""Completeness and types of AsyncStore: no method of Store is missing, and none differs."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from registry import Sandbox, StatusStorage, Store
from registry.aio import AsyncSandbox, AsyncStatusStorage, AsyncStore
from tests.tools import ROOT

IN_MEMORY = {"Sandbox.attach", "Sandbox.stop"}
"""Methods that are the same without `await`."""
ENTERED = {"Store.transaction", "Store.deadline", "Store.watch"}
"""Methods that return context managers, or an iterator."""
FACES: list[tuple[type, type]] = [
    (Store, AsyncStore),
    (Sandbox, AsyncSandbox),
    (StatusStorage, AsyncStatusStorage),
]


def public(kind: type) -> dict[str, Any]:
    """Return what the class *kind* and its bases of this package define."""
    bases = [each for each in kind.__mro__ if each.__module__.startswith("registry.")]
    found = {name for base in bases for name in vars(base) if not name.startswith("_")}
    return {name: inspect.getattr_static(kind, name) for name in found}


@pytest.mark.parametrize(("plain", "face"), FACES)
def test_every_public_name_is_there_and_no_other(plain: type, face: type) -> None:
    """Also the attributes that only an instance has."""
    instance = set(plain.__annotations__) if plain is Store else set()
    assert public(plain).keys() | instance == public(face).keys()


@pytest.mark.parametrize(("plain", "face"), FACES)
def test_every_method_is_a_coroutine_function_with_the_same_parameters(
    plain: type, face: type
) -> None:
    """Names, kinds, defaults and annotations; `transaction` and `deadline` are entered."""
    for name, method in public(plain).items():
        qualified = f"{plain.__name__}.{name}"
        if isinstance(method, property) or qualified in IN_MEMORY:
            continue
        ours: Callable[..., Any] = getattr(face, name)
        assert inspect.iscoroutinefunction(ours) == (qualified not in ENTERED), name
        expected = inspect.signature(getattr(plain, name)).parameters
        assert list(expected.values()) == list(inspect.signature(ours).parameters.values()), name
        assert ours.__doc__, name


def test_netns_is_the_only_property_that_is_a_coroutine_function() -> None:
    """It reads the file and the host; the others are read from memory."""
    properties = {name for name, each in public(Sandbox).items() if isinstance(each, property)}
    methods = {name for name in properties if inspect.iscoroutinefunction(vars(AsyncSandbox)[name])}
    assert {"netns"} == methods


SAMPLE = """
from collections.abc import Mapping
from typing import assert_type

from registry import (
    CNIResult, Container, Extension, Metadata, NetNS, Process, Status, StopCh, Transition,
    Violation,
)
from registry.aio import AsyncSandbox, AsyncStatusStorage, AsyncStore
from registry.cri import PodSandboxConfig
from registry.recovery.findings import Report


async def use(metadata: Metadata, status: Status, container: Container) -> None:
    async with await AsyncStore.open("registry.db", timeout=1.0) as store:
        assert_type(store, AsyncStore)
        assert_type(store.path, str)
        assert_type(store.recovery, Report | None)
        assert_type(await store.reconcile(dry_run=True), Report)
        assert_type(await store.add(metadata, status, container=container), AsyncSandbox)
        assert_type(await store.adopt(metadata, status), AsyncSandbox)
        sandbox = await store.get("a", include_unknown=True)
        assert_type(sandbox, AsyncSandbox)
        assert_type(await store.get(name="web"), AsyncSandbox)
        assert_type(await store.list(selector="a=b", limit=1), list[AsyncSandbox])
        assert_type(await store.delete("a"), bool)
        assert_type(await store.update_metadata("a", lambda old: old), AsyncSandbox)
        assert_type(await store.history("a", after=1, limit=2), list[Transition])
        assert_type(await store.check(), list[Violation])
        assert_type(await store.new_netns_path("/run/netns"), str)
        assert_type(await store.remove_orphans(["/run/netns/a"]), list[str])
        async with store.transaction() as nothing:
            assert_type(nothing, None)
        with store.deadline(1.0):
            pass
        assert_type(await store.close(), None)

        assert_type(sandbox.id, str)
        assert_type(sandbox.metadata, Metadata)
        assert_type(sandbox.config, PodSandboxConfig | None)
        assert_type(sandbox.cni_result, CNIResult | None)
        assert_type(sandbox.status_as_read, Status)
        assert_type(sandbox.stopped, StopCh)
        assert_type(sandbox.container, Container | None)
        sandbox.attach(container)
        sandbox.stop()
        assert_type(sandbox.status, AsyncStatusStorage)
        assert_type(await sandbox.status.get(), Status)
        assert_type(await sandbox.status.update(lambda old: old), Status)
        assert_type(await sandbox.extensions.read(), dict[str, Extension])
        extensions = await sandbox.extensions.update(lambda old: old)
        assert_type(extensions, Mapping[str, Extension])
        assert_type(await sandbox.netns(), NetNS | None)
        assert_type(await sandbox.open_process(), Process | None)
        assert_type(await sandbox.remove_netns(), None)
        assert_type(await sandbox.delete(), bool)


async def later(old: Status) -> Status:
    return old


async def misuse(store: AsyncStore, sandbox: AsyncSandbox) -> None:
    await store.get(1)  # error: call-overload
    await store.list(nothing=1)  # error: call-arg
    await store.add(Metadata("a", "a", None))  # error: call-arg
    await sandbox.status.update(later)  # error: arg-type
    store.delete("a")  # error: unused-coroutine
    sandbox.name = "b"  # error: misc
    with store.transaction():  # error: attr-defined
        pass
    await AsyncStore.open()  # error: call-arg
"""


def test_a_sample_of_all_calls_passes_mypy_and_misuse_does_not(tmp_path: Path) -> None:
    """Each result has its exact type, and each marked line has the error that it names."""
    (tmp_path / "sample.py").write_text(SAMPLE, encoding="utf-8")
    done = subprocess.run(
        [
            *(sys.executable, "-m", "mypy", "--strict", "--no-error-summary", "--no-pretty"),
            *("--cache-dir", str(tmp_path / "cache"), str(tmp_path / "sample.py")),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    found = re.findall(r"sample\.py:(\d+): error: .*\[([\w-]+)\]", done.stdout)
    expected = [
        (str(number), line.rpartition("# error: ")[2])
        for number, line in enumerate(SAMPLE.splitlines(), 1)
        if "# error: " in line
    ]
    assert expected == list(dict.fromkeys(found)), done.stdout
