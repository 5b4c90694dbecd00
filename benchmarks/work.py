"""The base class of all benchmarks: work done by imageryxr and by a peer, as a row of the table and for asv."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple


class Measured(NamedTuple):
    """The result of a benchmark."""

    ours: float
    """Our time in seconds, the median of all rounds."""
    peer: float | None
    """The time of the peer in seconds; None if the peer failed."""
    ratio: float | None
    """The speed relative to the peer: the median of the ratios of all rounds, so that drift cancels."""
    note: str = ""
    """The reason why the peer failed."""


class Work:
    """Base class of all rows. Subclasses define the work; asv runs the ``time_*`` and ``track_*`` methods.

    Our work and that of the peer are timed alternately, so that both see the same state of the machine.
    """

    title: ClassVar[str]
    peer_name: ClassVar[str]
    at_least: ClassVar[float | None] = None
    """The required ratio; None if there is none."""
    rounds: ClassVar[int] = 7
    least: ClassVar[float] = 0.02
    """The minimum duration of a measurement in seconds; shorter work is repeated."""
    small: ClassVar[bool] = False
    """Whether to use small data, as the tests do."""
    timeout = 600.0

    def setup(self, *params: Any) -> None:
        """Create the data; not timed."""

    def ours(self) -> Any:
        """Do the work with imageryxr."""
        raise NotImplementedError

    def peer(self) -> Any:
        """Do the work with the peer."""
        raise NotImplementedError

    def time_ours(self, *params: Any) -> None:
        self.ours()

    def track_ratio(self, *params: Any) -> float | None:
        return self.measure().ratio

    track_ratio.unit = "times as fast as the peer"  # type: ignore[attr-defined]

    def measure(self) -> Measured:
        """Time both alternately, after one warm-up of each."""
        return time_paired(self.ours, self.peer, self.rounds, 0.0 if self.small else self.least)


def time_paired(ours: Callable[[], Any], peer: Callable[[], Any], rounds: int, least: float = 0.02) -> Measured:
    """Time two callables alternately after a warm-up; repeat short ones within a round."""
    ours()
    peer()
    often, seldom = calls_within(ours, least), calls_within(peer, least)
    mine, theirs = [], []
    for _ in range(rounds):
        mine.append(mean_seconds(ours, often))
        theirs.append(mean_seconds(peer, seldom))
    ratio = statistics.median(b / a for a, b in zip(mine, theirs, strict=True))
    return Measured(statistics.median(mine), statistics.median(theirs), ratio)


def calls_within(work: Callable[[], Any], least: float = 0.02) -> int:
    """Return the approximate number of calls that take at least a given time."""
    return max(1, round(least / max(mean_seconds(work), 1e-6)))


def mean_seconds(work: Callable[[], Any], calls: int = 1) -> float:
    """Return the mean time of several calls."""
    gc.collect()
    began = time.perf_counter()
    for _ in range(calls):
        work()
    return (time.perf_counter() - began) / calls
