"""`tests.interrupts` finds every point at which CPython runs signal handlers."""

from __future__ import annotations

from tests.tools import run

CALL = """
    from collections import deque
    from tests.interrupts import Interrupts

    events = deque()  # CPython may not run handlers after the `append` of a list

    class Finalized:
        def __del__(self):
            events.append("finalized")

    def work():
        for each in "ab":
            events.append(each)
        leave()

    def leave():
        try:
            events.append("left")
        finally:
            events.append("cleaned")

    def happened(**options):
        interrupts = Interrupts(**options)
        for attempt in interrupts:
            events.clear()
            attempt.run(call)
            yield attempt, "".join(each[0] for each in events)
    """


def test_a_call_is_interrupted_before_and_after_each_call_in_it() -> None:
    """The end of the iteration is a call that nothing interrupts."""
    out = run(
        CALL
        + """
    call = work
    for attempt, seen in happened():
        print(seen or "-", attempt.raised)
    """
    )
    lines = out.splitlines()
    assert {"- True", "a True", "ab True", "ablc True"} == set(lines[:-1])
    assert "ablc False" == lines[-1]


def test_selected_attempts_interrupt_one_point_of_each_function() -> None:
    """As many calls are interrupted as there are functions, and the names are known."""
    out = run(
        CALL
        + """
    call = work
    interrupts = Interrupts(selected=True)
    print(sum(1 for attempt in interrupts if not attempt.run(call)), *sorted(interrupts.functions))
    interrupts = Interrupts(within="leave")
    print(sum(1 for attempt in interrupts if not attempt.run(call)) > 2, *interrupts.functions)
    """
    )
    assert ["3 leave work", "True leave"] == out.splitlines()


def test_two_interrupts_are_combined() -> None:
    """The second one comes in what runs after the first: in the `finally`."""
    out = run(
        CALL
        + """
    call = leave
    for attempt, seen in happened(times=2):
        print(seen or "-", len(attempt.points), attempt.raised)
    """
    )
    assert {"- 1 True", "lc 1 True", "lc 2 True", "lc 0 False"} == set(out.splitlines())


def test_an_interrupt_in_a_finalizer_is_distinguished_from_a_swallowed_one() -> None:
    """CPython lets no exception out of a finalizer."""
    out = run(
        CALL
        + """
    def call():
        Finalized()
        try:
            events.append("swallowed")
        except BaseException:
            pass

    for attempt, seen in happened():
        print(seen or "-", attempt.raised, attempt.unraisable)
    """
    )
    lines = out.splitlines()
    assert {"- True False", "s False True", "fs False True", "fs False False"} <= set(lines)


def test_a_signal_handler_may_do_anything_else() -> None:
    """At each point, in the middle of the call, which then goes on."""
    out = run(
        CALL
        + """
    call = leave
    for attempt, seen in happened(action=lambda: events.append("x")):
        print(seen)
    """
    )
    lines = out.splitlines()
    assert {"xlc", "lxc", "lcx"} <= set(lines)
    assert "lc" == lines[-1]


def test_another_exception_of_the_call_names_the_point() -> None:
    """It is raised, with the functions that were interrupted in a note."""
    out = run(
        CALL
        + """
    def call():
        try:
            leave()
        except BaseException as error:
            raise ValueError("wrapped") from error

    try:
        list(happened())
    except ValueError as error:
        print(*error.__notes__)
    """
    )
    assert "interrupted in" in out
    assert "call" in out
