"""Shims that make one call and kill themselves before a given line of code.

This program forks a shim for each input line `DB VERB ARGUMENT PLACE`, and prints its exit code. It
is a process of its own, since the process that runs tests may have threads, and must not fork.
"""

from __future__ import annotations

import encodings.ascii  # noqa: F401 - once, not in every shim; so are the next two
import gc
import os
import signal
import sys
import threading
from collections import Counter
from collections.abc import Callable, Collection
from contextlib import closing
from types import FrameType
from typing import Any, Final

import google.protobuf.json_format  # noqa: F401
import pyroute2  # noqa: F401

import registry.shim
from registry import Store
from registry.host import netns
from registry.shim.network import Network
from registry.shim.sandboxer import Sandboxer
from tests.shim.conftest import NETWORK
from tests.shim.traces import whole_pod

ROUNDS: Final = 2
"""Times that a line is counted."""
SHIM: Final = os.path.dirname(registry.shim.__file__)


def run(sandboxer: Sandboxer, db: str, argument: str) -> None:
    """Run the pod NAME, or NAME:PORT, a port of the node that is forwarded to it."""
    name, _, port = argument.partition(":")
    config = whole_pod(db, name)
    if port:
        config.port_mappings.add(container_port=8080, host_port=int(port))
    sandboxer.run(config)


VERBS: Final[dict[str, Callable[[Sandboxer, str, str], object]]] = {
    "run": run,
    "stop": lambda sandboxer, _, sandbox: sandboxer.stop(sandbox),
    "remove": lambda sandboxer, _, sandbox: sandboxer.remove(sandbox),
}
"""Calls of a shim, with the registry and a pod or the id of a sandbox."""


def work(network: Network, files: Collection[str], line: str) -> None:
    """Make the call of an input line, and kill this process before the PLACE-th line of code.

    0 does not kill it. Lines are counted as they are executed, in all threads, in *files*: each
    line twice at most, since the later rounds of a loop are alike.
    """
    db, verb, argument, place = line.split()
    left, counted = int(place), Counter[tuple[str, int]]()

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal left
        file = frame.f_code.co_filename
        if file not in files:
            return None
        if event == "line":
            counted[file, frame.f_lineno] += 1
            left -= counted[file, frame.f_lineno] <= ROUNDS
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
        return trace

    with Store.open(db) as store, closing(Sandboxer(store, network)) as sandboxer:
        if left:
            threading.settrace(trace)
            sys.settrace(trace)
        VERBS[verb](sandboxer, db, argument)
        sys.settrace(None)


def serve(network: Network = NETWORK, names: Collection[str] = ()) -> None:
    """Fork a shim for each line of the input.

    Args:
        network: network of the pods.
        names: names of the modules of the shim whose lines count; default: all of them, and
            `registry.host.netns`.
    """
    files = {f"{SHIM}/{name}.py" for name in names}
    files = files or {f"{SHIM}/{name}" for name in os.listdir(SHIM)} | {netns.__file__}
    gc.freeze()  # the shims share the memory of what is imported
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                work(network, files, line)
                code = 0
            finally:
                os._exit(code)
        _, status = os.waitpid(pid, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)  # noqa: T201 - the answer


if __name__ == "__main__":
    serve()
