"""The messages in registry.cri are the CRI's own, under another package name."""

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
)

from registry import cri
from registry.cri import PodSandboxConfig, sandbox_config_pb2
from registry.shim import runtime_pb2

ROOT = Path(__file__).parents[2]
DATA = ROOT / "tests" / "data"
PACKAGE = "sandbox_registry.cri.v1"
PROTO = "registry/cri/sandbox_config.proto"
PROTOS = [PROTO, "registry/shim/runtime.proto"]

UNKNOWN_FIELD = bytes([0xC0, 0x3E, 0x2A])
"""Field 1000, a varint, 42: something that a CRI to come may have added."""

LOAD_BOTH = """
import sys
from google.protobuf import descriptor_pool, message_factory

def ours():
    from registry.cri import PodSandboxConfig
    return PodSandboxConfig

def theirs():
    pool = descriptor_pool.Default()
    file = pool.AddSerializedFile(sys.stdin.buffer.read())
    return message_factory.GetMessageClass(file.message_types_by_name["PodSandboxConfig"])

first, second = (ours, theirs) if sys.argv[1] == "ours" else (theirs, ours)
a, b = first(), second()
assert a is not b
sys.stdout.write(b.FromString(a(hostname="carried over").SerializeToString()).hostname)
"""


def upstream(kind: str) -> dict[str, list[list[Any]]]:
    """Return the CRI's "messages" or "enums": name to members, all in order of declaration."""
    file = DATA / "cri" / "cri-v1-podsandboxconfig.json"
    declared: dict[str, list[list[Any]]] = json.loads(file.read_text())[kind]
    return declared


def ours() -> FileDescriptorProto:
    """Return our declarations as protoc understood them."""
    file = FileDescriptorProto()
    sandbox_config_pb2.DESCRIPTOR.CopyToProto(file)
    return file


def shown_fields(message: DescriptorProto) -> list[list[Any]]:
    """Return number, name and type of each field, the type as a .proto file has it."""
    entries = {entry.name: entry for entry in message.nested_type if entry.options.map_entry}
    return [[field.number, field.name, shown_type(field, entries)] for field in message.field]


def shown_type(field: FieldDescriptorProto, entries: dict[str, DescriptorProto]) -> str:
    """Return the type of *field*; *entries* are the maps of its message."""
    kind = FieldDescriptorProto.Type.Name(field.type).removeprefix("TYPE_").lower()
    name = field.type_name.rpartition(".")[2] or kind
    if name in entries:
        key, value = (shown_type(part, {}) for part in entries[name].field)
        return f"map<{key}, {value}>"
    repeated = field.label == FieldDescriptorProto.LABEL_REPEATED
    return f"repeated {name}" if repeated else name


def shown_values(enum: EnumDescriptorProto) -> list[list[Any]]:
    """Return number and name of each value."""
    return [[value.number, value.name] for value in enum.value]


def samples() -> list[Any]:
    """Return each config that containerd was sent."""
    files = sorted((DATA / "containerd").glob("*.config.pb"))
    assert files
    return [pytest.param(file, id=file.name.removesuffix(".config.pb")) for file in files]


def load_both(first: str, package: str) -> subprocess.CompletedProcess[bytes]:
    """Load ours and a module that declares the same in *package*, in a process of their own.

    A process of their own, because the pool of names lives as long as the process does.
    """
    file = ours()
    file.name = "api.proto"
    file.package = package
    for message in file.message_type:
        for part in (message, *message.nested_type):
            for field in part.field:
                if field.type_name:
                    field.type_name = field.type_name.replace(f".{PACKAGE}.", f".{package}.")
    return subprocess.run(
        [sys.executable, "-c", LOAD_BOTH, first],
        input=file.SerializeToString(),
        capture_output=True,
        check=False,
        cwd=ROOT,
    )


def test_messages_are_those_of_the_cri() -> None:
    """Numbers, names, types and the order of declaration are upstream's, and nothing is added."""
    assert list(upstream("messages").items()) == [
        (message.name, shown_fields(message)) for message in ours().message_type
    ]


def test_enums_are_those_of_the_cri() -> None:
    """Enums have upstream's names and numbers, and nothing is added."""
    assert list(upstream("enums").items()) == [
        (enum.name, shown_values(enum)) for enum in ours().enum_type
    ]


def test_the_messages_of_the_shim_are_those_of_the_cri() -> None:
    """Their fields have upstream's numbers, names, types and order; some are left out."""
    theirs = json.loads((DATA / "cri" / "cri-v1-all.json").read_text())
    file = FileDescriptorProto()
    runtime_pb2.DESCRIPTOR.CopyToProto(file)
    for message in file.message_type:
        expected, found = theirs["messages"][message.name], shown_fields(message)
        assert [field for field in expected if field in found] == found, message.name
    for enum in file.enum_type:
        assert theirs["enums"][enum.name] == shown_values(enum), enum.name


def test_the_proto_file_is_registered_under_a_name_of_ours() -> None:
    """File and package are named after this project, so that no other module can claim them."""
    assert (PROTO, PACKAGE, "proto3") == (ours().name, ours().package, ours().syntax)


def test_every_message_and_enum_is_exported() -> None:
    """registry.cri exports exactly the messages and enums, each the generated one."""
    names = {*upstream("messages"), *upstream("enums")}
    assert names == set(cri.__all__)
    assert {name: getattr(sandbox_config_pb2, name) for name in names} == {
        name: getattr(cri, name) for name in names
    }


@pytest.mark.parametrize("proto", PROTOS)
@pytest.mark.parametrize("suffix", [".py", ".pyi"])
def test_generated_code_is_what_protoc_makes_of_the_proto_file(
    tmp_path: Path, suffix: str, proto: str
) -> None:
    """Byte for byte; else `make proto` was forgotten."""
    pytest.importorskip("grpc_tools", reason="protoc comes with grpcio-tools, a dev dependency")
    options = ["--proto_path=.", f"--python_out={tmp_path}", f"--pyi_out={tmp_path}"]
    command = [sys.executable, "-m", "grpc_tools.protoc", *options, proto]
    subprocess.run(command, check=True, cwd=ROOT)
    generated = proto.replace(".proto", f"_pb2{suffix}")
    assert (tmp_path / generated).read_bytes() == (ROOT / generated).read_bytes()


def test_the_oldest_protobuf_allowed_can_load_the_generated_code() -> None:
    """The lower bound in pyproject.toml is the version that the generated code demands."""
    generated = (ROOT / PROTO.replace(".proto", "_pb2.py")).read_text()
    demanded = re.search("^# Protobuf Python Version: (.+)$", generated, re.MULTILINE)
    assert demanded is not None
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert f"protobuf>={demanded[1]}" in project["dependencies"]


@pytest.mark.parametrize("file", samples())
def test_message_of_the_kubelet_survives_parse_and_serialize(file: Path) -> None:
    """As many bytes as containerd got come out again, and mean the same; map entries may move."""
    data = file.read_bytes()
    config = PodSandboxConfig.FromString(data)
    again = config.SerializeToString()
    assert (len(data), config) == (len(again), PodSandboxConfig.FromString(again))


@pytest.mark.parametrize("file", samples())
def test_message_of_the_kubelet_has_no_unknown_field(file: Path) -> None:
    """Nothing in the samples passes as an unknown field: all of it can be read by name."""
    config = PodSandboxConfig.FromString(file.read_bytes())
    size = config.ByteSize()
    config.DiscardUnknownFields()
    assert size == config.ByteSize()


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"\x12\x01h" + UNKNOWN_FIELD, id="in the config"),
        pytest.param(b"\x0a\x06\x0a\x01n" + UNKNOWN_FIELD, id="in a message in it"),
    ],
)
def test_unknown_fields_are_kept(data: bytes) -> None:
    """A field that this proto file does not know survives parse and serialize."""
    assert data == PodSandboxConfig.FromString(data).SerializeToString()


@pytest.mark.parametrize("first", ["ours", "theirs"])
def test_lives_beside_the_cri_in_one_process(first: str) -> None:
    """Ours and a runtime.v1 with the same messages load in either order, and exchange bytes."""
    run = load_both(first, "runtime.v1")
    assert (b"", b"carried over") == (run.stderr, run.stdout)


def test_one_package_cannot_be_declared_twice_in_one_process() -> None:
    """Under one package name the second module is refused, which is why ours has its own."""
    run = load_both("ours", PACKAGE)
    assert (1, b"") == (run.returncode, run.stdout)
    assert PACKAGE.encode() in run.stderr
