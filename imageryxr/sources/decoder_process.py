"""A process that decodes chunks for another, which lives on if a decoder does not.

It is run as a file, by `apart`, and imports numpy and the codecs alone: so it is there in a moment, and no script of a
user's is run a second time. It reads requests from its standard input and writes answers to its standard output; each
is a line of JSON, whose ``size`` says how many bytes come after it.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from typing import Any, BinaryIO

# More than a chunk ever needs; a header that was hit may ask for anything.
MEMORY = 8 << 30
PADDING = (b"\0", b"\xff")


def decode(stored: bytes, encoding: str, expected: int) -> Any:
    """Return the voxels of a chunk that should have so many bytes."""
    if encoding == "compresso":
        import compresso

        return compresso.decompress(stored)
    if encoding == "crackle":
        import crackle

        return crackle.decompress(stored, parallel=1)
    if encoding == "zfpc":
        import zfpc

        return zfpc.decompress(stored)
    if encoding in ("fpzip", "kempressed"):
        return _fpzip(stored, encoding, expected)
    raise ValueError(f"{encoding} is not decoded here")


def _fpzip(stored: bytes, encoding: str, expected: int) -> Any:
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
