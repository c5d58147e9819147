"""Seccomp filter of a pause process: what RuntimeDefault means here.

The filter refuses the system calls that Docker's default profile is documented to block. The thread
that spawns the process loads it, and the process inherits it. A profile of the node could refuse
what Python does in that thread, and end the server with it; so validate.py refuses such profiles.
"""

from __future__ import annotations

import errno
import logging
import os
import struct
from functools import cache
from typing import TYPE_CHECKING, Final

from registry import ResourceExhaustedError
from registry.host import kernel
from registry.sync.interrupts import is_interrupt

if TYPE_CHECKING:
    import ctypes

log = logging.getLogger("registry.shim")

LIBRARY: Final = "libseccomp.so.2"
ALLOW: Final = 0x7FFF0000  # seccomp.h, SCMP_ACT_ALLOW and SCMP_ACT_ERRNO
ERRNO: Final = 0x00050000
MASKED_EQ: Final = 7
COMPARISON: Final = struct.Struct("@IiQQ")
"""struct scmp_arg_cmp: number of the argument, operator, mask, and value."""
UNKNOWN: Final = -1
"""Number of a system call that this libseccomp does not know."""

DENIED: Final = """
    acct add_key bpf clock_adjtime clock_settime create_module delete_module finit_module
    fsconfig fsmount fsopen fspick get_kernel_syms get_mempolicy init_module io_uring_enter
    io_uring_register io_uring_setup ioperm iopl kcmp kexec_file_load kexec_load keyctl
    lookup_dcookie mbind mount mount_setattr move_mount move_pages nfsservctl open_by_handle_at
    open_tree perf_event_open personality pivot_root process_vm_readv process_vm_writev ptrace
    query_module quotactl quotactl_fd reboot request_key set_mempolicy setns settimeofday stime
    swapoff swapon sysfs _sysctl umount umount2 unshare uselib userfaultfd ustat vm86 vm86old
"""
"""System calls that fail with EPERM, each in its architecture's form."""
NAMESPACES: Final = (
    kernel.CLONE_NEWNS,
    kernel.CLONE_NEWUTS,
    kernel.CLONE_NEWIPC,
    kernel.CLONE_NEWPID,
    kernel.CLONE_NEWNET,
    0x02000000,  # CLONE_NEWCGROUP
    0x10000000,  # CLONE_NEWUSER
)
"""Flags with which clone(2) fails with EPERM."""


def load_default() -> None:
    """Load the filter for the calling thread, which must have `no_new_privs`, and its children.

    Without libseccomp nothing is loaded, and that is logged once.

    Raises:
        OSError: the kernel refuses the filter.
    """
    library = _library()
    if library is None:
        return
    import ctypes  # noqa: PLC0415

    context = ctypes.c_void_p(library.seccomp_init(ALLOW))
    try:
        for name in DENIED.split():
            _deny(library, context, name, errno.EPERM)
        # Its flags lie in memory, which a filter cannot read; libc falls back to clone.
        _deny(library, context, "clone3", errno.ENOSYS)
        for flag in NAMESPACES:
            _deny(library, context, "clone", errno.EPERM, flag)
        _check("load seccomp filter", library.seccomp_load(context))
    finally:
        library.seccomp_release(context)


def _deny(
    library: ctypes.CDLL, context: ctypes.c_void_p, name: str, code: int, flag: int = 0
) -> None:
    """Let a system call fail with *code*; with *flag*, only if its first argument has that bit."""
    number = library.seccomp_syscall_resolve_name(name.encode())
    if number == UNKNOWN:
        return
    compare = COMPARISON.pack(0, MASKED_EQ, flag, flag)
    added = library.seccomp_rule_add_array(context, ERRNO | code, number, int(flag > 0), compare)
    _check(f"deny {name} by seccomp", added)


def _check(doing: str, result: int) -> None:
    """Raise if libseccomp has returned a negative error number."""
    if result < 0:
        raise OSError(-result, f"{doing}: {os.strerror(-result)}")


@cache
def _library() -> ctypes.CDLL | None:
    """Return libseccomp, or None if it is not installed.

    Raises:
        ResourceExhaustedError: it cannot be loaded for lack of descriptors or memory.
    """
    import ctypes  # noqa: PLC0415 - only a spawn needs it

    try:
        library = ctypes.CDLL(LIBRARY)
    except OSError as error:  # of dlopen, without an errno
        if is_interrupt(error):
            raise
        if os.strerror(errno.ENOENT) not in str(error):
            why = f"load {LIBRARY}: {error}; raise the limit of descriptors or memory, or repair it"
            raise ResourceExhaustedError(why) from error
        log.warning(
            "%s is not installed; pause processes run without a seccomp filter",
            LIBRARY,
            extra={"event": "seccomp_missing"},
        )
        return None
    number, context = ctypes.c_int, ctypes.c_void_p
    library.seccomp_init.argtypes, library.seccomp_init.restype = [ctypes.c_uint32], context
    library.seccomp_release.argtypes, library.seccomp_release.restype = [context], None
    library.seccomp_load.argtypes = [context]
    library.seccomp_syscall_resolve_name.argtypes = [ctypes.c_char_p]
    library.seccomp_rule_add_array.argtypes = [
        *(context, ctypes.c_uint32, number, ctypes.c_uint),
        ctypes.c_char_p,
    ]
    return library
