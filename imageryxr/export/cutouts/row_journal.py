"""The journal of an export of cutouts: which cutouts of which variable have been written."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any


class RowJournal:
    """A text file with a line for each written cutout; thread-safe, and shared by the processes of one machine.

    A line is appended after the cutout was written, so a killed export loses at most the lines of a few cutouts.
    """

    def __init__(self, path: Path, on_done: Callable[[int], Any] | None = None) -> None:
        self.path, self.on_done = path, on_done
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        return (RowJournal, (self.path,))

    def done(self) -> set[tuple[str, int]]:
        """Return the variable and the number of each written cutout; an incomplete last line is ignored."""
        try:
            lines = self.path.read_text(encoding="utf-8").split("\n")[:-1]
        except FileNotFoundError:
            return set()
        found = set()
        for line in lines:
            row, _, name = line.partition(" ")
            if row.isdecimal():
                found.add((name, int(row)))
        return found

    def add(self, name: str, rows: Iterable[int]) -> None:
        """Append cutouts of a variable."""
        text = "".join(f"{row} {name}\n" for row in rows).encode()
        # One write to a file that is opened for appending is not interleaved with those of other processes.
        with self._lock:
            number = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
            try:
                os.write(number, text)
            finally:
                os.close(number)
            if self.on_done is not None:
                self.on_done(text.count(b"\n"))
