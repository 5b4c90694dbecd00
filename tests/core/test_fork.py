"""Threads and forked children never wait for a cached property that another thread computes."""

from __future__ import annotations

import threading

import pytest

from imageryxr.core.fork import cached_property
from tests.support.processes import succeeds_in_fork

SECONDS = 10


class Crossed:
    """Two properties, each of which needs the other one of a second object."""

    def __init__(self, other: Crossed | None = None, meeting: threading.Barrier | None = None) -> None:
        self.other, self.meeting = other, meeting

    def _count(self, name: str) -> int:
        if self.meeting is not None:
            self.meeting.wait(SECONDS)
        return 1 if self.other is None else 1 + getattr(self.other, name)

    @cached_property
    def first(self) -> int:
        return self._count("second")

    @cached_property
    def second(self) -> int:
        return self._count("first")


def test_threads_that_compute_two_properties_in_opposite_order_do_not_wait_for_each_other():
    meeting, found = threading.Barrier(2), list[int]()
    one, two = Crossed(Crossed(), meeting), Crossed(Crossed(), meeting)
    threads = [
        threading.Thread(target=lambda: found.append(one.first), daemon=True),
        threading.Thread(target=lambda: found.append(two.second), daemon=True),
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SECONDS)
    assert found == [2, 2]


@pytest.mark.slow
def test_a_child_forked_while_a_thread_computes_a_property_computes_it_as_well():
    computing, done = threading.Barrier(2), threading.Event()

    class Slow(Crossed):
        @cached_property
        def first(self) -> int:
            if self.meeting is not None:
                self.meeting.wait(SECONDS)
                done.wait(SECONDS)
            return 3

    thread = threading.Thread(target=lambda: Slow(meeting=computing).first, daemon=True)
    thread.start()
    computing.wait(SECONDS)
    try:
        assert succeeds_in_fork(lambda: Slow().first)
    finally:
        done.set()
        thread.join(SECONDS)


def test_a_cached_property_is_computed_once():
    calls = list[int]()

    class Counted:
        @cached_property
        def value(self) -> int:
            calls.append(1)
            return 5

    one = Counted()
    assert (one.value, one.value, calls) == (5, 5, [1])
