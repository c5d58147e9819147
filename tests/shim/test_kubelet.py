"""The calls of a real kubelet 1.33 on a node with two static pods, replayed in their order.

It was recorded beside a runtime whose status had an empty address: the kubelet ran the pod of the
pod network again each second. In the last part of the record the manifest of that pod is gone.
"""

from __future__ import annotations

import json
import os
from typing import Any

import pytest
from google.protobuf import json_format

from registry.host import kernel
from tests import needs
from tests.shim.client import NODE, NOTREADY, READY, Client, messages, pod_config, upstream
from tests.tools import ROOT

pytestmark = [
    pytest.mark.netns,
    needs.namespaces,
]

RECORD = os.path.join(ROOT, "tests", "data", "cri", "kubelet-1.33-calls.jsonl")


def named(kind: str, value: Any) -> Any:
    """Return the JSON of a message with the names that enum values have in `client.messages`."""
    kind = kind.removeprefix("repeated ")
    if kind in upstream()["enums"]:
        return f"{kind}_{value}"
    if kind not in upstream()["messages"]:
        return value
    if isinstance(value, list):
        return [named(kind, each) for each in value]
    kinds = {name: its for _, name, its in upstream()["messages"][kind]}
    return {name: named(kinds[name], each) for name, each in value.items()}


class Kubelet:
    """Client that makes the calls of the record, as far as the statuses ask for them."""

    def __init__(self, cri: Client) -> None:
        self.cri = cri
        self.ids: dict[str, str] = {}
        """Sandbox of each pod, by the uid."""
        self.of_record: dict[str, str] = {}
        """Uid of the pod of each sandbox of the record."""
        self.runs = 0

    def replay(self, call: str, request: Any, *, removes: bool) -> None:
        """Make a call of the record, unless only the sandboxes of that day asked for it.

        Args:
            call: name of the method.
            request: the request as JSON; its ids are those of the record.
            removes: whether the manifest is gone, so that sandboxes are stopped for good.
        """
        uid = ""
        if "config" in request:
            uid = request["config"]["metadata"]["uid"]
            self.of_record[f"SANDBOX-{len(self.of_record) + 1}"] = uid
        elif "pod_sandbox_id" in request:
            # The record leaves runs out, all of the pod on the pod network, which came last.
            uid = self.of_record.get(request["pod_sandbox_id"], [*self.ids][-1])
            request = {**request, "pod_sandbox_id": self.ids[uid]}
        if call == "StopPodSandbox" and not removes and not self.has_changed(uid):
            return
        if call == "RunPodSandbox" and uid in self.ids and not self.has_changed(uid):
            return
        kind = f"{call}Request"
        message = json_format.ParseDict(named(kind, request), messages()[kind]())
        answer = self.cri.call(call, **{field.name: value for field, value in message.ListFields()})
        if call == "RunPodSandbox":
            self.ids[uid] = answer.pod_sandbox_id
            self.runs += 1

    def has_changed(self, uid: str) -> bool:
        """Return whether the kubelet would run another sandbox for a pod.

        Source: kubernetes pkg/kubelet/kuberuntime/util/util.go, PodSandboxChanged.
        """
        status = self.cri.status(self.ids[uid])
        on_host = status.linux.namespaces.options.network == NODE
        no_address = status.HasField("network") and not status.network.ip
        return bool(status.state != READY or (not on_host and no_address))


def test_kubelet_runs_each_pod_once(cri: Client) -> None:
    """No call fails, and the pod whose manifest was removed is stopped."""
    with open(RECORD, encoding="utf-8") as file:
        record = [json.loads(line) for line in file]
    last = max(place for place, each in enumerate(record) if each["call"] == "RunPodSandbox")
    kubelet = Kubelet(cri)
    for place, each in enumerate(record):
        kubelet.replay(each["call"], each["request"], removes=place > last)
    assert 2 == kubelet.runs
    by_name = {item.metadata.name: item for item in cri.list()}
    assert {"hn-node-kc": READY, "pn-node-kc": NOTREADY} == {
        name: item.state for name, item in by_name.items()
    }
    host, pod = (cri.status(by_name[name].id) for name in ("hn-node-kc", "pn-node-kc"))
    assert not host.HasField("network")
    assert not pod.HasField("network")  # the address was released


def test_kubelet_runs_another_sandbox_when_the_namespace_was_deleted(cri: Client) -> None:
    """As with containerd, the pod has no address from then on, and none when it is stopped."""
    kubelet = Kubelet(cri)
    kubelet.ids["uid-web"] = id = cri.run(pod_config("web"))
    assert not kubelet.has_changed("uid-web")
    assert cri.status(id).network.ip
    path = cri.info(id)["netNamespacePath"]
    kernel.umount(path, kernel.MNT_DETACH)
    os.unlink(path)
    assert kubelet.has_changed("uid-web")
    assert READY == cri.status(id).state
    cri.stop(id)
    assert not cri.status(id).HasField("network")
