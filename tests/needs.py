"""Marks for tests that need a feature of the machine; without it they are skipped with the reason.

Being root is not enough: in most containers root may neither mount nor trace nor create namespaces.
So each feature is tried, once in a process.
"""

from __future__ import annotations

import ctypes.util
import os
import shutil
import subprocess

import pytest

from registry.shim.cgroups import hierarchies


def _works(*command: str) -> bool:
    """Return whether *command* can be run and succeeds."""
    if shutil.which(command[0]) is None:
        return False
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def _may_trace() -> bool:
    """Return whether strace is installed and may attach to a process that it did not start."""
    if shutil.which("strace") is None:
        return False
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL) as traced:
        strace = ["strace", "-o", os.devnull, "-p", str(traced.pid)]
        with subprocess.Popen(strace, stderr=subprocess.PIPE, text=True) as tracer:
            assert tracer.stderr is not None
            attached = "attached" in tracer.stderr.readline()
            assert traced.stdin is not None
            traced.stdin.close()
            tracer.stderr.read()
    return attached


def _may_make_cgroups() -> bool:
    """Return whether cgroups are mounted and can be created in each hierarchy."""
    mounted = hierarchies()
    return bool(mounted) and all(os.access(point, os.W_OK) for point in mounted)


_root = os.geteuid() == 0

namespaces = pytest.mark.skipif(
    not (_root and _works("unshare", "--mount", "--net", "true")),
    reason="creating mounts and namespaces needs root with CAP_SYS_ADMIN",
)
another_user = pytest.mark.skipif(
    not (_root and _works("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "true")),
    reason="becoming another user needs root with CAP_SETUID",
)
MAY_MAKE_CGROUPS = _root and _may_make_cgroups()
cgroups = pytest.mark.skipif(
    not MAY_MAKE_CGROUPS,
    reason="needs mounted cgroups, and root that may create some",
)
veth = pytest.mark.skipif(
    not _works("unshare", "--net", "ip", "link", "add", "sr-test", "type", "veth"),
    reason="needs iproute2, and a kernel with veth devices",
)
libseccomp = pytest.mark.skipif(
    ctypes.util.find_library("seccomp") is None, reason="libseccomp is not installed"
)
strace = pytest.mark.skipif(
    not (_root and _may_trace()),
    reason="needs strace, and root with CAP_SYS_PTRACE",
)


def program(name: str) -> pytest.MarkDecorator:
    """Return the mark of a test that runs the program *name*."""
    return pytest.mark.skipif(shutil.which(name) is None, reason=f"{name} is not installed")
