"""Byte ranges of files, and the check that a response contains exactly the requested range.

The rules are those of RFC 9110, sections 14 and 15.3.7. A server or a cache may answer with another range than the
requested one, with several ranges, or with the whole file.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

_CONTENT = re.compile(r"bytes ([0-9]{1,18})-([0-9]{1,18})/([0-9]{1,18}|\*)")
_UNSATISFIED = re.compile(r"bytes \*/([0-9]{1,18})")


@dataclass(frozen=True, slots=True)
class ByteRange:
    """A part of a file: bytes from ``start`` to before ``stop``, or the last ``suffix`` bytes."""

    start: int = 0
    stop: int | None = None
    """None for the end of the file."""
    suffix: int | None = None

    @property
    def header(self) -> str:
        """Value of the Range header."""
        if self.suffix is not None:
            return f"bytes=-{self.suffix}"
        return f"bytes={self.start}-{'' if self.stop is None else self.stop - 1}"

    @property
    def size(self) -> int | None:
        """Largest number of bytes in the response; None if it depends on the file."""
        if self.suffix is not None:
            return self.suffix
        return None if self.stop is None else self.stop - self.start

    def cut(self, whole: bytes) -> bytes:
        """Return the range of a whole file; it is shorter if the file ends within it."""
        if self.suffix is not None:
            return whole[max(0, len(whole) - self.suffix) :]
        return whole[self.start : self.stop]

    def problem(self, headers: Mapping[str, str], size: int) -> str:
        """Return the problem of a response 206 with ``size`` bytes, or an empty string.

        A shorter response is valid if its Content-Range shows that the file ends within the range.
        """
        kind, content = headers.get("content-type", ""), headers.get("content-range", "")
        if kind.lower().startswith("multipart/"):
            return f"the server returned several ranges instead of {self.header}"
        if headers.get("content-encoding", "").lower() not in ("", "identity"):
            return "the server returned a part of a compressed file, whose offset is unknown"
        found = _CONTENT.fullmatch(content.strip())
        if found is None:
            return f"the answer to {self.header} has " + (
                f"the Content-Range {content[:80]!r}" if content else "no Content-Range"
            )
        first, last = int(found[1]), int(found[2])
        total = None if found[3] == "*" else int(found[3])
        if size != last - first + 1:
            return f"the server returned {size} bytes, but {content!r} are {last - first + 1}"
        if total is not None and last >= total:
            return f"the Content-Range {content!r} lies beyond its file"
        if not self._is_answered(first, last, total):
            return f"the server returned {content!r} instead of {self.header}"
        return ""

    def _is_answered(self, first: int, last: int, total: int | None) -> bool:
        ends = total is not None and last == total - 1
        if self.suffix is not None:
            return ends and total is not None and first == max(0, total - self.suffix)
        if self.stop is None:
            return first == self.start and ends
        return first == self.start and (last == self.stop - 1 or (last < self.stop - 1 and ends))


def file_size_message(headers: Mapping[str, str]) -> str:
    """Return a clause about the size of the file, which a response 416 may state."""
    found = _UNSATISFIED.fullmatch(headers.get("content-range", "").strip())
    return f"the file has {int(found[1]):,} bytes" if found else "the file is shorter"
