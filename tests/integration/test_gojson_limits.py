"""Documents over a limit are refused, in bounded memory."""

from __future__ import annotations

from dataclasses import replace

import pytest

from registry import MetadataError
from registry.cri import PodSandboxConfig
from registry.model.containerd import DOCUMENT_MAX
from registry.model.metadata import CONFIG_MAX
from tests.golden import ours
from tests.tools import run, sandbox


@pytest.mark.parametrize("size", [CONFIG_MAX, CONFIG_MAX + 1])
def test_a_config_over_4_mib_is_refused(size: int) -> None:
    """By its protobuf bytes, whatever it takes as text."""
    config = PodSandboxConfig(hostname="\x01" * (size - 5))
    assert size == config.ByteSize()
    data = replace(sandbox("a"), config=config).marshal_json()
    found = ours(data)
    if size > CONFIG_MAX:
        assert isinstance(found, MetadataError)
        assert ("Metadata.Config", size) == (found.field, found.value)
    else:
        assert data == found


def test_document_over_a_limit_is_refused_in_bounded_memory() -> None:
    """A process that may have 1 GiB in all reads documents of 32 MiB, each made to take more."""
    out = run(
        """
        import resource, sys
        from registry import Metadata, MetadataError
        size = int(sys.argv[1])
        resource.setrlimit(resource.RLIMIT_AS, (2**30, 2**30))

        def config(begin, unit, end):
            begin = b'{"Version":"v1","Metadata":{"Config":{' + begin
            return begin + unit * ((size - len(begin) - len(end) - 3) // len(unit)) + end + b"}}}"

        DOCUMENTS = {
            "messages": lambda: config(b'"port_mappings":[', b"{},", b"{}]"),
            "entries": lambda: config(b'"labels":{', b'"":"",', b'"":""}'),
            "text": lambda: config(b'"hostname":"', "\\U0001f600".encode(), b'"'),
            "escapes": lambda: config(b'"hostname":"', rb"\\ud83d\\ude00", b'"'),
            "a number": lambda: config(b'"metadata":{"attempt":', b"1", b"}"),
            "a key": lambda: config(b'"labels":{"', b"x", b'":1}'),
            "version": lambda: b'{"Version":"' + b"\\x7f" * (size - 14) + b'"}',
            "depth": lambda: b"[" * size,
            "size": lambda: b" " * (size + 1),
        }
        for name, build in DOCUMENTS.items():
            data = build()
            try:
                Metadata.unmarshal_json(data)
            except MetadataError as error:
                assert len(str(error)) < 20000
                print(name)
        """,
        DOCUMENT_MAX,
    )
    names = "messages entries text escapes a number a key version depth size"
    assert names.split() == out.split()
