"""Validation of a PodSandboxConfig: refuses, by field, what this runtime does not support.

Rules:

1. The whole config is checked before a step is recorded or taken.
2. A field is honoured, ignored, or refused. It is ignored only if it makes no difference to a
   process that only sleeps. docs/shim.md has the table of all fields.
3. An unknown enum value is refused in every field.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Final, NamedTuple

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from registry import InvalidArgumentError
from registry.cri import (
    LinuxSandboxSecurityContext,
    NamespaceMode,
    NamespaceOption,
    PodSandboxConfig,
    ProfileType,
    SecurityProfile,
)
from registry.shim import cgroups

HOSTNAME_MAX: Final = 64
"""Bytes that Linux keeps of a host name."""
PORT_MAX: Final = 65535
ID_MAX: Final = 2**32 - 2
"""The highest user or group id: the number above it stands for "unchanged" (setresuid(2))."""
MODES: Final = {
    "network": (NamespaceMode.POD, NamespaceMode.NODE),
    # A kubelet sends CONTAINER by default: each container gets a pid namespace of its own.
    "pid": (NamespaceMode.POD, NamespaceMode.CONTAINER, NamespaceMode.NODE),
    "ipc": (NamespaceMode.POD, NamespaceMode.NODE),
}
"""Supported modes by kind of namespace."""
RUNTIME_DEFAULT: Final = frozenset({"runtime/default", "docker/default"})
"""Values of seccomp_profile_path, an older form of seccomp, that stand for RuntimeDefault."""
IPC_SYSCTLS: Final = (
    r"kernel/(msgmax|msgmnb|msgmni|sem|shmall|shmmax|shmmni|shm_rmid_forced)|fs/mqueue/.+"
)
"""Pattern of the sysctls that each IPC namespace has of its own (ipc_namespaces(7))."""
CONTEXT: Final = "linux.security_context"
OPTIONS: Final = f"{CONTEXT}.namespace_options"


class Refusal(NamedTuple):
    """Refused field, its value, and the reason."""

    field: str
    value: object
    why: str

    def error(self) -> InvalidArgumentError:
        """Return the error that refuses to run the sandbox."""
        message = f"run sandbox: {self.field} {self.value!r} {self.why}"
        return InvalidArgumentError(message, field=self.field, value=self.value)


def options_of(config: PodSandboxConfig) -> NamespaceOption:
    """Return the namespace options of *config*."""
    return config.linux.security_context.namespace_options


def is_host_network(config: PodSandboxConfig) -> bool:
    """Return whether the sandbox uses the network namespace of the host."""
    return options_of(config).network == NamespaceMode.NODE


def has_resolv(config: PodSandboxConfig) -> bool:
    """Return whether the sandbox has a resolv.conf of its own; an empty one is that of the node."""
    return bool(config.dns_config.ListFields())


def has_seccomp(config: PodSandboxConfig) -> bool:
    """Return whether the process gets the filter RuntimeDefault; a privileged one gets none."""
    context = config.linux.security_context
    if context.privileged:
        return False
    if context.HasField("seccomp"):
        return context.seccomp.profile_type == ProfileType.RuntimeDefault
    return context.seccomp_profile_path in RUNTIME_DEFAULT


def check(config: PodSandboxConfig) -> None:
    """Raise unless a sandbox can be run exactly as *config* specifies.

    Raises:
        InvalidArgumentError: a field is refused; `.field` is its path.
    """
    for refusal in _refusals(config):
        raise refusal.error()


def _refusals(config: PodSandboxConfig) -> Iterator[Refusal]:
    context = config.linux.security_context
    if not config.metadata.name:
        yield Refusal("metadata.name", "", "is empty; set the name of the pod")
    yield from _unknown_enums(config)
    yield from _namespaces(context.namespace_options)
    yield from _user(context)
    yield from _confinement(context)
    yield from _cgroup(config.linux.cgroup_parent)
    yield from _dns(config)
    yield from _hostname(config)
    yield from _ports(config)
    for path, _, value in _leaves(config.windows, "windows."):
        yield Refusal(path, value, "is not supported: this is Linux")
    for _ in sysctls(config):
        pass


def _unknown_enums(config: PodSandboxConfig) -> Iterator[Refusal]:
    for path, field, value in _leaves(config):
        if field.enum_type is not None and value not in field.enum_type.values_by_number:
            yield Refusal(path, value, f"is not a known {field.enum_type.name}")


def _leaves(message: Message, parent: str = "") -> Iterator[tuple[str, FieldDescriptor, object]]:
    """Yield path, descriptor and value of each set field that holds no message."""
    for field, value in message.ListFields():
        path = f"{parent}{field.name}"
        if field.message_type is None or field.message_type.GetOptions().map_entry:
            yield path, field, value
        else:
            for part in [value] if isinstance(value, Message) else value:
                yield from _leaves(part, f"{path}.")


def _namespaces(options: NamespaceOption) -> Iterator[Refusal]:
    for kind, possible in MODES.items():
        mode: NamespaceMode = getattr(options, kind)
        if mode not in possible:
            names = " or ".join(map(NamespaceMode.Name, possible))
            why = f"is not supported, since there are no containers; use {names}"
            yield Refusal(f"{OPTIONS}.{kind}", NamespaceMode.Name(mode), why)
    if options.target_id:
        why = "names a container; this runtime has none"
        yield Refusal(f"{OPTIONS}.target_id", options.target_id, why)
    users, at = options.userns_options, f"{OPTIONS}.userns_options"
    if options.HasField("userns_options") and users.mode != NamespaceMode.NODE:
        why = "is not supported: sandboxes use the user namespace of the node; use NODE"
        yield Refusal(f"{at}.mode", NamespaceMode.Name(users.mode), why)
    for field in ("uids", "gids"):
        for ids in getattr(users, field):
            mapping = f"{ids.container_id} {ids.host_id} {ids.length}"
            why = "maps ids of a user namespace; sandboxes have none of their own"
            yield Refusal(f"{at}.{field}", mapping, why)


def _user(context: LinuxSandboxSecurityContext) -> Iterator[Refusal]:
    if context.HasField("run_as_group") and not context.HasField("run_as_user"):
        why = "has no effect without run_as_user; set that too"
        yield Refusal(f"{CONTEXT}.run_as_group", context.run_as_group.value, why)
    ids = [("supplemental_groups", id) for id in context.supplemental_groups]
    ids += [(name, getattr(context, name).value) for name in ("run_as_user", "run_as_group")]
    for name, id in ids:
        if not 0 <= id <= ID_MAX:
            yield Refusal(f"{CONTEXT}.{name}", id, f"is not between 0 and {ID_MAX}")


def _confinement(context: LinuxSandboxSecurityContext) -> Iterator[Refusal]:
    yield from _profile("seccomp", context.seccomp)
    yield from _profile("apparmor", context.apparmor)
    if context.seccomp_profile_path not in {"", "unconfined", *RUNTIME_DEFAULT}:
        why = "is not supported: profiles of the node are not loaded"
        yield Refusal(f"{CONTEXT}.seccomp_profile_path", context.seccomp_profile_path, why)
    for path, _, value in _leaves(context.selinux_options, f"{CONTEXT}.selinux_options."):
        yield Refusal(path, value, "is not supported: SELinux labels are not set")
    if context.readonly_rootfs:
        why = "is not supported: sandboxes have no root file system of their own"
        yield Refusal(f"{CONTEXT}.readonly_rootfs", value=True, why=why)


def _profile(name: str, profile: SecurityProfile) -> Iterator[Refusal]:
    if profile.profile_type == ProfileType.Localhost or profile.localhost_ref:
        why = "is not supported: profiles of the node are not loaded"
        yield Refusal(f"{CONTEXT}.{name}.localhost_ref", profile.localhost_ref, why)


def _cgroup(parent: str) -> Iterator[Refusal]:
    """Yield a path that would leave the hierarchy, and a slice that systemd would not accept."""
    names = parent.strip("/").split("/") if parent.strip("/") else []
    stem = names[-1].removesuffix(cgroups.SLICE) if names else ""
    dashes = names and names[-1] != stem and stem != "-" and "" in stem.split("-")
    if dashes or not {"", ".", ".."}.isdisjoint(names) or not parent.isprintable():
        why = "is neither the path of a cgroup nor the name of a slice"
        yield Refusal("linux.cgroup_parent", parent, why)


def _dns(config: PodSandboxConfig) -> Iterator[Refusal]:
    """Yield the words that would be several words, or lines, of a resolv.conf."""
    dns = config.dns_config
    for field, words in (
        ("servers", dns.servers),
        ("searches", dns.searches),
        ("options", dns.options),
    ):
        for word in words:
            if word.split() != [word] or not word.isprintable():
                yield Refusal(f"dns_config.{field}", word, "is not one word")


def _hostname(config: PodSandboxConfig) -> Iterator[Refusal]:
    name = "" if is_host_network(config) else config.hostname
    if len(name.encode()) > HOSTNAME_MAX or not name.isprintable():
        why = f"is longer than {HOSTNAME_MAX} bytes or has control characters"
        yield Refusal("hostname", name, why)


def _ports(config: PodSandboxConfig) -> Iterator[Refusal]:
    """Yield the ports that portmap refuses: it refuses them for DEL, too, for ever."""
    for port in () if is_host_network(config) else config.port_mappings:
        if not 0 <= port.host_port <= PORT_MAX:
            yield Refusal("port_mappings.host_port", port.host_port, f"is not 0 to {PORT_MAX}")
        if port.host_port and not 1 <= port.container_port <= PORT_MAX:
            why = f"is not 1 to {PORT_MAX}"
            yield Refusal("port_mappings.container_port", port.container_port, why)
        if port.host_ip and not _is_address(port.host_ip):
            yield Refusal("port_mappings.host_ip", port.host_ip, "is no IP address")


def _is_address(text: str) -> bool:
    from ipaddress import ip_address  # noqa: PLC0415 - takes 4 ms

    try:
        ip_address(text)
    except ValueError:
        return False
    return "%" not in text  # portmap takes no zone


# Sysctls.


def sysctls(config: PodSandboxConfig) -> Iterator[tuple[str, str, str]]:
    """Yield path below /proc/sys, name and value of each sysctl.

    Raises:
        InvalidArgumentError: a sysctl would change the host.
    """
    wanted: Mapping[str, str] = config.linux.sysctls
    for key, value in sorted(wanted.items()):
        name = _slashed(key)
        if not _is_own(name, config):
            why = "would change the host: the sandbox has no namespace of its own for it"
            raise refused_sysctl(key, why)
        yield f"/proc/sys/{name}", key, value


def refused_sysctl(key: str, why: str) -> InvalidArgumentError:
    """Return the error that refuses the sysctl *key*."""
    message = f"run sandbox: sysctl {key!r} {why}"
    return InvalidArgumentError(message, field="linux.sysctls", value=key)


def _slashed(key: str) -> str:
    """Return the path of a sysctl below /proc/sys; the separator is the first of "." and "/"."""
    separators = [letter for letter in key if letter in "./"]
    if separators[:1] == ["."]:
        return key.translate(str.maketrans("./", "/."))
    return key


def _is_own(name: str, config: PodSandboxConfig) -> bool:
    parts = name.split("/")
    if not {"", ".", ".."}.isdisjoint(parts) or "\0" in name:
        return False
    if parts[0] == "net" or name == "kernel/domainname":
        return not is_host_network(config)
    own_ipc = options_of(config).ipc != NamespaceMode.NODE
    return own_ipc and re.fullmatch(IPC_SYSCTLS, name) is not None
