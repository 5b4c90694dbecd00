"""Run a function in a separate process with limits of memory and time, for peers that may exhaust either."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import NamedTuple

MEMORY = 14 << 30
SECONDS = 60.0


class Outcome(NamedTuple):
    """The result of a run."""

    seconds: float | None
    """The time of the fastest run; None if it did not finish."""
    reason: str = ""
    """The reason why it did not finish."""


def run_isolated(name: str, arguments: Sequence[object], *, memory: int = MEMORY, seconds: float = SECONDS) -> Outcome:
    """Time a call of ``name`` ("module:function") with JSON arguments in a new process, twice if time allows."""
    code = f"from benchmarks.isolated import _run; _run({name!r}, {json.dumps(list(arguments))!r}, {seconds})"

    def bound() -> None:
        # The limit includes memory that is allocated but never used, so 4 GiB are added for libraries.
        resource.setrlimit(resource.RLIMIT_AS, (memory + (4 << 30),) * 2)

    try:
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", code],
            capture_output=True,
            text=True,
            timeout=2.5 * seconds + 60,
            preexec_fn=bound,
            check=False,
            cwd=os.path.dirname(os.path.dirname(os.path.abspath(__file__))),
        )
    except subprocess.TimeoutExpired:
        return Outcome(None, f"more than {2.5 * seconds:.0f} s")
    lines = done.stdout.strip().splitlines()
    if done.returncode == 0 and lines:
        return Outcome(float(lines[-1]))
    if "MemoryError" in done.stderr or "alloc" in done.stderr.lower() or done.returncode == -9:
        return Outcome(None, f"out of memory ({memory >> 30} GB)")
    return Outcome(None, (done.stderr.strip().splitlines() or ["died"])[-1][:80])


def _run(name: str, arguments: str, seconds: float) -> None:
    from importlib import import_module

    module, function = name.split(":")
    work = getattr(import_module(module), function)
    times: list[float] = []
    while len(times) < 2 and sum(times) < seconds / 2:
        began = time.perf_counter()
        work(*json.loads(arguments))
        times.append(time.perf_counter() - began)
    print(min(times))
