"""Whether encoded chunks are whole, for the encodings that say how long they are: compresso, crackle and zfpc.

Their decoders believe what a header says, whatever comes after it. Here each length that a stream states of its parts
is added up and held against the bytes that came, so that a chunk that was cut short, at any byte, never reaches them.
fpzip and kempressed state no length: `decoder_process` finds those out by decoding.

The formats: https://github.com/seung-lab/compresso (``compresso.hpp``), https://github.com/seung-lab/crackle
(``docs`` and ``crackle/headers.py``), https://github.com/seung-lab/zfpc (README).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

__all__ = ["stream_problem"]

_ENDS = "it ends within its header"


def stream_problem(stored: bytes, encoding: str, shape: tuple[int, int, int, int]) -> str:
    """Return what is wrong with the lengths of an encoded chunk, or an empty string.

    Parameters
    ----------
    stored : bytes
        The chunk, gzip and the like taken off.
    encoding : str
        One that states no lengths has nothing wrong with them.
    shape : tuple of int
        Its voxels (x, y, z, channel).

    Returns
    -------
    str
        Half a sentence that goes on from "the chunk is damaged:".
    """
    check = _CHECKS.get(encoding)
    return "" if check is None else check(stored, shape)


def _number(stored: bytes, start: int, size: int) -> int:
    return int.from_bytes(stored[start : start + size], "little")


def _length_problem(found: int, expected: int) -> str:
    if found == expected:
        return ""
    return f"it holds {found} bytes where its header speaks of {expected}"


def _shape_problem(found: tuple[int, ...], shape: tuple[int, ...]) -> str:
    return "" if math.prod(found) == math.prod(shape) else f"its header says {found} voxels where {shape} should be"


def _compresso(stored: bytes, shape: tuple[int, int, int, int]) -> str:
    if len(stored) < 36:
        return _ENDS
    version, width = stored[4], stored[5]
    if stored[:4] != b"cpso" or version > 1 or width not in (1, 2, 4, 8) or 0 in stored[12:15]:
        return "it does not begin as compresso"
    size = tuple(_number(stored, place, 2) for place in (6, 8, 10))
    step = tuple(stored[12:15])
    problem = _shape_problem(size, shape)
    if problem:
        return problem
    window = next((w for w in (2, 4, 8) if math.prod(step) <= 8 * w), 0)
    if not window:
        return f"its header says windows of {step} voxels, and 64 are the most"
    ids, values, places = _number(stored, 15, 8), _number(stored, 23, 4), _number(stored, 27, 8)
    begin = 36 + (ids + places) * width + values * window
    # Version 1 ends in an index: two numbers a slice, wide enough for twice the voxels of one.
    index = 2 * size[2] * next(w for w in (1, 2, 4, 8) if 2 * size[0] * size[1] < 1 << 8 * w) if version else 0
    runs = len(stored) - begin - index
    if runs < 0 or runs % window:
        return f"it holds {len(stored)} bytes where its header speaks of {begin + index} and whole windows of {window}"
    # The number of windows is said nowhere: a run that ends early shows that some are missing.
    codes = np.frombuffer(stored, f"<u{window}", runs // window, begin)
    count = int(np.where(codes & 1, codes >> 1, 1).astype(np.uint64).sum())
    blocks = math.prod(-(-s // b) for s, b in zip(size, step, strict=True))
    # Releases before 3.0 wrote one window more after a run of the greatest length.
    longest = codes == np.iinfo(codes.dtype).max
    spare = int((longest[:-1] & (codes[1:] == 0)).sum())
    return "" if blocks <= count <= blocks + spare else f"it says what {count} of its windows hold, and has {blocks}"


def _crackle(stored: bytes, shape: tuple[int, int, int, int]) -> str:
    if len(stored) < 29:
        return _ENDS
    version = stored[4]
    if stored[:4] != b"crkl" or version > 1:
        return "it does not begin as crackle"
    size = tuple(_number(stored, place, 4) for place in (7, 11, 15))
    problem = _shape_problem(size, shape)
    if problem:
        return problem
    order = (_number(stored, 5, 2) >> 9) & 15
    head, labels = (29, _number(stored, 20, 8)) if version else (24, _number(stored, 20, 4))
    index = 4 * (size[2] + version)
    model = 4**order * 5 // 8 if order else 0
    sums = 4 * (size[2] + 1) if version else 0
    if len(stored) < head + index:
        return "it ends within the index of its slices"
    codes = int(np.frombuffer(stored, "<u4", size[2], head).sum(dtype=np.uint64))
    return _length_problem(len(stored), head + index + labels + model + codes + sums)


def _zfpc(stored: bytes, shape: tuple[int, int, int, int]) -> str:
    if len(stored) < 23:
        return _ENDS
    if stored[:5] != b"zfpc\0":
        return "it does not begin as zfpc"
    size = tuple(_number(stored, place, 4) for place in (6, 10, 14, 18))
    problem = _shape_problem(tuple(s or 1 for s in size), shape)
    if problem:
        return problem
    apart = [s for axis, s in enumerate(size) if s > 1 and not stored[22] >> axis & 1]
    streams = math.prod(apart)
    if len(stored) < 23 + 8 * (1 + streams):
        return "it ends within the index of its streams"
    begin, *lengths = np.frombuffer(stored, "<u8", 1 + streams, 23).tolist()
    if begin != 23 + 8 * (1 + streams):
        return f"its streams begin at byte {begin}, within its index or beyond"
    return _length_problem(len(stored), begin + sum(lengths))


_CHECKS: dict[str, Callable[[bytes, tuple[int, int, int, int]], str]] = {
    "compresso": _compresso,
    "crackle": _crackle,
    "zfpc": _zfpc,
}
