"""Evidence for or against a reboot; tests/faults observes it for real."""

from __future__ import annotations

import pytest

from registry.host import kernel
from registry.host.context import HostContext
from registry.host.inventory import HostInventory


@pytest.mark.parametrize(
    ("number", "initial", "recurs"),
    [
        (1, True, True),  # the first ids of a CPU
        (8, True, True),
        (9, False, False),
        (4096 + 4, True, True),
        (4096 + 9, False, False),
        (2**40 + 9, False, False),
        (0xEFFFFFF8, True, True),  # inodes: fixed ones
        (0xEFFFFFFC, True, True),
        (0xF0000000, False, True),  # and those that follow
        (0xF0000151, False, True),
    ],
)
def test_numbers_of_initial_namespaces_and_inodes_recur(
    number: int, initial: bool, recurs: bool
) -> None:
    """They are the same on each boot; other numbers start again and may recur by chance."""
    assert (initial, recurs) == (kernel.may_be_initial(number), kernel.recurs(number))


def test_our_own_namespaces_exist_unless_they_recur() -> None:
    """Nor does a number exist that no namespace has."""
    here = HostContext.current()
    inventory = HostInventory(here)
    for kind, number in (("pid", here.pid_ns), ("mnt", here.mount_ns)):
        assert number is not None
        assert inventory.has(kind, number) is not kernel.recurs(number)
        assert not inventory.has(kind, 2**40 + 9)
        assert not inventory.has(kind, None)
