"""Measure all benchmarks and print one table: ``python -m benchmarks.report [--quick] [WORD ...]``.

Kernels run on one core. WORDs select the rows whose titles or modules contain one of them. ``--quick`` skips rows that
take minutes (ImageryClient on large pictures).
"""

from __future__ import annotations

import argparse
import datetime
import itertools
import os
import platform
import warnings
from collections.abc import Iterator

from benchmarks import figures, first_use, graphene, graphs, kernels, measure, overlays, reading, stacks, work

MODULES = (kernels, overlays, measure, reading, graphene, figures, stacks, graphs, first_use)
ONE_CORE = (kernels, overlays)


def rows(words: list[str], quick: bool) -> Iterator[tuple[type[work.Work], tuple[object, ...], bool]]:
    """Yield the class and parameters of each row, and whether it runs on one core."""
    for module in MODULES:
        for kind in vars(module).values():
            if not (isinstance(kind, type) and issubclass(kind, work.Work) and kind.__module__ == module.__name__):
                continue
            if kind.__name__.startswith("_") or not getattr(kind, "title", ""):
                continue
            if words and not any(w in f"{module.__name__} {kind.title}" for w in words):
                continue
            for parameters in itertools.product(*getattr(kind, "params", [])):
                if not (quick and kind is figures.Figure):
                    yield kind, parameters, module in ONE_CORE


def table_line(kind: type[work.Work], parameters: tuple[object, ...]) -> str:
    """Measure a row and return it as a line of the table."""
    one = kind()
    one.setup(*parameters)
    found = one.measure()
    remark = one.remark() if hasattr(one, "remark") else ""
    if hasattr(one, "teardown"):
        one.teardown()
    ratio = "" if found.ratio is None else f"{found.ratio:,.0f}" if found.ratio >= 20 else f"{found.ratio:.2f}"
    target = "" if one.at_least is None else f"≥ {one.at_least:,.3g}"
    missed = found.ratio is not None and one.at_least is not None and found.ratio < one.at_least
    theirs = found.note if found.peer is None else format_seconds(found.peer)
    title = one.title + (f" ({remark})" if remark else "")
    ratio += " (!)" if missed else ""
    ours = format_seconds(found.ours)
    return f"| {title} | {ours} | {one.peer_name} | {theirs} | {ratio} | {target} |"


def format_seconds(seconds: float) -> str:
    """Return a time as text with a suitable unit."""
    for unit, scale in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if seconds >= scale:
            return f"{seconds / scale:.3g} {unit}"
    return f"{seconds:.1g} s"


def machine_name() -> str:
    """Return the processor, the number of cores and the Python version of this machine."""
    name = platform.processor() or platform.machine()
    if os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo") as lines:
            name = next((x.split(":")[1].strip() for x in lines if x.startswith("model name")), name)
    return f"{name}, {os.cpu_count()} cores, Python {platform.python_version()}"


def main() -> None:
    """Measure and print the rows of the table one by one."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("words", nargs="*")
    parser.add_argument("--quick", action="store_true")
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    print(f"{datetime.date.today()}, {machine_name()}\n", flush=True)
    print("| work | ours | peer | its time | times as fast | target |\n|---|---|---|---|---|---|", flush=True)
    cores = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None
    for kind, parameters, one_core in rows(given.words, given.quick):
        if cores:
            os.sched_setaffinity(0, {max(cores)} if one_core else cores)
        print(table_line(kind, parameters), flush=True)
    if not given.words or "first" in " ".join(given.words):
        for call in first_use.CALLS:
            seconds = format_seconds(first_use.kernel_seconds(call))
            print(f"| first call of {call}, compiled by another process | {seconds} | | | | ≤ 0.3 s |", flush=True)


if __name__ == "__main__":
    main()
