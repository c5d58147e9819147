"""The store against a model: a dict that survives being closed."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from registry import (
    AlreadyExistsError,
    AmbiguousPrefixError,
    Extension,
    FailedPreconditionError,
    Metadata,
    NameReservedError,
    NotFoundError,
    State,
    Status,
    Store,
)
from registry.cri import PodSandboxConfig

pytestmark = pytest.mark.property

IDS = st.text("ab%_é", min_size=1, max_size=4)
NAMES = st.sampled_from(["n1", "n2", "n3", "n4", "n5"])
STATES = st.sampled_from(State)
ERRORS = st.sampled_from([ValueError("no"), KeyboardInterrupt(), SystemExit(1)])
TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=8)
STATUSES = st.builds(
    Status,
    state=STATES,
    pid=st.just(0),
    created_at=st.integers(0, 5),
    exited_at=st.integers(0, 2**63 - 1),
    exit_status=st.none() | st.integers(0, 255),
    reason=st.sampled_from(["", "ProcessExited", "NetNSClosed"]),
    message=TEXT,
)


EXTENSIONS = st.dictionaries(
    TEXT.filter(lambda name: name.isprintable() and name != ""),
    st.builds(Extension, st.sampled_from(["", "example.com/T"]), st.binary(max_size=3)),
    max_size=3,
)


@st.composite
def metadatas(draw: st.DrawFn) -> Metadata:
    """Draw metadata of any shape but a network namespace."""
    config = None
    if draw(st.booleans()):
        labels = draw(st.dictionaries(st.sampled_from("xyz"), st.sampled_from("12"), max_size=2))
        config = PodSandboxConfig(labels=labels, hostname=draw(TEXT))
        config.metadata.name = draw(st.sampled_from(["", "web", "db"]))
    return Metadata(
        id=draw(IDS),
        name=draw(NAMES),
        config=config,
        ip=draw(st.sampled_from(["", "10.0.0.1"])),
        additional_ips=draw(st.sampled_from([None, (), ("fd00::1", "fd00::2")])),
    )


@dataclass
class Held:
    """State of one sandbox in the model."""

    metadata: Metadata
    status: Status
    extensions: dict[str, Extension] = field(default_factory=dict)


class StoreMachine(RuleBasedStateMachine):
    """The store behaves as a dict that survives being closed."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.mkdtemp()
        self.model: dict[str, Held] = {}
        self.store: Store

    @initialize()
    def begin(self) -> None:
        """Begin with an empty registry."""
        self.store = Store.open(f"{self.folder}/registry.db")

    def teardown(self) -> None:
        """Close it, and remove its files."""
        self.store.close()
        shutil.rmtree(self.folder)

    def expected(self, prefix: str) -> str | None:
        """Return the id that *prefix* finds; None when it finds none or several."""
        if prefix in self.model:
            return prefix
        found = [id for id in self.model if id.startswith(prefix)]
        return found[0] if len(found) == 1 else None

    def refusal(self, prefix: str) -> type[Exception]:
        """Return the error of a look-up that finds no single sandbox."""
        several = any(id.startswith(prefix) for id in self.model)
        return AmbiguousPrefixError if several else NotFoundError

    def add_to_both(self, metadata: Metadata, status: Status) -> None:
        """Add a sandbox, or see the right refusal."""
        holders = [id for id, held in self.model.items() if held.metadata.name == metadata.name]
        if metadata.id in self.model:
            with pytest.raises(AlreadyExistsError):
                self.store.add(metadata, status)
        elif holders:
            with pytest.raises(NameReservedError) as caught:
                self.store.add(metadata, status)
            assert holders == [caught.value.holder]
        else:
            self.store.add(metadata, status)
            self.model[metadata.id] = Held(metadata, status)

    @rule(metadata=metadatas(), status=STATUSES)
    def add(self, metadata: Metadata, status: Status) -> None:
        """Add a sandbox."""
        self.add_to_both(metadata, status)

    @rule(prefix=IDS)
    def get(self, prefix: str) -> None:
        """Get by prefix."""
        id = self.expected(prefix)
        if id is None:
            with pytest.raises(self.refusal(prefix)):
                self.store.get(prefix)
        elif self.model[id].status.state is State.UNKNOWN:
            with pytest.raises(NotFoundError):
                self.store.get(prefix)
            assert id == self.store.get(prefix, include_unknown=True).id
        else:
            assert id == self.store.get(prefix).id

    @rule(prefix=IDS, status=STATUSES)
    def update(self, prefix: str, status: Status) -> None:
        """Update by prefix; the way back to UNKNOWN is barred."""
        id = self.expected(prefix)
        if id is None:
            return
        handle, held = self.store.get(prefix, include_unknown=True), self.model[id]
        seen: list[Status] = []

        def change(old: Status) -> Status:
            seen.append(old)
            return status

        if status.state is State.UNKNOWN and held.status.state is not State.UNKNOWN:
            with pytest.raises(FailedPreconditionError):
                handle.status.update(change)
        else:
            assert status == handle.status.update(change)
            held.status = status
        assert 1 == len(seen)

    @rule(prefix=IDS, extensions=EXTENSIONS, keep=st.booleans(), error=st.none() | ERRORS)
    def update_extensions(
        self,
        prefix: str,
        extensions: dict[str, Extension],
        keep: bool,
        error: BaseException | None,
    ) -> None:
        """Replace the extensions, or add to them, or raise in the function."""
        id = self.expected(prefix)
        if id is None:
            return
        handle, held = self.store.get(prefix, include_unknown=True), self.model[id]
        expected = held.extensions | extensions if keep else extensions

        def change(old: Mapping[str, Extension]) -> Mapping[str, Extension]:
            assert held.extensions == old
            if error is not None:
                self.store.delete(id)
                raise error
            return expected

        if error is None:
            assert expected == handle.extensions.update(change)
            held.extensions = expected
        else:
            with pytest.raises(type(error)) as caught:
                handle.extensions.update(change)
            assert caught.value is error

    @rule(prefix=IDS, error=ERRORS)
    def update_that_raises(self, prefix: str, error: BaseException) -> None:
        """Raise in an UpdateFunc: the same exception comes out, and its writes are rolled back."""
        id = self.expected(prefix)
        if id is None:
            return

        def fail(_: Status) -> Status:
            for other in self.model:
                if other != id:
                    self.store.delete(other)
            raise error

        with pytest.raises(type(error)) as caught:
            self.store.get(prefix, include_unknown=True).status.update(fail)
        assert caught.value is error

    @rule(outer=metadatas(), inner=metadatas(), status=STATUSES, error=ERRORS)
    def nested_failure(
        self, outer: Metadata, inner: Metadata, status: Status, error: BaseException
    ) -> None:
        """Fail in an inner transaction, catch it, and commit the outer one."""
        with self.store.transaction():
            self.add_to_both(outer, status)
            with pytest.raises(type(error)), self.store.transaction():
                if inner.id not in self.model and inner.name not in {
                    held.metadata.name for held in self.model.values()
                }:
                    self.store.add(inner, status)
                self.store.delete(next(iter(self.model)))
                raise error

    @rule(metadata=metadatas(), status=STATUSES, error=ERRORS)
    @precondition(lambda self: self.model)
    def outer_failure(self, metadata: Metadata, status: Status, error: BaseException) -> None:
        """Fail at the end of a transaction: all its writes are rolled back."""
        kept = {id: replace(held) for id, held in self.model.items()}
        with pytest.raises(type(error)), self.store.transaction():
            self.store.delete(next(iter(self.model)))
            self.model.pop(next(iter(self.model)))
            self.add_to_both(metadata, status)
            raise error
        self.model = kept

    @rule(prefix=IDS)
    def delete(self, prefix: str) -> None:
        """Delete by prefix; a handle of it is dead for good."""
        id = self.expected(prefix)
        if id is None and self.refusal(prefix) is AmbiguousPrefixError:
            with pytest.raises(AmbiguousPrefixError):
                self.store.delete(prefix)
            return
        handle = id and self.store.get(id, include_unknown=True)
        assert (id is not None) == self.store.delete(prefix)
        if id and handle:
            del self.model[id]
            assert handle.stopped.is_set()
            with pytest.raises(NotFoundError):
                handle.status.get()

    @rule(prefix=IDS, ip=st.sampled_from(["", "10.0.0.2"]))
    def update_metadata(self, prefix: str, ip: str) -> None:
        """Complete the metadata, while UNKNOWN only."""
        id = self.expected(prefix)
        if id is None:
            return
        held = self.model[id]
        if held.status.state is State.UNKNOWN:
            self.store.update_metadata(prefix, lambda old: replace(old, ip=ip))
            held.metadata = replace(held.metadata, ip=ip)
        else:
            with pytest.raises(FailedPreconditionError):
                self.store.update_metadata(prefix, lambda old: replace(old, ip=ip))

    @rule()
    def reopen(self) -> None:
        """Close and open again: by itself a restart changes nothing here."""
        self.store.close()
        self.store = Store.open(f"{self.folder}/registry.db")

    @rule(
        filters=st.fixed_dictionaries(
            {},
            optional={
                "include_unknown": st.booleans(),
                "id": IDS,
                "name": NAMES,
                "state": STATES,
                "labels": st.dictionaries(st.sampled_from("xyz"), st.sampled_from("12")),
                "pod": st.sampled_from(["", "web"]),
            },
        )
    )
    def list(self, filters: dict[str, Any]) -> None:
        """List by any filters; a prefix is what str.startswith says."""
        expected = []
        for id, held in self.model.items():
            config = held.metadata.config
            labels = {} if config is None else dict(config.labels)
            wanted = filters.get("labels", {})
            matches = (
                (filters.get("include_unknown") or held.status.state is not State.UNKNOWN)
                and id.startswith(filters.get("id", ""))
                and filters.get("name", held.metadata.name) == held.metadata.name
                and filters.get("state", held.status.state) is held.status.state
                and all(labels.get(key) == value for key, value in wanted.items())
                and filters.get("pod", "*") in {"*", config.metadata.name if config else ""}
            )
            if matches:
                expected.append((held.status.created_at, id))
        assert [id for _, id in sorted(expected)] == [
            each.id for each in self.store.list(**filters)
        ]

    @invariant()
    def equals_model(self) -> None:
        """Require that the store equals the model, and that `check` finds nothing."""
        found = {each.id: each for each in self.store.list(include_unknown=True)}
        assert self.model.keys() == found.keys()
        for id, held in self.model.items():
            assert held.metadata == found[id].metadata
            assert held.status == found[id].status.get()
            assert held.extensions == found[id].extensions
            # Not the other way round: one that is READY again was stopped, and stays so.
            assert (held.status.state is State.NOTREADY) <= found[id].stopped.is_set()
        assert [] == self.store.check()


TestStore = StoreMachine.TestCase
TestStore.settings = settings(
    max_examples=40,
    stateful_step_count=25,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
