"""Demo of the fleet: two nodes, PostgreSQL, a kill, a restore, and one query that tells the truth.

    make demo-fleet

Two nodes have namespaces of their own (mount, network, pid) and a registry each. A pusher on each
node copies its registry to a PostgreSQL that the demo starts on a unix socket. The demo needs root
and Debian's package postgresql. At the end it removes everything.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import tempfile
import time
from typing import Any

from examples.demo import run_sandbox, say, with_clean_exit, works
from registry import NetNS, Store, restore
from tests.fleet.cluster import Cluster, missing

NODES = ("node-1", "node-2")
NAMESPACES = ("--mount", "--net", "--pid", "--fork", "--mount-proc", "--kill-child")
TRUTH = """
SELECT o.node, o.pod, o.state, o.reason, n.status, n.incarnation AS line,
  (SELECT string_agg(kind || ' after ' || after, ', ') FROM fleet_breaks AS b
   WHERE b.registry_id = o.registry_id) AS breaks
FROM fleet_overview AS o JOIN fleet_nodes AS n ON n.registry_id = o.registry_id
ORDER BY o.node, o.pod"""
EXPECTED = [
    ("node-1", "web-0", "SANDBOX_NOTREADY", "NetNSClosed", "alive", 1, None),
    ("node-1", "web-1", "SANDBOX_READY", "", "alive", 1, None),
    ("node-2", "web-0", "SANDBOX_READY", "", "alive", 2, "restored after 4"),
    ("node-2", "web-1", "SANDBOX_READY", "", "alive", 2, "restored after 4"),
    ("node-2", "web-3", "SANDBOX_READY", "", "alive", 2, "restored after 4"),
]


# A node, in namespaces of its own.


def node(name: str, path: str, url: str) -> None:
    """Do what the lines on stdin say, and answer each by a line."""
    pusher: subprocess.Popen[bytes] | None = None
    for line in sys.stdin:
        verb, *args = line.split()
        if verb == "run":
            with Store.open(path, actor="demo", reconcile=False) as store:
                run_sandbox(store, args[0], "/run/netns")
        elif verb == "remove-namespace":
            with Store.open(path, actor="demo", reconcile=False) as store:
                (sandbox,) = store.list(pod=args[0])
                NetNS.load(sandbox.metadata.netns_path).remove()
                store.reconcile()
        elif verb == "backup":
            with Store.open(path, reconcile=False) as store:
                store.backup(f"{path}.backup")
        elif verb == "restore":
            restore(f"{path}.backup", path, force=True)
        elif verb == "push":
            program = [sys.executable, "-m", "registry", "fleet", "push", "--follow"]
            options = ["--to", url, "--db", path, "--machine", name]
            pusher = subprocess.Popen([*program, *options], stderr=subprocess.DEVNULL)
        elif verb == "kill-pusher" and pusher is not None:
            pusher.send_signal(signal.SIGKILL)
            pusher.wait()
        print("done", flush=True)
    if pusher is not None:
        pusher.kill()
        pusher.wait()


class Node:
    """A node, as this process controls it."""

    def __init__(self, name: str, folder: str, url: str) -> None:
        """Start it; everything in its pid namespace ends with it."""
        self.path = f"{folder}/{name}.db"
        prepare = 'mount -t tmpfs node /run && mkdir /run/netns && exec "$@"'
        program = [sys.executable, "-m", "examples.demo_fleet", "node", name, self.path, url]
        self._process = subprocess.Popen(
            ["unshare", *NAMESPACES, "sh", "-c", prepare, "sh", *program],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def do(self, *words: str) -> None:
        """Have it do what `node` describes, and wait until that is done."""
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(" ".join(words) + "\n")
        process.stdin.flush()
        if process.stdout.readline() != "done\n":
            raise SystemExit(f"the node could not {' '.join(words)}")

    def end(self) -> None:
        """Kill the node with all its processes."""
        self._process.kill()
        self._process.communicate()


# The story.


def tell(cluster: Cluster, nodes: list[Node]) -> None:
    """Run pods, break things, and ask PostgreSQL until its answer is the truth."""
    first, second = nodes
    say("Two nodes run two pods each, and a pusher on each copies its registry.")
    for each in nodes:
        for pod in ("web-0", "web-1"):
            each.do("run", pod)
        each.do("push")
        each.do("backup")
    wait(cluster, "SELECT count(*) = 4 FROM fleet_overview WHERE state = 'SANDBOX_READY'")
    show(cluster)

    say("The pusher of node-1 is killed. Then the namespace of its web-0 is removed.")
    first.do("kill-pusher")
    first.do("remove-namespace", "web-0")
    say("PostgreSQL is stopped by force and started again; node-1 pushes again.")
    cluster.stop("immediate")
    cluster.start()
    first.do("push")
    wait(cluster, "SELECT count(*) = 1 FROM fleet_not_ready")

    say("node-2 runs web-2. Its registry is restored from the backup. It runs web-3.")
    ready = "SELECT count(*) = 1 FROM fleet_overview WHERE state = 'SANDBOX_READY' AND pod = "
    second.do("run", "web-2")
    wait(cluster, f"{ready}'web-2'")
    second.do("restore")
    second.do("run", "web-3")
    wait(cluster, f"{ready}'web-3'")

    say("One query for both nodes; line 2 of node-2 begins where the restore parted:")
    found = show(cluster)
    if found != EXPECTED:
        raise SystemExit(f"the demo expected {EXPECTED}")


def wait(cluster: Cluster, query: str) -> None:
    """Wait at most a minute until *query* is true."""
    deadline = time.monotonic() + 60
    while cluster.query(query, "fleet") != [(True,)]:
        if time.monotonic() > deadline:
            raise SystemExit(f"after a minute this is still false: {query}")
        time.sleep(0.05)


def show(cluster: Cluster) -> list[tuple[Any, ...]]:
    """Print the answer to the one query, as a reader sees it, and return it."""
    rows = cluster.query(TRUTH, "fleet", "dashboard")
    titles = ("NODE", "POD", "STATE", "REASON", "STATUS", "LINE", "BREAKS")
    lines = [
        ["-" if cell in {"", None} else str(cell) for cell in line] for line in (titles, *rows)
    ]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        print("  " + "  ".join(map(str.ljust, line, widths)).rstrip())
    return rows


def run() -> int:
    """Run the demo, and remove everything that it has created."""
    with Cluster(safe=True) as cluster, tempfile.TemporaryDirectory() as folder:
        cluster.query("CREATE ROLE owner LOGIN CREATEROLE")
        cluster.query("CREATE DATABASE fleet OWNER owner")
        program = [sys.executable, "-m", "registry", "fleet", "migrate", "--to"]
        subprocess.run([*program, cluster.url("fleet", "owner")], check=True)
        for name in NODES:
            cluster.query(f'CREATE ROLE "{name}" LOGIN IN ROLE fleet_node')
        cluster.query("CREATE ROLE dashboard LOGIN IN ROLE fleet_reader")
        nodes = [Node(name, folder, cluster.url("fleet", name)) for name in NODES]
        try:
            tell(cluster, nodes)
        finally:
            for each in nodes:
                each.end()
    print("\nAll of it is removed again.")
    return 0


def main() -> int:
    """Run the demo, unless something is missing here."""
    if reason := missing():
        print(f"the demo needs a PostgreSQL server: {reason}", file=sys.stderr)
        return 1
    if not works(["unshare", *NAMESPACES]):
        print("the demo needs root with CAP_SYS_ADMIN", file=sys.stderr)
        return 1
    return with_clean_exit(run)


if __name__ == "__main__":
    if sys.argv[1:2] == ["node"]:
        node(*sys.argv[2:])
    else:
        sys.exit(main())
