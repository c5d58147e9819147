"""A persistent registry of pod sandboxes, for runtime shims: one SQLite file.

    from registry import Metadata, State, Status, Store

    with Store.open("/var/lib/shim/registry.db") as store:
        sandbox = store.add(Metadata(id="4a33", name="web", config=None), Status(State.READY))

Packages, each importing only from those before it; the docstring of each lists its modules:

    version       the version of the distribution
    visible       text for people, with escapes for what is not seen
    errors        errors of the package
    sync          locks, calls in other threads, and interrupts
    cri           the CRI's PodSandboxConfig, and Go's JSON of it
    model         values of a sandbox: metadata, status, CNI result
    host          boot and namespaces of the host, mounts, network namespaces, processes
    engine        the file: locks and transactions
    tables        schema, SQL, rows, writes, migrations, integrity rules
    handles       sandboxes, their runtime state, the session that they share
    recovery      reconcile: evidence, verdicts, and the changes that follow from them
    store         Store
    aio           AsyncStore: the same for asyncio; imported by those who use it
    maintenance   restore of a backup, salvage of a damaged registry; imported by those who use it
    metrics       metrics for Prometheus; imported by those who use them
    fleet         copies of many registries in one PostgreSQL database; an extra of its own
    cli           the command line
    shim          a runtime shim that serves the CRI on a unix socket
    browse        a page that shows a registry in a browser, with Datasette
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

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
from registry.handles.exit_watcher import Exit, Exits
from registry.handles.extensions import Extensions
from registry.handles.runtime_state import Container, StopCh
from registry.handles.sandbox import Sandbox
from registry.host.held_process import Process
from registry.host.netns import NetNS
from registry.model.cni import DNS, CNIResult, Interface, IPConfig, Route
from registry.model.extensions import Extension
from registry.model.metadata import Metadata
from registry.model.status import State, Status, StatusStorage, UpdateFunc
from registry.recovery.findings import Finding, Report, Verdict
from registry.store import Store
from registry.sync.imports import late_import
from registry.tables.integrity import Violation
from registry.tables.rows import Transition
from registry.version import __version__
from registry.visible import visible_record

if TYPE_CHECKING:
    from registry.maintenance.restore import Restoration, restore
    from registry.maintenance.salvage import salvage
    from registry.maintenance.salvage_report import Loss, Salvage

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
    "Extension",
    "Extensions",
    "FailedPreconditionError",
    "Finding",
    "IPConfig",
    "Interface",
    "InvalidArgumentError",
    "Loss",
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
    "Restoration",
    "Route",
    "Salvage",
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
    "__version__",
    "restore",
    "salvage",
]

if not TYPE_CHECKING:  # a type checker would accept any name otherwise

    def __getattr__(name: str) -> Any:
        """Return a name of `registry.maintenance`, which is imported with the first one (PEP 562).

        Raises:
            ResourceExhaustedError: no file descriptor is left to import it.
        """
        if name not in {"Loss", "Restoration", "Salvage", "restore", "salvage"}:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        with late_import("registry.maintenance"):
            from registry.maintenance.restore import Restoration, restore  # noqa: PLC0415 - rare
            from registry.maintenance.salvage import salvage  # noqa: PLC0415
            from registry.maintenance.salvage_report import Loss, Salvage  # noqa: PLC0415

        globals().update(Restoration=Restoration, restore=restore)
        globals().update(Loss=Loss, Salvage=Salvage, salvage=salvage)
        return globals()[name]


# The program chooses the handlers. Without any, Python would write each warning to stderr.
logging.getLogger("registry").addHandler(logging.NullHandler())
logging.getLogger("registry").addFilter(visible_record)
