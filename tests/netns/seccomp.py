"""A kernel that knows less than ours, for the calling thread and those that it starts."""

from __future__ import annotations

import ctypes
import errno
import platform
import struct

_X86 = platform.machine() == "x86_64"  # the others have common numbers
NAME_TO_HANDLE_AT = 303 if _X86 else 264
IOCTL = 16 if _X86 else 29
MOUNT = 165 if _X86 else 40
CLONE = 56 if _X86 else 220
KILL = 62 if _X86 else 129
CLONE3 = 435
PIDFD_OPEN = 434
FACCESSAT2 = 439

_PR_SET_SECCOMP, _FILTER = 22, 2
_PR_SET_NO_NEW_PRIVS = 38
_LOAD, _EQUAL, _RETURN = 0x20, 0x15, 0x06
_ERRNO, _ALLOW = 0x50000, 0x7FFF0000
_NUMBER, _SECOND = 0, 24
"""Where struct seccomp_data has the number of the call, and its second argument."""


def refuse(call: int, error: int, second: int | None = None) -> None:
    """Have the system call fail with *error*, as one that is not there; no way leads back.

    Args:
        call: its number.
        error: errno.
        second: only where this is its second argument.
    """
    steps = [_step(_LOAD, _NUMBER), _step(_EQUAL, call, otherwise=1 if second is None else 3)]
    if second is not None:
        steps += [_step(_LOAD, _SECOND), _step(_EQUAL, second, otherwise=1)]
    steps += [_step(_RETURN, _ERRNO | error), _step(_RETURN, _ALLOW)]
    program = ctypes.create_string_buffer(b"".join(steps))
    described = struct.pack("HxxxxxxP", len(steps), ctypes.addressof(program))
    libc = ctypes.CDLL(None, use_errno=True)
    assert 0 == libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    assert 0 == libc.prctl(_PR_SET_SECCOMP, _FILTER, described, 0, 0), ctypes.get_errno()


def refuse_threads() -> None:
    """Make every start of a thread or process fail with EAGAIN, as the limits of tasks do.

    Only the calling thread is affected: other threads of the process still can. No setting of the
    host has a say in it, neither the limits of a user (root has none) nor vm.overcommit_memory.
    """
    for call in (CLONE, CLONE3):
        refuse(call, errno.EAGAIN)


def _step(code: int, operand: int, otherwise: int = 0) -> bytes:
    """Return one BPF instruction; *otherwise*: how many are left out where they differ."""
    return struct.pack("=HBBI", code, 0, otherwise, operand)
