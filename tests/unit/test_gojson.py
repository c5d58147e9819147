"""The JSON of metadata is Go's: what it wrote, what it reads, what it refuses."""

from __future__ import annotations

import base64
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from registry import DNS, CNIResult, Interface, IPConfig, Metadata, MetadataError, Route
from registry.cri import NamespaceOption, PodSandboxConfig, gojson
from registry.cri.gojson.scan import DEPTH_MAX
from registry.model import cni
from tests.golden import DATA, FOLDERS, cases, documents, encoded, ours
from tests.tools import ROOT, sandbox

DOCUMENTS = documents()
ENCODED = encoded()
DIFFERENCES = Path(ROOT, "docs", "differences.md").read_text(encoding="utf-8")
SECTION = DIFFERENCES.partition("## Metadata as JSON")[2]
LENIENT, _, ALONE = SECTION.partition("### Refused here, accepted by Go")


def document(metadata: str) -> bytes:
    """Return a document whose Metadata is this JSON."""
    return b'{"Version":"v1","Metadata":%b}' % metadata.encode()


# What Go's encoder wrote.


@pytest.mark.parametrize("name", DOCUMENTS)
def test_document_of_go_is_written_again_byte_for_byte(name: str) -> None:
    """Every document of containerd and of Go's encoder; the older layout as the current one."""
    expected = DOCUMENTS[name]
    if name.endswith("v1.0"):
        added = b',"AdditionalIPs":null,"RuntimeHandler":"","CNIResult":null,"ProcessLabel":""}}'
        expected = expected.removesuffix(b"}}") + added
    assert expected == ours(DOCUMENTS[name])


@pytest.mark.parametrize("line", ENCODED, ids=lambda line: line["name"])
def test_document_of_go_is_read_with_every_field(line: dict[str, Any]) -> None:
    """Its config, by the protobuf bytes, and every other field."""
    read = Metadata.unmarshal_json(line["json"])
    config = line["config_b64"]
    expected = None if config is None else PodSandboxConfig.FromString(base64.b64decode(config))
    assert expected == read.config
    ips, result = read.additional_ips, read.cni_result
    fields = {
        "ID": read.id,
        "Name": read.name,
        "NetNSPath": read.netns_path,
        "IP": read.ip,
        "AdditionalIPs": None if ips is None else list(ips),
        "RuntimeHandler": read.runtime_handler,
        "CNIResult": None if result is None else cni.dump(result),
        "ProcessLabel": read.process_label,
    }
    assert line["fields"] == {name: fields[name] for name in line["fields"]}


@pytest.mark.parametrize("file", sorted((DATA / "containerd").glob("*.pb")), ids=lambda x: x.name)
def test_config_that_containerd_stored_equals_the_kubelets(file: Path) -> None:
    """Its JSON holds the message that came."""
    stored = file.with_name(file.name.replace(".config.pb", ".json")).read_bytes()
    assert PodSandboxConfig.FromString(file.read_bytes()) == Metadata.unmarshal_json(stored).config


# What Go's decoder said.


def test_go_and_we_agree_on_every_input() -> None:
    """None gives another result; the numbers are those of docs/differences.md."""
    accepted, refused, alone = 0, 0, []
    for case in cases(DATA):
        found = ours(case.input)
        if isinstance(found, bytes):
            assert case.remarshal == found, case.name
            accepted += 1
        elif case.remarshal is None:
            refused += 1
        else:
            alone.append(case.name)
    print(f"{accepted} accepted alike, {refused} refused alike, refused by us alone: {alone}")  # noqa: T201 - for -rP
    counts = re.search(
        r"(\d+) are\s+accepted alike, (\d+) refused\s+alike, (\d+) refused here", SECTION
    )
    assert counts is not None
    assert [str(n) for n in (accepted, refused, len(alone))] == list(counts.groups())
    assert set(alone) == named(ALONE)


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.parent.name)
def test_no_input_gives_another_result_than_gos(folder: Path) -> None:
    """An input that is refused here and accepted by Go has a reason that the document lists."""
    reasons = re.findall(r"\| `([^`]+)` \|", ALONE)
    for case in cases(folder):
        found = ours(case.input)
        if isinstance(found, bytes):
            assert case.remarshal == found, case.name
        elif case.remarshal is not None:
            assert any(reason in str(found) for reason in reasons), (case.name, str(found))


def test_every_leniency_in_the_data_is_listed() -> None:
    """By the name of the case: each that Go takes although its encoder would not write it so."""
    assert named(LENIENT) == {
        case.name for case in cases(DATA) if case.remarshal not in {None, case.input}
    }


def named(text: str) -> set[str]:
    """Return the names of cases in the last cells of the tables in *text*."""
    rows = re.findall(r"^\|.*\| ([^|]*) \|$", text, re.MULTILINE)
    return {name for cell in rows for name in re.findall(r"`([^`]+)`", cell)}


@pytest.mark.parametrize("case", [c for c in cases(DATA) if c.error], ids=lambda case: case.name)
def test_an_unsupported_version_is_refused_in_gos_words(case: Any) -> None:
    """All else in ours, and never in more than a line."""
    found = ours(case.input)
    assert isinstance(found, MetadataError)
    if case.error.startswith("unsupported version"):
        assert case.error == str(found)
    assert str(found).isprintable()


@pytest.mark.parametrize(
    ("metadata", "field", "message"),
    [
        (
            '{"Config":{"metadata":{"attempt":1.0}}}',
            "Metadata.Config.metadata.attempt",
            "number 1.0 is not a uint32",
        ),
        ('{"config":{"Labels":{"a":[1]}}}', "Metadata.config.Labels.a", "array is not a string"),
        (
            '{"Config":{"port_mappings":[{},{"host_port":"80"}]}}',
            "Metadata.Config.port_mappings[1].host_port",
            'string "80" is not an int32',
        ),
        (
            '{"Config":{"port_mappings":[null]}}',
            "Metadata.Config.port_mappings[0]",
            "null is not an object",
        ),
        (
            '{"CNIResult":{"Routes":[{"dst":"bad"}]}}',
            "Metadata.CNIResult.Routes[0].dst",
            "string 'bad' is not a network such as 10.1.2.0/24",
        ),
        (
            '{"CNIResult":{"Interfaces":{"eth0":{"IPConfigs":[{"IP":"00001::"}]}}}}',
            "Metadata.CNIResult.Interfaces.eth0.IPConfigs[0].IP",
            "string '00001::' is not an IP address",
        ),
    ],
)
def test_a_refusal_says_where_and_why(metadata: str, field: str, message: str) -> None:
    """The path as it is written, and the value."""
    with pytest.raises(MetadataError) as caught:
        Metadata.unmarshal_json(document(metadata))
    assert (field, f"unmarshal metadata: {field}: {message}") == (
        caught.value.field,
        str(caught.value),
    )


def test_invalid_json_is_refused_at_its_byte() -> None:
    """Before any value of a wrong type."""
    for data in (b'{"Version":1,}', '{"Version":1,}'):
        with pytest.raises(MetadataError, match="no JSON: byte 13 is '}' where a key should be"):
            Metadata.unmarshal_json(data)


@pytest.mark.parametrize(
    "text", [rb"\u", rb"\u1", rb"\u003", rb"\u00g0", rb"\x", rb"a\\\u"], ids=repr
)
def test_an_escape_that_is_not_whole_is_refused(text: bytes) -> None:
    """On every Python: the regular expressions of those below 3.11.5 took some for whole."""
    with pytest.raises(MetadataError, match="no JSON: byte 11 "):
        Metadata.unmarshal_json(b'{"Version":"%s","Metadata":{}}' % text)


@pytest.mark.parametrize("data", [None, 7, ["x"], {"Version": "v1"}], ids=repr)
def test_unmarshal_json_refuses_other_types_than_bytes_and_text(data: Any) -> None:
    """It raises MetadataError."""
    with pytest.raises(MetadataError, match="neither bytes nor str"):
        Metadata.unmarshal_json(data)


def test_bytes_of_every_kind_are_read() -> None:
    """And text."""
    data = document('{"ID":"ü"}')
    assert {"ü"} == {
        Metadata.unmarshal_json(each).id  # type: ignore[arg-type]
        for each in (data, data.decode(), bytearray(data), memoryview(data))
    }


# Depth.


@pytest.mark.parametrize("opened", ["[", '{"a":'], ids=["arrays", "objects"])
@pytest.mark.parametrize(
    "place",
    ['{"Version":"v1","x":%s}', '{"Version":"v1","Metadata":{"x":%s}}', '{"Metadata":{"ID":%s}}'],
    ids=["beside", "inside", "as a value"],
)
def test_nesting_is_read_as_deep_as_go_reads(opened: str, place: str) -> None:
    """10,000 levels and no more; never a RecursionError."""
    closed = {"[": "]", '{"a":': "}"}[opened]
    around = place.count("{")
    for depth in (DEPTH_MAX - 1, DEPTH_MAX, DEPTH_MAX + 1):
        levels = depth - around
        nested = opened * (levels - 1) + "[]" + closed * (levels - 1)
        found = ours((place % nested).encode())
        too_deep = isinstance(found, MetadataError) and "nested deeper than 10000" in str(found)
        assert (depth > DEPTH_MAX) == too_deep


# Writing.


class NoText:
    """A value that JSON cannot express."""

    def __repr__(self) -> str:
        # Without an address: every process that runs tests has to give them the same names.
        return "NoText()"


ODD: list[dict[str, Any]] = [
    {"id": 7},
    {"id": None},
    {"id": "\ud800"},
    {"name": b"n"},
    {"netns_path": NoText()},
    {"ip": 1.5},
    {"runtime_handler": ["x"]},
    {"process_label": {}},
    {"config": NamespaceOption()},
    {"config": b""},
    {"config": {}},
    {"config": 0},
    {"additional_ips": "10.0.0.1"},
    {"additional_ips": 0},
    {"additional_ips": ["10.0.0.1"]},
    {"additional_ips": (7,)},
    {"additional_ips": ("\udfff",)},
    {"cni_result": {}},
    {"cni_result": "x"},
    {"cni_result": CNIResult(interfaces=7)},  # type: ignore[arg-type]
    {"cni_result": CNIResult(interfaces={7: None})},  # type: ignore[dict-item]
    {"cni_result": CNIResult(interfaces={"\ud800": None})},
    {"cni_result": CNIResult(interfaces={"eth0": Interface(mac=None)})},  # type: ignore[arg-type]
    {"cni_result": CNIResult(interfaces={"eth0": Interface((IPConfig("10.0.0"),))})},
    {"cni_result": CNIResult(interfaces={"eth0": Interface((IPConfig("fe80::1%eth0"),))})},
    {"cni_result": CNIResult(dns=(DNS(nameservers=(7,)),))},  # type: ignore[arg-type]
    {"cni_result": CNIResult(dns=("x",))},  # type: ignore[arg-type]
    {"cni_result": CNIResult(routes=(Route("10.0.0.0"),))},
    {"cni_result": CNIResult(routes=(Route("10.0.0.0/33"),))},
    {"cni_result": CNIResult(routes=(Route(7),))},  # type: ignore[arg-type]
    {"cni_result": CNIResult(routes=5)},  # type: ignore[arg-type]
]


@pytest.mark.parametrize("fields", ODD, ids=str)
def test_unencodable_metadata_raises_metadata_error(fields: dict[str, Any]) -> None:
    """For any value in a Metadata, which does not validate itself."""
    with pytest.raises(MetadataError, match="marshal metadata of sandbox"):
        replace(sandbox("a"), **fields).marshal_json()


def test_addresses_are_written_as_go_prints_them() -> None:
    """Bytes to Go, so that there is one way to write each."""
    given = {"::ffff:1.2.3.4": "1.2.3.4", "FE80:0::1": "fe80::1", "": ""}
    for text, expected in given.items():
        assert expected == cni.canonical_ip(text)
    networks = {"1.2.3.4/08": "1.2.3.4/8", "::/0": "::/0", "::ffff:1.2.3.4/120": "1.2.3.4/24"}
    for text, expected in networks.items():
        assert expected == cni.canonical_network(text)


def test_unknown_fields_are_not_written() -> None:
    """As in containerd: JSON needs names, and those of unknown fields are not known."""
    config = PodSandboxConfig.FromString(bytes([0xC0, 0x3E, 0x2A]))
    assert b"{}" == gojson.marshal(config)
