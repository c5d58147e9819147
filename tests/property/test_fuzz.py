"""Fuzzing of unmarshal_json: it returns metadata or raises MetadataError, for any bytes.

It takes about a second in `make test`, and FUZZ_SECONDS in `make fuzz`.
"""

from __future__ import annotations

import json
import os
import random
import time
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from registry import Metadata, MetadataError
from tests.golden import FOLDERS, cases, documents

pytestmark = pytest.mark.property

SECONDS = float(os.environ.get("FUZZ_SECONDS", "0"))
SEED = int(os.environ.get("FUZZ_SEED", "0")) or (time.time_ns() if SECONDS else 1)
ROUNDS = 5_000

SAMPLES = sorted(
    {
        *(data for data in documents().values() if len(data) < 3_000),
        *(case.input for folder in FOLDERS for case in cases(folder) if len(case.input) < 3_000),
    }
)
TOKENS = [
    *(b"null", b"true", b"-0", b"1.0", b"1e9", b"18446744073709551616", b'""', b"{}", b"[]"),
    *(b"[null]", b'{"":null}', rb"\ud800", rb"\u0000", b"\xff", b"\xed\xa0\x80", b"\xef\xbb\xbf"),
    *(b'"Version":"v1",', b'"Config":', b'"cniresult":', b'"Routes":', b'"dst":"::/0"', b"\\"),
    *(b'"::ffff:1.2.3.4"', b'"IP":', b'"IPConfigs":[{', b'"labels":{"a":"b"}', b"[" * 40, b"}"),
]


def broken(rng: random.Random) -> bytes:
    """Return a sample with a few things wrong in it."""
    data = bytearray(rng.choice(SAMPLES))
    for _ in range(rng.randint(1, 6)):
        at = rng.randrange(len(data) + 1)
        to = min(len(data), at + rng.randrange(1, 40))
        kind = rng.randrange(6)
        if kind == 0:
            data[at:at] = rng.choice(TOKENS)
        elif kind == 1:
            data[at:to] = b""
        elif kind == 2:
            data[at:to] = rng.choice(TOKENS)
        elif kind == 3:
            data[at:at] = data[at:to]
        elif kind == 4:
            other = rng.choice(SAMPLES)
            data[at:at] = other[rng.randrange(len(other) + 1) :][: to - at]
        elif data:
            data[at % len(data)] ^= 1 << rng.randrange(8)
    return bytes(data)


def read_and_write(data: bytes) -> bool:
    """Return whether *data* is metadata; what is, is written so that it is read as the same.

    But for a route to nowhere, which Go writes and cannot read either.
    """
    try:
        found = Metadata.unmarshal_json(data)
    except MetadataError:
        return False
    written = found.marshal_json()
    assert rb'"\u003cnil\u003e"' in written or found == Metadata.unmarshal_json(written)
    return True


@pytest.mark.timeout(SECONDS + 120)
def test_broken_documents_end_in_metadata_or_a_metadata_error() -> None:
    """Samples of Go and containerd with bytes changed, cut out, doubled and put in."""
    rng = random.Random(SEED)
    end = time.monotonic() + SECONDS
    rounds = taken = 0
    while rounds < ROUNDS or time.monotonic() < end:
        data = broken(rng)
        try:
            taken += read_and_write(data)
        except BaseException:
            print(f"FUZZ_SEED={SEED}, round {rounds}: {data!r}")  # noqa: T201 - to try it again
            raise
        rounds += 1
    print(f"{rounds} documents, {taken} of them accepted, FUZZ_SEED={SEED}")  # noqa: T201
    assert 0 < taken < rounds


KEYS = st.sampled_from(
    [
        "Version",
        "Metadata",
        "ID",
        "Config",
        "CNIResult",
        "AdditionalIPs",
        "Interfaces",
        "DNS",
        "Routes",
        "IPConfigs",
        "IP",
        "Gateway",
        "Mac",
        "dst",
        "gw",
        "nameservers",
        "metadata",
        "attempt",
        "labels",
        "port_mappings",
        "host_port",
        "linux",
        "sysctls",
        "security_context",
        "run_as_user",
        "value",
        "supplemental_groups",
        "id",
        "CONFIG",
        "a",
    ]
)
TEXTS = st.sampled_from(["v1", "10.0.0.1", "10.0.0.1/8", "::1", "::/0", ""]) | st.text(max_size=4)
LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | TEXTS
VALUES = st.recursive(
    LEAVES,
    lambda inside: st.lists(inside, max_size=3) | st.dictionaries(KEYS, inside, max_size=4),
)


@settings(deadline=None, suppress_health_check=list(HealthCheck), max_examples=300)
@given(VALUES)
def test_any_value_in_any_place_ends_in_metadata_or_a_metadata_error(value: Any) -> None:
    """JSON, NaN included, under the names that metadata has."""
    read_and_write(json.dumps(value).encode())
    read_and_write(json.dumps({"Version": "v1", "Metadata": value}).encode())
