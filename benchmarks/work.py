"""One piece of work, done by us and by a peer: a row of the table, and a benchmark of asv."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple


class Measured(NamedTuple):
    """A row, measured."""

    ours: float
    """Seconds, the median of all rounds."""
    peer: float | None
    """Seconds; None where the peer could not do it."""
    ratio: float | None
    """How many times as fast as the peer: the median of the rounds' own ratios, so that drift cancels."""
    note: str = ""
    """Why the peer could not do it."""


class Work:
    """Base of all rows. A subclass says what is done; asv finds its ``time_*`` and ``track_*`` methods.

    Ours and the peer's are timed in turn, so that both see the same state of the machine.
    """

    title: ClassVar[str]
    peer_name: ClassVar[str]
    at_least: ClassVar[float | None] = None
    """The ratio that is asked for; None where there is none."""
    rounds: ClassVar[int] = 7
    least: ClassVar[float] = 0.02
    """Seconds that a side takes at a time, at the least: shorter work is done several times in a row."""
    small: ClassVar[bool] = False
    """Whether to work on little data: the test suite runs every row so."""
    timeout = 600.0

    def setup(self, *params: Any) -> None:
        """Make the data; not timed."""

    def ours(self) -> Any:
        """Do the work our way."""
        raise NotImplementedError

    def peer(self) -> Any:
        """Do it the peer's way."""
        raise NotImplementedError

    def time_ours(self, *params: Any) -> None:
        self.ours()

    def track_ratio(self, *params: Any) -> float | None:
        return self.measure().ratio

    track_ratio.unit = "times as fast as the peer"  # type: ignore[attr-defined]

    def measure(self) -> Measured:
        """Time both in turn, after one warm-up of each."""
        return paired(self.ours, self.peer, self.rounds, 0.0 if self.small else self.least)


def paired(ours: Callable[[], Any], peer: Callable[[], Any], rounds: int, least: float = 0.02) -> Measured:
    """Time two callables in turn, each warmed up once, and as often a round as makes it long enough to be timed."""
    ours()
    peer()
    often, seldom = loops(ours, least), loops(peer, least)
    mine, theirs = [], []
    for _ in range(rounds):
        mine.append(seconds(ours, often))
        theirs.append(seconds(peer, seldom))
    ratio = statistics.median(b / a for a, b in zip(mine, theirs, strict=True))
    return Measured(statistics.median(mine), statistics.median(theirs), ratio)


def loops(work: Callable[[], Any], least: float = 0.02) -> int:
    """Return how many calls take so many seconds, about."""
    return max(1, round(least / max(seconds(work), 1e-6)))


def seconds(work: Callable[[], Any], calls: int = 1) -> float:
    """Time a call, as the mean of several."""
    gc.collect()
    began = time.perf_counter()
    for _ in range(calls):
        work()
    return (time.perf_counter() - began) / calls
