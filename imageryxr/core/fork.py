"""Functions that a forked child runs first, and cached properties without a lock, for safe forks and threads.

A forked child has the locks and sockets of its parent, but none of the threads that would release or use them.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, TypeVar

Function = TypeVar("Function", bound=Callable[[], Any])
Value = TypeVar("Value")


def run_after_fork(function: Function) -> Function:
    """Run a function in each forked child of this process, where processes can fork; return the function."""
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=function)
    return function


def hold_during_forks(lock: Any) -> None:
    """Let forks wait until no thread holds a lock, because a child could never acquire a lock that a thread holds.

    The lock must be reentrant, since the thread that forks may hold it.
    """
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(before=lock.acquire, after_in_parent=lock.release, after_in_child=lock.release)


class cached_property(functools.cached_property[Value]):  # noqa: N801 - named as the one in functools
    """A property that is computed once per object; two threads may compute the same value at the same time.

    In Python 3.11, `functools.cached_property` has one lock for all objects of a class, which it holds during the
    computation. Two threads could wait for each other: one computes the bounds of a crop of a mask, which needs the
    bounds of the mask, and the other those of a mask of a crop. A child that is forked meanwhile would wait for ever.
    """

    def __init__(self, function: Callable[[Any], Value]) -> None:
        super().__init__(function)
        self.lock = nullcontext()
