"""Run work in a process of its own, within bounds of memory and time: for peers that may need all of either."""

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
    """What came of it."""

    seconds: float | None
    """The fastest of its runs; None if it was not finished."""
    why: str = ""
    """Why it was not."""


def apart(name: str, arguments: Sequence[object], *, memory: int = MEMORY, seconds: float = SECONDS) -> Outcome:
    """Call ``name`` ("module:function") with plain arguments in a new process, twice where time allows, and time it."""
    code = f"from benchmarks.apart import _inside; _inside({name!r}, {json.dumps(list(arguments))!r}, {seconds})"

    def bound() -> None:
        # Memory that a process asks for and never touches counts here, hence the room for libraries.
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


def _inside(name: str, arguments: str, seconds: float) -> None:
    from importlib import import_module

    module, function = name.split(":")
    work = getattr(import_module(module), function)
    times: list[float] = []
    while len(times) < 2 and sum(times) < seconds / 2:
        began = time.perf_counter()
        work(*json.loads(arguments))
        times.append(time.perf_counter() - began)
    print(min(times))
