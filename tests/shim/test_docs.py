"""Commands and configs of docs/shim.md."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from pathlib import Path

import pytest
from google.protobuf import json_format

from registry.shim.calls import STREAMS
from registry.shim.network import CHECKED_WITHIN, PLUGINS_WITHIN
from registry.shim.recovery import KILLED_WITHIN
from registry.shim.server import GRACE, RUNS, STOPS
from tests import needs
from tests.shim.client import NOTREADY, READY, Client, messages
from tests.shim.conftest import Server
from tests.tools import ROOT

pytestmark = [
    pytest.mark.netns,
    needs.namespaces,
]

DOCS = Path(ROOT, "docs", "shim.md").read_text(encoding="utf-8")
POD = re.findall(r"```json\n(.*?)```", DOCS, re.DOTALL)[0]
BY_HAND = next(
    block for block in re.findall(r"```console\n(.*?)```", DOCS, re.DOTALL) if "crictl" in block
)
CRICTL = re.findall(r"^\$ (?:pod=\$\()?crictl ([^)\n]*)\)?$", BY_HAND, re.MULTILINE)


def test_pod_of_docs_is_run_by_the_calls_of_crictl(cri: Client) -> None:
    """The calls of each line are made directly, since crictl is rarely installed."""
    verbs = [line.split()[0] for line in CRICTL]
    assert ["info", "runp", "pods", "inspectp", "stopp", "rmp"] == verbs
    pod = json_format.ParseDict(json.loads(POD), messages()["PodSandboxConfig"]())
    assert cri.call("Status", verbose=True).info
    id = cri.run(pod)
    key, _, value = CRICTL[2].rpartition(" ")[2].partition("=")
    assert [id] == [item.id for item in cri.list(label_selector={key: value})]
    assert READY == cri.status(id[:4]).state
    assert {"pid", "netNamespaceClosed", "reason", "message", "exitStatus"} <= set(cri.info(id))
    cri.stop(id[:4])
    assert NOTREADY == cri.status(id[:4]).state
    cri.remove(id[:4])
    assert [] == cri.list()


@needs.program("crictl")
def test_crictl_commands_of_docs_succeed(server: Server, tmp_path: Path) -> None:
    """A shell runs the block as it is, but for the socket."""
    (tmp_path / "pod.json").write_text(POD, encoding="utf-8")
    endpoint = "unix:///run/sandbox-registry.sock"
    assert endpoint in BY_HAND
    script = re.sub(r"^\$ ", "", BY_HAND, flags=re.MULTILINE).replace(
        endpoint, f"unix://{server.socket}"
    )
    done = subprocess.run(
        ["sh", "-eux", "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert 0 == done.returncode, done.stderr


def test_serve_command_of_docs_has_the_options_of_the_program(server: Server) -> None:
    """The tests start the server with the same options."""
    (line,) = re.findall(r"^\$ (sandbox-registry serve .*)$", DOCS, re.MULTILINE)
    assert [part for part in shlex.split(line) if part.startswith("--")] == [
        part
        for part in server.command()
        if part.startswith("--") and not part.startswith("--cni")  # the node's own by default
    ]


@pytest.mark.parametrize(
    "words",
    [
        f"ADD or DEL has taken {PLUGINS_WITHIN:.0f} seconds",
        f"the plugins have {CHECKED_WITHIN} seconds",
        f"{RUNS} runs can wait for plugins; stops and removes have {STOPS} threads",
        f"At most {RUNS} runs and {STOPS} other changes wait",
        f"At most {STREAMS} streams are open",
        f"the calls in progress have {GRACE:.0f} seconds",
        f"for at most {KILLED_WITHIN:.0f} seconds",
    ],
)
def test_docs_have_the_limits_of_the_program(words: str) -> None:
    """Lines of the document may break anywhere."""
    assert words in " ".join(DOCS.split())
