"""Orphans: network namespaces that carry this registry's name and belong to no sandbox."""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Iterable

from registry.errors import NetNSError
from registry.handles.session import Session
from registry.host import namespaces, netns
from registry.host.context import HostContext
from registry.host.inventory import HostInventory
from registry.host.namespaces import Observer, Presence
from registry.model.identity import NetNSIdentity
from registry.sync.interrupts import reraise_interrupt
from registry.tables import rows, sql

log = logging.getLogger("registry")


def find_orphans(session: Session, registry_id: str, directories: Iterable[str]) -> list[str]:
    """Return the paths of this registry's namespaces that belong to no sandbox.

    Args:
        session: session of the registry.
        registry_id: id of the registry, which the names of its namespaces carry.
        directories: directories to search beside /run/netns.
    """
    searched = [netns.BASE_DIR, *sorted(set(filter(os.path.isabs, directories)))]
    return _without_owner(session, find_namespaces(registry_id, searched))


def find_namespaces(registry_id: str, directories: Iterable[str]) -> list[str]:
    """Return the paths named `sr-<registry id>-<uuid>`.

    Args:
        registry_id: id of the registry.
        directories: absolute directories to search. Skipped: a directory that cannot be read, and
            /proc, which leads into the mount namespaces of other processes.
    """
    searched = dict.fromkeys(path for path in directories if not f"{path}/".startswith("/proc/"))
    return [
        os.path.join(directory, name)
        for directory in searched
        for name in sorted(_names(directory))
        if netns.is_own_path(name, registry_id)
    ]


def _names(directory: str) -> list[str]:
    """Return the names in *directory* that may carry the registry's name, which is ASCII."""
    try:
        names = os.listdir(namespaces.encode(directory))
    except (OSError, ValueError) as error:
        reraise_interrupt(error)
        return []
    return [name.decode() for name in names if name.isascii()]


def _without_owner(session: Session, found: list[str]) -> list[str]:
    """Return the paths in *found*, which carry this registry's name, that belong to no sandbox."""
    if not found:
        return []
    # Read after the names: a sandbox is added before its namespace is made.
    owned = session.fetch(sql.NETNS_PATHS, {}, "find orphans")
    return without_owner(found, [rows.as_text(path) for (path,) in owned])


def without_owner(found: Iterable[str], owned: Iterable[str]) -> list[str]:
    """Return the paths in *found* that are network namespaces and belong to no sandbox.

    A namespace with two paths in one directory (/var/run is /run) is returned once.

    Args:
        found: paths that carry this registry's name. A symlink there is no orphan.
        owned: paths of the sandboxes, which may refer to a namespace by another name.
    """
    owned, context = set(owned), HostContext.current()
    orphans: dict[tuple[int, str], str] = {}
    for path in found:
        if path not in owned:
            identity = namespaces.observe(path, context, follow=False).identity
            if identity is not None:
                orphans.setdefault((identity.inode, os.path.basename(path)), path)
    if not orphans:
        return []
    observer = Observer(owned, context)
    observations = [observer.observe(path) for path in owned]
    inodes = {each.identity.inode for each in observations if each.identity is not None}
    # The target of such a path is unknown, so its unique name counts as owned.
    unseen = {
        os.path.basename(each.path) for each in observations if each.presence is Presence.UNSEEN
    }
    return sorted(
        path
        for (inode, name), path in orphans.items()
        if inode not in inodes and name not in unseen
    )


def remove_orphans(session: Session, registry_id: str, paths: Iterable[str]) -> list[str]:
    """Remove the namespaces at *paths* that are still orphans, and return their paths.

    Raises:
        NetNSError: with `.errno`; for the first orphan that cannot be removed, after the others
            were removed. ETIMEDOUT, if another process holds the lock of the directory, ends the
            removal at once, since it holds the write lock of the registry.
    """
    removed, errors = [], []
    wanted = [path for path in sorted(set(paths)) if netns.is_own_path(path, registry_id)]
    with session.write("remove orphaned network namespaces", exclusive=True):
        for path in _without_owner(session, wanted):
            try:
                if _remove_orphan(path):
                    removed.append(path)
            except NetNSError as error:
                errors.append(error)
                if error.errno == errno.ETIMEDOUT:
                    break
    for path in removed:
        log.info(
            "removed orphaned network namespace %r",
            path,
            extra={
                "event": "orphan_removed",
                "path": session.engine.path,
                "netns_path": path,
            },
        )
    if errors:
        raise errors[0]
    return removed


def _remove_orphan(path: str) -> bool:
    """Remove the namespace at *path*; return False if it is gone.

    A copy of a registry, for example a backup, reports the namespaces that the original has created
    since as orphans.

    Raises:
        NetNSError: with `.errno`; EBUSY: a process lives in the namespace; EACCES: processes are
            hidden, so that one may live there.
    """
    context = HostContext.current()
    identity = namespaces.observe(path, context, follow=False).identity
    if identity is None:
        return False
    _require_no_process(path, identity, HostInventory(context))
    netns.remove(path, identity)
    return True


def _require_no_process(path: str, identity: NetNSIdentity, inventory: HostInventory) -> None:
    """Raise NetNSError if a process lives, or may live, in the namespace at *path*."""
    doing = f"remove orphaned network namespace {path!r}"
    try:
        living = inventory.living_in(identity.inode)
    except OSError as error:
        reraise_interrupt(error)
        message = f"{doing}: find the processes in it: {error.strerror}"
        raise NetNSError(message, path=path, errno=error.errno or 0) from error
    if living:
        raise NetNSError(
            f"{doing}: process {living[0]} lives in it; end it first if it is left over, and make "
            "sure that this registry is no copy of another",
            path=path,
            errno=errno.EBUSY,
        )
    if inventory.processes_may_be_hidden:
        raise NetNSError(
            f"{doing}: a process may live in it, since /proc hides processes from this one; run "
            "with CAP_SYS_PTRACE and a /proc without hidepid= (systemd: ProtectProc=default)",
            path=path,
            errno=errno.EACCES,
        )
