"""A persistent registry of pod sandboxes, for runtime shims: one SQLite file.

    from registry import Metadata, State, Status, Store

    with Store.open("/var/lib/shim/registry.db") as store:
        sandbox = store.add(Metadata(id="4a33", name="web", config=None), Status(State.READY))

Modules, each importing only from those before it:

    errors        what can go wrong
    values        checks of single values
    interrupts    exceptions that a signal handler raises into our code
    waiting       waiting for other threads
    descriptor    file descriptors of several threads
    kernel        boot, mounts and namespaces of the host
    mounts        mounts on a file in other mount namespaces
    status        State, Status, UpdateFunc
    cri           the CRI's PodSandboxConfig, and Go's JSON of it
    cni           the answer of the CNI plugins
    metadata      what a sandbox is
    namespaces    network namespaces at paths, without side effects
    netns         network namespaces, made, entered and removed
    process       which process a pid names
    schema        tables, triggers, views
    columns       types and ranges of stored values
    sql, rows     statements, and values to rows and back
    engine        the file: locks and transactions
    migrate       which schema a file has
    inspection    what is at a path, before anything is changed
    evidence      evidence for and against a reboot of the host
    reconcile     what became of the sandboxes: look, plan
    live          what is in this process and not in the file
    cache         what was read of the latest commit
    changes       what is written in one transaction
    session       what a store and its handles share
    sandbox       Sandbox and its status
    additions     sandboxes that are to be added
    exits         whose init processes have ended
    recover       reconcile on this host: looking, marking, orphans
    store         Store
    check         what must hold of the data
    documents     the documents in a file of JSON
    transfer      sandboxes in and out, as containerd's JSON
    output, cli   the command line
    shim          a runtime shim, which embeds all of this: the CRI on a unix socket
"""

from __future__ import annotations

from registry.check import Violation
from registry.cni import DNS, CNIResult, Interface, IPConfig, Route
from registry.errors import (
    AlreadyExistsError,
    AmbiguousPrefixError,
    ClosedNetNSError,
    CommitUnknownError,
    CompactedError,
    DataLossError,
    FailedPreconditionError,
    InvalidArgumentError,
    MetadataError,
    NameReservedError,
    NetNSError,
    NotFoundError,
    ReadOnlyError,
    RegistryError,
    ResourceExhaustedError,
    SchemaVersionError,
    StoreClosedError,
    UnavailableError,
)
from registry.exits import Exit, Exits
from registry.live import Container, StopCh
from registry.metadata import Metadata
from registry.netns import NetNS
from registry.process import Process
from registry.reconcile import Finding, Report, Verdict
from registry.rows import Transition
from registry.sandbox import Sandbox
from registry.status import State, Status, StatusStorage, UpdateFunc
from registry.store import Store

__all__ = [
    "DNS",
    "AlreadyExistsError",
    "AmbiguousPrefixError",
    "CNIResult",
    "ClosedNetNSError",
    "CommitUnknownError",
    "CompactedError",
    "Container",
    "DataLossError",
    "Exit",
    "Exits",
    "FailedPreconditionError",
    "Finding",
    "IPConfig",
    "Interface",
    "InvalidArgumentError",
    "Metadata",
    "MetadataError",
    "NameReservedError",
    "NetNS",
    "NetNSError",
    "NotFoundError",
    "Process",
    "ReadOnlyError",
    "RegistryError",
    "Report",
    "ResourceExhaustedError",
    "Route",
    "Sandbox",
    "SchemaVersionError",
    "State",
    "Status",
    "StatusStorage",
    "StopCh",
    "Store",
    "StoreClosedError",
    "Transition",
    "UnavailableError",
    "UpdateFunc",
    "Verdict",
    "Violation",
]
