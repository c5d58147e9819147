"""Registry of a node after a day with a reboot, always the same: for documents and pictures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, Final

from registry import Extension, Metadata, State, Status, Store
from registry.cri import NamespaceMode, PodSandboxConfig
from tests.tools import execute, query

NOW: Final = "2026-03-01T18:00:00Z"
"""The present time of the documents."""
_BOOTS: Final = ("11111111-aaaa-4000-8000-000000000001", "22222222-bbbb-4000-8000-000000000002")
_SHIMS: Final = ("shim[812]", "shim[377]")
_DAY: Final[list[tuple[Any, ...]]] = [
    # time, action, sandbox; of an end also reason, message, exit status
    ("08:00:02", "add", "kube-proxy"),
    ("08:00:03", "ready", "kube-proxy"),
    ("08:00:04", "add", "coredns"),
    ("08:00:06.5", "ready", "coredns"),
    ("08:01:00", "add", "web-0"),
    ("08:01:01.2", "ready", "web-0"),
    ("08:01:00", "add", "web-1"),
    ("08:01:03.4", "ready", "web-1"),
    ("08:02:00", "add", "db"),
    ("08:02:02", "ready", "db"),
    ("09:15:00", "add", "cart-0"),
    ("09:15:01", "ready", "cart-0"),
    ("10:00:00", "add", "report"),
    ("10:00:00.8", "ready", "report"),
    ("10:42:10", "end", "report", "ProcessExited", "process 4207 exited", 0),
    ("10:45:00", "delete", "report"),
    ("11:20:31", "end", "cart-0", "ProcessExited", "process 4206 was killed by signal 9", 137),
    ("11:21:00", "add", "cart-1"),
    ("11:21:02", "ready", "cart-1"),
    *(
        ("13:05:00", "end", name, "HostRebooted", "recorded under another boot")
        for name in ("kube-proxy", "coredns", "web-0", "web-1", "db", "cart-1")
    ),
    ("13:05:20", "add", "kube-proxy-1"),
    ("13:05:21", "ready", "kube-proxy-1"),
    ("13:05:22", "add", "coredns-1"),
    ("13:05:24.1", "ready", "coredns-1"),
    ("13:06:00", "add", "cart-2"),
    ("13:06:04.7", "ready", "cart-2"),
    ("13:07:00", "add", "web-1-1"),
    ("13:07:01.1", "ready", "web-1-1"),
    ("13:07:30", "add", "web-2"),
    ("13:07:31", "ready", "web-2"),
    ("13:10:00", "delete", "kube-proxy"),
    ("13:10:00", "delete", "coredns"),
    ("15:30:00", "end", "web-1-1", "NetNSClosed", "nothing is at '/run/netns/sr-web-1-1'"),
    ("16:10:00", "by hand", "cart-2", "Operator", "in the way of a test"),
    ("17:40:00", "add", "train"),
    ("17:58:00", "add", "index"),
]
_PODS: Final = {
    # sandbox: id, namespace, pod, attempt, ip, pid
    "kube-proxy": ("0a1b2c3d4e5f", "kube-system", "kube-proxy", 0, "", 4201),
    "coredns": ("1b2c3d4e5f60", "kube-system", "coredns", 0, "10.88.0.2", 4202),
    "web-0": ("c0ffee00d00d", "shop", "web-0", 0, "10.88.0.12", 0),
    "web-1": ("deadbeef0001", "shop", "web-1", 0, "10.88.0.13", 4204),
    "kube-proxy-1": ("0a1b2c3d4e60", "kube-system", "kube-proxy", 1, "", 3811),
    "coredns-1": ("1b2c3d4e5f61", "kube-system", "coredns", 1, "10.88.0.2", 3812),
    "web-1-1": ("deadbeef0101", "shop", "web-1", 1, "10.88.0.19", 3814),
    "web-2": ("feedface0002", "shop", "web-2", 0, "10.88.0.2", 4203),
    "db": ("ba5eba11", "shop", "db", 0, "10.88.0.15", 4205),
    "cart-0": ("5ca1ab1e0000", "shop", "cart", 0, "10.88.0.16", 4206),
    "cart-1": ("5ca1ab1e0001", "shop", "cart", 1, "10.88.0.17", 0),
    "cart-2": ("5ca1ab1e0002", "shop", "cart", 2, "10.88.0.14", 3817),
    "report": ("facade000000", "batch", "report", 0, "10.88.0.18", 4207),
    "train": ("decade000000", "batch", "train", 0, "", 0),
    "index": ("decade000001", "batch", "index", 0, "", 0),
}


def build(path: str) -> None:
    """Create the registry at *path*."""
    now = [0]
    for shim, (begin, end) in zip(_SHIMS, (("00", "13"), ("13", "24")), strict=True):
        with Store.open(path, reconcile=False, clock=lambda: now[0], actor=shim) as store:
            for time, action, name, *details in _DAY:
                if begin <= time[:2] < end:
                    now[0] = _ns(time)
                    _ACTIONS[action](store, name, now[0], *details)
    _set_boot_ids(path)


def _ns(time: str) -> int:
    """Return *time* of the day as nanoseconds."""
    at = datetime.fromisoformat(f"2026-03-01T{time}").replace(tzinfo=UTC)
    return round(at.timestamp() * 1000) * 1_000_000


def _config(name: str) -> PodSandboxConfig:
    """Return the config of a sandbox as a kubelet would send it."""
    _, namespace, pod, attempt, ip, _ = _PODS[name]
    config = PodSandboxConfig(log_directory=f"/var/log/pods/{namespace}_{pod}")
    config.metadata.name, config.metadata.namespace = pod, namespace
    config.metadata.uid, config.metadata.attempt = f"uid-{pod}", attempt
    config.labels["app.kubernetes.io/name"] = pod.partition("-")[0]
    if namespace == "shop":
        config.labels["tier"] = "data" if pod == "db" else "front"
    if namespace == "kube-system" and not ip:
        config.linux.security_context.namespace_options.network = NamespaceMode.NODE
    return config


def _add(store: Store, name: str, _: int) -> None:
    id, namespace, pod, attempt, ip, _pid = _PODS[name]
    metadata = Metadata(
        id,
        f"{pod}_{namespace}_uid-{pod}_{attempt}",
        _config(name),
        netns_path=f"/run/netns/sr-{name}" if ip else "",
        ip=ip,
        runtime_handler="kata" if namespace == "batch" else "",
    )
    store.add(metadata, Status(State.UNKNOWN))


def _ready(store: Store, name: str, now: int) -> None:
    id, *_, pid = _PODS[name]
    store.get(id, include_unknown=True).status.update(
        lambda _: Status(State.READY, pid=pid, created_at=now)
    )
    if name == "db":
        store.get(id).extensions.update(lambda _: {"cni": Extension("", b"{}")})


def _end(store: Store, name: str, now: int, reason: str, message: str, *exit_status: int) -> None:
    """Record the end of a sandbox; without an exit status its process was not observed."""
    ended: dict[str, object] = {"reason": reason, "message": message}
    if exit_status:
        ended |= {"pid": 0, "exited_at": now, "exit_status": exit_status[0]}
    store.get(_PODS[name][0]).status.update(
        lambda old: replace(old, state=State.NOTREADY, **ended)  # type: ignore[arg-type]
    )


def _delete(store: Store, name: str, _: int) -> None:
    store.delete(_PODS[name][0])


def _by_hand(store: Store, name: str, now: int, reason: str, message: str) -> None:
    """Write as a person does with the sqlite3 shell, at a fixed time."""
    execute(
        store.path,
        "UPDATE sandbox_statuses SET state = 'SANDBOX_NOTREADY',"
        f" reason = '{reason}', message = '{message}', changed_at = {now}, actor = 'sql'"
        f" WHERE sandbox_id = '{_PODS[name][0]}'",
    )


def _set_boot_ids(path: str) -> None:
    """Give the changes the boot ids of a node instead of that of this host."""
    name = "sandbox_transitions_fixed"
    ((trigger,),) = query(path, f"SELECT sql FROM sqlite_master WHERE name = '{name}'")
    first, second = _BOOTS
    execute(
        path,
        f"DROP TRIGGER {name}",
        "UPDATE sandbox_transitions SET boot_id ="
        f" iif(at < {_ns('13:00:00')}, '{first}', '{second}') WHERE actor <> 'sql'",
        trigger,
    )


_ACTIONS: Final[dict[str, Callable[..., None]]] = {
    "add": _add,
    "ready": _ready,
    "end": _end,
    "delete": _delete,
    "by hand": _by_hand,
}
