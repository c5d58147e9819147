"""Errors of the system that come from a limit of tasks, memory, descriptors or space.

They say nothing about a process, a namespace or a configuration: none of these is missing or wrong.
"""

from __future__ import annotations

import errno
from typing import Final

from registry import RegistryError, ResourceExhaustedError

ADVICE: Final = {
    errno.EAGAIN: "raise the limit of tasks (TasksMax= of the unit, pids.max of its cgroup)",
    errno.EMFILE: "raise the limit of descriptors (LimitNOFILE= of the unit)",
    errno.ENFILE: "raise the limit of open files of the host (fs.file-max)",
    errno.ENOMEM: "raise the limit of memory (MemoryMax= and LimitAS= of the unit)",
    errno.ENOSPC: "free space, or raise its limit",
    errno.EDQUOT: "free space, or raise the quota",
}
"""What to do about a limit, by the error number."""


def failed(doing: str, error: OSError, advice: str = "") -> RegistryError:
    """Return the error of *doing*: ResourceExhaustedError if *error* comes from a limit.

    Args:
        doing: operation and object.
        error: error of the system.
        advice: what to do about an error that does not come from a limit.
    """
    at = f"{error.filename!r}: " if error.filename and str(error.filename) not in doing else ""
    kind = ResourceExhaustedError if error.errno in ADVICE else RegistryError
    advice = ADVICE.get(error.errno or 0, advice)
    return kind(f"{doing}: {at}{error.strerror}" + (f"; {advice}" if advice else ""))
