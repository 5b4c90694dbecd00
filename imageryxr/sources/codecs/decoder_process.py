"""A process that decodes chunks for a parent process, which survives if a decoder crashes.

`isolated` runs this module as a script. It imports only numpy and the codecs, so that it starts fast and does not run
the user's main script again. It reads requests from its standard input and writes answers to its standard output. Each
request and each answer is a line of JSON, and ``size`` bytes after the line.
"""

from __future__ import annotations

import itertools
import json
import os
import signal
import sys
from typing import Any, BinaryIO

# Limit of memory in bytes, because a damaged header may request any amount. No chunk needs as much.
MEMORY = 8 << 30
PADDING = (b"\0", b"\xff")
# Bit masks for `_flip_id_bits`. They do not contain the highest bit of a byte, so that no id changes its sign.
_FLIPS = itertools.cycle(range(1, 128))


def decode(stored: bytes, encoding: str, expected: int) -> Any:
    """Return the voxels of a chunk that decodes to ``expected`` bytes."""
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
    raise ValueError(f"{encoding} is not supported here")


def _decode_crackle(stored: bytes) -> Any:
    """Return the voxels of a crackle stream; raise ValueError if the decoder left out damaged slices.

    The decoder detects damaged slices by checksums but loses the exception, and leaves uninitialised memory in their
    place, which may contain voxels of another chunk. Therefore the stream is decoded a second time with flipped bits in
    all ids. A decoded voxel has these bits flipped; a voxel from uninitialised memory does not, even if it comes from
    an earlier call, because each call flips other bits.
    """
    import crackle

    mask = next(_FLIPS)
    found = crackle.decompress(stored, parallel=1)
    again = crackle.decompress(_flip_id_bits(stored, mask), parallel=1)
    again ^= found
    if (again != again.dtype.type(mask)).any():
        raise ValueError("some of its slices do not match their checksums or cannot be decoded")
    return found


def _flip_id_bits(stored: bytes, mask: int) -> bytes:
    """Return a crackle stream in which the bits of a mask are flipped in the lowest byte of all ids."""
    import numpy as np
    from google_crc32c import value

    version, flags, slices = stored[4], stored[5], int.from_bytes(stored[15:19], "little")
    width, pinned = 1 << (flags >> 2 & 3), flags >> 5 & 3
    begin = (29 if version else 24) + 4 * (slices + version)
    end = begin + int.from_bytes(stored[20 : 28 if version else 24], "little")
    first = begin + (width if pinned else 0) + 8
    last = first + width * int.from_bytes(stored[first - 8 : first], "little")
    if not first <= last <= end:
        raise ValueError("its table of ids extends beyond the section of its labels")
    flipped = np.frombuffer(stored, np.uint8).copy()
    flipped[first:last:width] ^= mask
    if pinned:
        flipped[begin] ^= mask  # the id of the background
    if version:  # the checksum of the ids
        sums = len(stored) - 4 * (slices + 1)
        flipped[sums : sums + 4] = np.frombuffer(value(flipped[begin:end].tobytes()).to_bytes(4, "little"), np.uint8)
    return flipped.tobytes()


def _decode_fpzip(stored: bytes, encoding: str, expected: int) -> Any:
    """Return the voxels of an fpzip stream; raise ValueError if the stream was truncated.

    The stream does not state its length, and the decoder reads beyond its end. fpzip is a range coder (Lindstrom and
    Isenburg 2006, doi:10.1109/TVCG.2006.143): the decoded values increase monotonically with the number that the bytes
    represent. If padding with the lowest and with the highest bytes gives equal voxels, any padding does, and the
    stream is complete. If the voxels differ, the stream was truncated.
    """
    import fpzip
    import numpy as np

    room = 2 * expected + 4096
    low, high = (fpzip.decompress(stored + byte * room, order="F") for byte in PADDING)
    if low.shape != high.shape or low.dtype != high.dtype or low.tobytes("F") != high.tobytes("F"):
        raise ValueError("it was truncated: its last voxels depend on bytes that are missing")
    # CloudVolume's kempressed: https://github.com/seung-lab/cloud-volume, cloudvolume/chunks.py.
    return np.swapaxes(low, 3, 2) - low.dtype.type(2) if encoding == "kempressed" else low


def serve(requests: BinaryIO, answers: BinaryIO) -> None:
    """Decode the chunks of all requests and write the answers."""
    import numpy as np

    while line := requests.readline():
        request = json.loads(line)
        stored = requests.read(request["size"])
        if len(stored) < request["size"]:
            return
        try:
            found = decode(stored, request["encoding"], request["expected"])
            body = np.asarray(found).tobytes("F")
            answer = {"shape": found.shape, "dtype": found.dtype.str, "size": len(body)}
        except MemoryError:
            body, answer = b"", {"problem": "its header requests more memory than a chunk can need", "size": 0}
        except Exception as error:
            body, answer = b"", {"problem": str(error) or type(error).__name__, "size": 0}
        answers.write(json.dumps(answer).encode() + b"\n")
        answers.write(body)
        answers.flush()


def main() -> None:
    """Answer requests of the parent process until it exits."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # after Ctrl-C the parent closes the pipe, which ends this process
    # Whatever a decoder prints goes to standard error, so that it is not read as a part of an answer.
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
