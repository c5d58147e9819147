"""A row that contradicts its schema is found out, and what in it is wrong is said."""

from __future__ import annotations

from typing import Any

import pytest

from registry.errors import MetadataError
from registry.tables import rows
from registry.tables.rows import Row, StatusRow

BOOT = "00000000-0000-4000-8000-000000000001"
SOUND: dict[str, Any] = {
    "creation": 1,
    "id": "a",
    "name": "web",
    "netns_path": "/run/netns/a",
    "ip": "",
    "runtime_handler": "",
    "process_label": "",
    "host_network": 0,
    "netns_boot_id": BOOT,
    "netns_number": 7,
    "netns_inode": 70,
    "netns_mount_ns": 10,
    "creator_pid": 4,
    "creator_boot_id": BOOT,
    "creator_pid_ns": 20,
    "creator_time_ns": 30,
    "creator_inode": 400,
    "creator_start_time": 4000,
    "state": "SANDBOX_READY",
    "pid": 5,
    "created_at": 1,
    "reason": "",
    "message": "",
    "changed_at": 1,
    "boot_id": BOOT,
    "process_boot_id": BOOT,
    "process_pid_ns": 20,
    "process_time_ns": 30,
    "process_inode": 500,
    "process_start_time": 5000,
}


def row(kind: type[Row | StatusRow], **columns: object) -> Row | StatusRow:
    """Return a sound row of that kind; *columns* differ."""
    fields = {**SOUND, **columns}
    return kind._make(fields.get(name) for name in kind._fields)


KINDS = pytest.mark.parametrize("kind", [Row, StatusRow])


@KINDS
@pytest.mark.parametrize(
    "columns",
    [
        {},
        {"netns_path": "", "netns_number": None, "netns_inode": None, "netns_mount_ns": None,
         "netns_boot_id": None},
        {"netns_number": None},
        {"pid": 0, "process_boot_id": None, "process_pid_ns": None, "process_time_ns": None,
         "process_inode": None, "process_start_time": None},
        {"process_inode": None, "process_start_time": None},
        {"state": "SANDBOX_UNKNOWN", "created_at": None, "changed_at": None, "boot_id": None},
        {"host_network": 1},
        {"pid": 2**31 - 1, "process_inode": 2**63 - 1},
        {"created_at": -9, "exit_status": -1},
    ],
    ids=str,
)  # fmt: skip
def test_a_sound_row_has_no_damage(kind: type[Row | StatusRow], columns: dict[str, Any]) -> None:
    """The first time and, from the cache, the second; times do not tell what became of it."""
    assert ["", ""] == [rows.damage(row(kind, **columns)) for _ in range(2)]


DAMAGES: dict[str, tuple[dict[str, Any], str]] = {
    "blob for text": ({"netns_boot_id": BOOT.encode()}, "netns_boot_id is a blob, not text or"),
    "NULL for text": ({"state": None}, "state is NULL, not text"),
    "NULL for a number": ({"pid": None}, "pid is NULL, not an integer"),
    "real for a number": ({"netns_number": 7.0}, "netns_number is a real number, not an integer"),
    "text for a number": ({"process_inode": "5"}, "process_inode is text, not an integer or NULL"),
    "number for text": ({"boot_id": 5}, "boot_id is an integer, not text or NULL"),
    "blob for an id": ({"id": b"a"}, "id is a blob, not text"),
    "unknown state": ({"state": "SANDBOX_NEWER"}, "state is 'SANDBOX_NEWER', not a sandbox state"),
    "host network": ({"host_network": 2}, "host_network is 2, not 0 or 1"),
    "negative pid": ({"pid": -5}, "pid is -5, not a pid"),
    "huge pid": ({"pid": 2**31}, "pid is 2147483648, not a pid"),
    "negative number": ({"netns_number": -7}, "netns_number is -7, not a positive number"),
    "negative inode": ({"process_inode": -1}, "process_inode is -1, not a positive number"),
    "huge inode": ({"netns_inode": 2**32}, "netns_inode is 4294967296, not an inode of a namesp"),
    "boot id": ({"process_boot_id": "boot-1"}, "process_boot_id is 'boot-1', not a boot id"),
    "relative path": ({"netns_path": "run/a"}, "netns_path is 'run/a', not an absolute path"),
    "NUL in a path": ({"netns_path": "/a\0b"}, "netns_path is '/a\\x00b', not an absolute path"),
    "half": ({"netns_inode": None}, "netns_number is recorded without netns_inode"),
    "two": ({"pid": -5, "host_network": 7}, "host_network is 7, not 0 or 1; pid is -5"),
}  # fmt: skip


@KINDS
@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_row_says_what_contradicts_the_schema(
    kind: type[Row | StatusRow], name: str
) -> None:
    """Also after a sound row of the same types was cached."""
    columns, said = DAMAGES[name]
    for _ in range(2):
        assert "" == rows.damage(row(kind))
        assert said in rows.damage(row(kind, **columns))


def test_a_creator_is_recorded_as_a_whole() -> None:
    """The other columns of one without a pid would make it an adopted sandbox."""
    assert "without creator_pid" in rows.damage(row(Row, creator_pid=None))


def test_a_long_value_is_shortened_in_the_message() -> None:
    """A report is no place for a megabyte."""
    assert len(rows.damage(row(StatusRow, netns_path="x" * 2**20))) < 200


def test_a_damaged_row_is_refused_by_name() -> None:
    """With what was to be done, and what to do now."""
    with pytest.raises(MetadataError) as caught:
        rows.require_sound(row(Row, pid=-1), "open process of sandbox 'a'")
    assert "a" == caught.value.id
    assert "open process of sandbox 'a': its record is damaged: pid is -1" in str(caught.value)


def test_a_creator_that_is_damaged_is_no_evidence() -> None:
    """It is left out; a sound one is an identity."""
    sound = tuple(SOUND[name] for name in rows.CREATOR_FIELDS)
    assert (4, BOOT, 20, 30, 400, 4000) == rows.creator_of(sound)
    assert None is rows.creator_of((*sound[:-1], "later"))


@pytest.mark.parametrize(
    ("value", "text"), [("a", "a"), (None, ""), (b"a\xff", "a\udcff"), (7, "7"), (1.5, "1.5")]
)
def test_a_damaged_text_is_shown_as_text(value: object, text: str) -> None:
    """Whatever its type has become."""
    assert text == rows.as_text(value)
