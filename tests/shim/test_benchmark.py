"""Rows of the shim in the benchmark."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import shim
from registry import NetNS
from tests import needs
from tests.shim.conftest import NOTHING, left_of
from tests.shim.node import plugins

pytestmark = needs.namespaces

ON_THE_HOST = [
    "shim: start to 2 listed after SIGKILL",
    "Version",
    "PodSandboxStatus",
    "ListPodSandbox of 2",
    "RunPodSandbox, host network",
]
IN_PODS = ["shim: start to 2 listed after SIGKILL, CNI", "RunPodSandbox, CNI"]


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[NetNS]:
    """Return the namespaces that this process creates."""
    made: list[NetNS] = []
    create = NetNS.create

    def record(path: str | None = None) -> NetNS:
        made.append(create(path))
        return made[-1]

    monkeypatch.setattr(NetNS, "create", record)
    return made


def measured(folder: Path) -> list[str]:
    """Return the rows that are measured, each without its reference."""
    figures = list(shim.measure(str(folder), 1, calls=2, sandboxes=2))
    assert all(len(figure.ratios) == 1 for figure in figures)
    return [figure.work.partition(" / ")[0] for figure in figures]


@plugins
@needs.veth
def test_shim_is_measured_beside_its_references_and_leaves_nothing(
    tmp_path: Path, made: list[NetNS]
) -> None:
    """With and without pod networks; the plugins by hand leave no address and no rule either."""
    assert ON_THE_HOST + IN_PODS == measured(tmp_path)
    for name in ("shim", "pods"):
        assert NOTHING == left_of(str(tmp_path / name / "registry.db"))
    assert [True, True] == [netns.closed for netns in made]  # the host's, and that of a pod
    given = {path.name for path in tmp_path.glob("pods/addresses/*/*")}
    assert not {name for name in given if not name.startswith(("lock", "last_reserved"))}


def test_shim_is_measured_without_plugins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The rows that need them are left out, and the reason is printed."""
    monkeypatch.setattr(shim, "PLUGINS", str(tmp_path))
    assert ON_THE_HOST == measured(tmp_path)
    assert (
        f"no CNI plugins in {tmp_path}: the rows of pods are left out\n" == capsys.readouterr().err
    )
