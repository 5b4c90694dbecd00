"""A process that decodes chunks for another, which lives on if a decoder does not.

It is run as a file, by `apart`, and imports numpy and the codecs alone: so it is there in a moment, and no script of a
user's is run a second time. It reads requests from its standard input and writes answers to its standard output; each
is a line of JSON, whose ``size`` says how many bytes come after it.
"""

from __future__ import annotations

import itertools
import json
import os
import signal
import sys
from typing import Any, BinaryIO

# More than a chunk ever needs; a header that was hit may ask for anything.
MEMORY = 8 << 30
PADDING = (b"\0", b"\xff")
# Without the highest bit of a byte, so that a wider id of the same sign comes of it.
_FLIPS = itertools.cycle(range(1, 128))


def decode(stored: bytes, encoding: str, expected: int) -> Any:
    """Return the voxels of a chunk that should have so many bytes."""
    if encoding == "compresso":
        import compresso

        return compresso.decompress(stored)
    if encoding == "crackle":
        return _decode_crackle(stored)
    if encoding == "zfpc":
        import zfpc

        return zfpc.decompress(stored)
    if encoding in ("fpzip", "kempressed"):
        return _decode_fpzip(stored, encoding, expected)
    raise ValueError(f"{encoding} is not decoded here")


def _decode_crackle(stored: bytes) -> Any:
    """Decode a stream whose damaged slices the decoder leaves as the memory was, with voxels of another chunk in it.

    It finds by checksums which slices are damaged, and then loses what it raised. So it has the stream a second time,
    in which bits of all ids are turned over. A voxel that comes of the stream has them turned over as well; one that
    was lying in memory does not, be it of the last turn, since each turn takes other bits.
    """
    import crackle

    turn = next(_FLIPS)
    found = crackle.decompress(stored, parallel=1)
    again = crackle.decompress(_flip_id_bits(stored, turn), parallel=1)
    again ^= found
    if (again != again.dtype.type(turn)).any():
        raise ValueError("slices of it do not fit their checksums, or cannot be followed")
    return found


def _flip_id_bits(stored: bytes, turn: int) -> bytes:
    """Return a crackle stream, whose lengths add up, with bits of the lowest byte of all its ids turned over."""
    import numpy as np
    from google_crc32c import value

    version, flags, slices = stored[4], stored[5], int.from_bytes(stored[15:19], "little")
    width, pinned = 1 << (flags >> 2 & 3), flags >> 5 & 3
    begin = (29 if version else 24) + 4 * (slices + version)
    end = begin + int.from_bytes(stored[20 : 28 if version else 24], "little")
    first = begin + (width if pinned else 0) + 8
    last = first + width * int.from_bytes(stored[first - 8 : first], "little")
    if not first <= last <= end:
        raise ValueError("its table of ids reaches over the end of its labels")
    turned = np.frombuffer(stored, np.uint8).copy()
    turned[first:last:width] ^= turn
    if pinned:
        turned[begin] ^= turn  # the background's
    if version:
        sums = len(stored) - 4 * (slices + 1)
        turned[sums : sums + 4] = np.frombuffer(value(turned[begin:end].tobytes()).to_bytes(4, "little"), np.uint8)
    return turned.tobytes()


def _decode_fpzip(stored: bytes, encoding: str, expected: int) -> Any:
    """Decode a stream that does not say how long it is, by a decoder that reads on beyond its end.

    fpzip is a range coder (Lindstrom and Isenburg 2006, doi:10.1109/TVCG.2006.143): what it decodes rises with the
    number that the bytes are. So if the lowest bytes and the highest put behind the stream give the same, any would,
    and nothing is missing; if they differ, something that mattered was cut off.
    """
    import fpzip
    import numpy as np

    room = 2 * expected + 4096
    low, high = (fpzip.decompress(stored + byte * room, order="F") for byte in PADDING)
    if low.shape != high.shape or low.dtype != high.dtype or low.tobytes("F") != high.tobytes("F"):
        raise ValueError("it was cut short: its last voxels hang on bytes that are not there")
    # CloudVolume's kempressed: https://github.com/seung-lab/cloud-volume, cloudvolume/chunks.py.
    return np.swapaxes(low, 3, 2) - low.dtype.type(2) if encoding == "kempressed" else low


def serve(requests: BinaryIO, answers: BinaryIO) -> None:
    """Answer requests until there are no more."""
    import numpy as np

    while line := requests.readline():
        asked = json.loads(line)
        stored = requests.read(asked["size"])
        if len(stored) < asked["size"]:
            return
        try:
            found = decode(stored, asked["encoding"], asked["expected"])
            body = np.asarray(found).tobytes("F")
            answer = {"shape": found.shape, "dtype": found.dtype.str, "size": len(body)}
        except MemoryError:
            body, answer = b"", {"problem": "its header asks for more memory than a chunk can", "size": 0}
        except Exception as error:
            body, answer = b"", {"problem": str(error) or type(error).__name__, "size": 0}
        answers.write(json.dumps(answer).encode() + b"\n")
        answers.write(body)
        answers.flush()


def main() -> None:
    """Serve the process that started this one, for as long as it lives."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the other one, which then closes the pipe
    # A decoder that prints would print into an answer.
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    try:
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    except (ImportError, ValueError, OSError):
        pass
    serve(sys.stdin.buffer, answers)


if __name__ == "__main__":
    sys.path[:] = json.loads(sys.argv[1])
    main()
