"""Print one table, all of it measured in this run: ``python -m benchmarks.report [--quick] [WORD ...]``.

Kernels run on one core. WORDs choose the rows whose titles or modules hold one of them; ``--quick`` leaves out what
takes minutes (ImageryClient on large pictures).
"""

from __future__ import annotations

import argparse
import datetime
import itertools
import os
import platform
import warnings
from collections.abc import Iterator

from benchmarks import figures, first_use, graphene, graphs, kernels, overlays, reading, stacks, work

MODULES = (kernels, overlays, reading, graphene, figures, stacks, graphs, first_use)
ONE_CORE = (kernels, overlays)


def rows(words: list[str], quick: bool) -> Iterator[tuple[type[work.Work], tuple[object, ...], bool]]:
    """Yield each kind of work, its parameters, and whether it runs on one core."""
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


def line(kind: type[work.Work], parameters: tuple[object, ...]) -> str:
    """Measure a row and return it as a line of the table."""
    one = kind()
    one.setup(*parameters)
    found = one.measure()
    told = one.told() if hasattr(one, "told") else ""
    if hasattr(one, "teardown"):
        one.teardown()
    ratio = "" if found.ratio is None else f"{found.ratio:,.0f}" if found.ratio >= 20 else f"{found.ratio:.2f}"
    asked = "" if one.at_least is None else f"≥ {one.at_least:,.3g}"
    missed = found.ratio is not None and one.at_least is not None and found.ratio < one.at_least
    theirs = found.note if found.peer is None else show(found.peer)
    title = one.title + (f" ({told})" if told else "")
    return (
        f"| {title} | {show(found.ours)} | {one.peer_name} | {theirs} | {ratio}{' (!)' if missed else ''} | {asked} |"
    )


def show(seconds: float) -> str:
    """Return seconds as people read them."""
    for unit, scale in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if seconds >= scale:
            return f"{seconds / scale:.3g} {unit}"
    return f"{seconds:.1g} s"


def machine() -> str:
    """Return what this machine is."""
    name = platform.processor() or platform.machine()
    if os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo") as lines:
            name = next((x.split(":")[1].strip() for x in lines if x.startswith("model name")), name)
    return f"{name}, {os.cpu_count()} cores, Python {platform.python_version()}"


def main() -> None:
    """Print the table, line by line as it is measured."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("words", nargs="*")
    parser.add_argument("--quick", action="store_true")
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    print(f"{datetime.date.today()}, {machine()}\n", flush=True)
    print("| work | ours | peer | its time | times as fast | target |\n|---|---|---|---|---|---|", flush=True)
    cores = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None
    for kind, parameters, one_core in rows(given.words, given.quick):
        if cores:
            os.sched_setaffinity(0, {max(cores)} if one_core else cores)
        print(line(kind, parameters), flush=True)
    if not given.words or "first" in " ".join(given.words):
        for call in first_use.CALLS:
            told = show(first_use.kernel_seconds(call))
            print(f"| first call of {call}, compiled by another process | {told} | | | | ≤ 0.3 s |", flush=True)


if __name__ == "__main__":
    main()
