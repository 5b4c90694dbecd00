"""Count the modules that a figure and an export use, and the calls between modules.

``python -m benchmarks.crossings`` prints both numbers for the second figure and the second export of a process.
``python -m benchmarks.crossings --list`` also prints the modules and the most frequent calls.

A module counts if one of its functions is called; importing it does not count. A call counts if caller and callee are
Python functions in different modules of the package, on any thread. A call by dask does not count.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import imageryxr as ix

ROOT = str(Path(ix.__file__).parent)


def module_of(frame: FrameType | None) -> str | None:
    """Return the module of a frame, relative to the package, or None for other code."""
    if frame is None or not frame.f_code.co_filename.startswith(ROOT):
        return None
    return Path(frame.f_code.co_filename).relative_to(ROOT).with_suffix("").as_posix().replace("/", ".")


@dataclass
class Calls:
    """The modules whose functions were called, and the calls from one module to another."""

    modules: Counter[str] = field(default_factory=Counter)
    crossings: Counter[tuple[str, str]] = field(default_factory=Counter)

    def record(self, frame: FrameType, event: str, _: Any) -> None:
        """Record one event of the profiler."""
        if event != "call" or frame.f_code.co_name == "<module>":
            return
        module, caller = module_of(frame), module_of(frame.f_back)
        if module is None:
            return
        self.modules[module] += 1
        if caller not in (None, module):
            self.crossings[f"{caller}", f"{module}.{frame.f_code.co_qualname}"] += 1


@contextmanager
def count_calls() -> Iterator[Calls]:
    """Record the calls on this thread and on threads that start in the context."""
    calls = Calls()
    threading.setprofile(calls.record)
    sys.setprofile(calls.record)
    try:
        yield calls
    finally:
        sys.setprofile(None)
        threading.setprofile(None)  # type: ignore[arg-type]


def figure(image: str, segmentation: str) -> None:
    """Open an image and a segmentation, align them, draw one over the other and return a picture."""
    em, seg = ix.open_image(image), ix.open_segmentation(segmentation)
    box = ix.BBox.around((4600, 2560, 130), (512, 512), resolution=(8, 8, 40))
    ds = ix.align(em, seg, bbox=box)
    ix.to_pil(ix.overlay(ds.image, ds.segmentation, alpha=0.3, outline=True))


def export(image: str, segmentation: str) -> None:
    """Export a small stack of the image."""
    em = ix.open_image(image, mip=2).isel(z=slice(0, 3))
    with tempfile.TemporaryDirectory() as folder:
        ix.export(em, f"{folder}/z{{z:04d}}.png", square=False, progress=False)


def count(use: Callable[[str, str], None], sample: ix.Sample) -> Calls:
    """Return the calls of the second use in this process."""
    layers = (sample.image, sample.segmentation)
    use(*layers)
    with count_calls() as calls:
        use(*layers)
    return calls


def main() -> None:
    """Print the numbers of modules and of calls between them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--list", action="store_true", help="print the modules and the most frequent calls")
    parser.add_argument("--sample", help="the folder of a sample volume; by default a temporary one is generated")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        sample = ix.sample(options.sample or folder)
        for use in (figure, export):
            calls = count(use, sample)
            print(f"{use.__name__}: {len(calls.modules)} modules, {calls.crossings.total()} calls between modules")
            if options.list:
                for module, number in sorted(calls.modules.items()):
                    print(f"{number:8d}  {module}")
                for (caller, called), number in calls.crossings.most_common(60):
                    print(f"{number:8d}  {caller} -> {called}")


if __name__ == "__main__":
    main()
