"""Mount namespace of a pause process, and the resolv.conf that is mounted in it.

The namespace keeps only the mounts that the programs of the process lie on. A copy of any other
mount would keep its file system busy after the host has unmounted it, and each sandbox would have a
copy of the network namespaces of all others.

The file lies in a directory beside the registry, under the id of the sandbox, so that the next
server finds it after a crash.
"""

from __future__ import annotations

import os
import re
from typing import Final

from registry.cri import DNSConfig
from registry.host import kernel
from registry.shim import limits
from registry.sync.interrupts import reraise_interrupt, suppress_os_errors

RESOLV: Final = "/etc/resolv.conf"
SYSTEM: Final = frozenset({"bin", "dev", "etc", "lib", "lib64", "proc", "sbin", "sys", "usr"})
"""Directories of the root whose mounts stay, with all mounts below them."""


def resolv_path(registry: str, id: str) -> str:
    """Return the path of the resolv.conf of a sandbox that has one of its own.

    Args:
        registry: path of the registry.
        id: id of the sandbox.
    """
    return os.path.join(f"{registry}-resolv", id)


def write_resolv(path: str, dns: DNSConfig) -> None:
    """Write the resolv.conf that *dns* specifies at *path*, readable for every user.

    Raises:
        RegistryError: the file cannot be written.
    """
    lines = [("search", *dns.searches)] if dns.searches else []
    lines += [("nameserver", server) for server in dns.servers]
    lines += [("options", *dns.options)] if dns.options else []
    try:
        os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
        with open(os.open(path, flags, 0o644), "w", encoding="utf-8") as file:
            os.fchmod(file.fileno(), 0o644)  # under any umask
            file.writelines(f"{' '.join(words)}\n" for words in lines)
    except OSError as error:
        reraise_interrupt(error)
        raise limits.failed(f"write {path!r}", error) from error


def resolvs(registry: str) -> set[str]:
    """Return the ids of the sandboxes that have a resolv.conf of their own."""
    with suppress_os_errors():  # there is no directory before the first
        return set(os.listdir(os.path.dirname(resolv_path(registry, ""))))
    return set()


def remove_resolv(path: str) -> None:
    """Remove the file at *path*; a missing one is removed.

    Raises:
        RegistryError: it cannot be removed.
    """
    try:
        os.unlink(path)
    except (FileNotFoundError, NotADirectoryError) as error:
        reraise_interrupt(error)
    except OSError as error:
        reraise_interrupt(error)
        raise limits.failed(f"remove {path!r}", error) from error


def isolate(resolv: str) -> None:
    """Drop the mounts that the process does not need, in the new namespace of this thread.

    Args:
        resolv: path of the file to mount on that of the node; "": none.
    Raises:
        OSError: the kernel refuses it.
    """
    target = os.path.realpath(RESOLV)
    # A slave still gets the unmounts of the host, and passes on none of those that follow.
    kernel.mount("none", "/", "none", kernel.MS_REC | kernel.MS_SLAVE)
    if resolv and os.path.exists(target):
        kernel.mount(resolv, target, "none", kernel.MS_BIND)
    for point in _points():
        if not is_needed(point, target):
            with suppress_os_errors():  # it went with the mount above it
                kernel.umount(point, kernel.MNT_DETACH | kernel.UMOUNT_NOFOLLOW)
    kernel.mount("none", "/", "none", kernel.MS_REC | kernel.MS_PRIVATE)


def _points() -> list[str]:
    """Return the mount points that this thread sees, without the escapes of mountinfo."""
    with open("/proc/thread-self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
        points = [line.split(" ")[4] for line in file]
    return [re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), each) for each in points]


def is_needed(point: str, target: str) -> bool:
    """Return whether a mount stays for the programs of the process, or for *target*."""
    return point == "/" or point.split("/")[1] in SYSTEM or f"{target}/".startswith(f"{point}/")
