"""Interrupts: distinguished from errors of the system, and raised."""

from __future__ import annotations

import ast
import errno
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

import registry
from registry.sync.interrupts import (
    ATTEMPTS,
    call_then,
    is_interrupt,
    reraise_interrupt,
    run_to_end,
    suppress_os_errors,
)
from tests.interrupts import Interrupts

PACKAGE = os.path.dirname(registry.__file__)


class PastDeadlineError(Exception):
    """Exception that an embedder's handler may raise."""


@contextmanager
def handler(function: Callable[..., None]) -> Iterator[None]:
    """Have *function* handle SIGUSR1 in the body."""
    before = signal.signal(signal.SIGUSR1, function)
    try:
        yield
    finally:
        signal.signal(signal.SIGUSR1, before)


def interrupted_by(error: Exception, function: Callable[..., None]) -> Exception:
    """Return *error* as it is caught where a signal whose handler is *function* came."""
    with handler(function), pytest.raises(type(error)) as caught:
        signal.raise_signal(signal.SIGUSR1)
    assert caught.value is error
    return error


def raising(error: Exception, form: str) -> Callable[..., None]:
    """Return a handler that raises *error*; *form*: how it takes its arguments."""

    def fail() -> None:
        raise error

    def plain(signum: int, frame: object) -> None:
        raise error

    def calling(signum: int, frame: object) -> None:
        fail()

    def starred(*args: object) -> None:
        fail()

    forms: dict[str, Callable[..., None]] = {
        "plain": plain,
        "calling": calling,
        "starred": starred,
    }
    return forms[form]


def test_an_error_of_the_system_is_no_interrupt() -> None:
    """Also if it has passed through functions of the standard library."""
    with pytest.raises(FileNotFoundError) as caught:
        os.makedirs("/proc/self/x/y")
    assert not is_interrupt(caught.value)
    reraise_interrupt(caught.value)


@pytest.mark.parametrize("form", ["plain", "calling", "starred"])
@pytest.mark.parametrize(
    "error",
    [
        TimeoutError("too late"),
        TimeoutError(errno.ETIMEDOUT, "too late"),
        FileNotFoundError(errno.ENOENT, "gone"),
        PastDeadlineError(),
        ValueError("no"),
    ],
)
def test_an_error_of_a_handler_is_an_interrupt(error: Exception, form: str) -> None:
    """Of any class, with an errno or without, and however the handler takes its arguments."""
    interrupted_by(error, raising(error, form))
    assert is_interrupt(error)
    with pytest.raises(type(error)) as raised:
        reraise_interrupt(error)
    assert raised.value is error


def test_an_os_error_without_errno_is_an_interrupt() -> None:
    """The system always gives one; the handler may be a function that leaves no frame."""
    with pytest.raises(TimeoutError, match="too late"):
        reraise_interrupt(TimeoutError("too late"))


def test_suppress_os_errors_raises_an_interrupt() -> None:
    """Errors of the system are ignored."""
    with suppress_os_errors():
        os.stat("/nonexistent")
    with (
        handler(raising(TimeoutError(errno.ETIMEDOUT, "too late"), "plain")),
        pytest.raises(TimeoutError, match="too late"),
        suppress_os_errors(),
    ):
        signal.raise_signal(signal.SIGUSR1)


def test_run_to_end_raises_the_last_exception_after_the_step_has_returned() -> None:
    """The step is called once more after each exception, and not after it has returned."""
    errors = [PastDeadlineError("first"), PastDeadlineError("second")]
    calls: list[int] = []

    def step() -> None:
        calls.append(len(calls))
        if len(calls) <= len(errors):
            raise errors[len(calls) - 1]

    with pytest.raises(PastDeadlineError, match="second"):
        run_to_end(step)
    assert [0, 1, 2] == calls
    run_to_end(step)
    assert [0, 1, 2, 3] == calls


def test_run_to_end_gives_up_a_step_that_always_fails() -> None:
    """An error of the step itself comes each time."""
    calls: list[int] = []

    def step() -> None:
        calls.append(1)
        raise OSError(errno.EIO, "each time")

    with pytest.raises(OSError, match="each time"):
        run_to_end(step)
    assert ATTEMPTS == len(calls)


def test_call_then_returns_the_result_and_raises_the_exception_of_the_body() -> None:
    """The end runs once in both cases."""
    ended: list[int] = []
    assert "result" == call_then(lambda: "result", lambda: ended.append(1))
    with pytest.raises(ZeroDivisionError):
        call_then(lambda: 1 // 0, lambda: ended.append(2))
    assert [1, 2] == ended


def test_call_then_runs_the_end_wherever_an_interrupt_arrives() -> None:
    """Also between the body and the end; before the body there is nothing to end."""
    attempts, held = Interrupts(), set[str]()
    for attempt in attempts:
        attempt.run(lambda: call_then(lambda: held.add("lock"), held.clear))
        assert set() == held, attempt
    assert {"call_then"} <= attempts.functions


OS_ERRORS = {
    name
    for name, each in vars(__import__("builtins")).items()
    if isinstance(each, type) and issubclass(each, OSError)
} | {"Exception"}
SUPPRESS = {"contextlib.suppress", "suppress"}
IN_A_THREAD_OF_ITS_OWN = {"engine/process_lock.py", "handles/exit_watcher.py"}
"""Handlers run in the main thread alone."""


def caught_in(node: ast.ExceptHandler) -> set[str]:
    """Return the names of the classes that *node* catches."""
    classes = [] if node.type is None else ast.walk(node.type)
    return {each.id for each in classes if isinstance(each, ast.Name)}


def sources() -> Iterator[tuple[str, ast.Module]]:
    """Yield each module of the package that runs in the caller's thread."""
    for directory, _, names in os.walk(PACKAGE):
        for name in names:
            path = os.path.join(directory, name)
            relative = os.path.relpath(path, PACKAGE)
            if name.endswith(".py") and relative not in IN_A_THREAD_OF_ITS_OWN:
                with open(path, encoding="utf-8") as file:
                    yield relative, ast.parse(file.read())


def test_every_handler_of_os_errors_reraises_an_interrupt() -> None:
    """Or it raises every error again; `contextlib.suppress` cannot distinguish them."""
    wrong = []
    for path, module in sources():
        for node in ast.walk(module):
            if isinstance(node, ast.ExceptHandler) and caught_in(node) & OS_ERRORS:
                body = list(ast.walk(ast.Module(node.body, [])))
                calls = {ast.unparse(each.func) for each in body if isinstance(each, ast.Call)}
                again = any(isinstance(each, ast.Raise) and each.exc is None for each in body)
                if not (again or calls & {"reraise_interrupt", "is_interrupt"}):
                    wrong.append(f"{path}:{node.lineno}")
            if isinstance(node, ast.Call) and ast.unparse(node.func) in SUPPRESS:
                wrong += [path for each in node.args if ast.unparse(each) in OS_ERRORS]
    assert [] == wrong
