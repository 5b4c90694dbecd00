"""Chunks decoded in a process apart, for the encodings whose decoders may end the process that they run in.

The decoders of compresso, crackle, fpzip and zfp follow a damaged stream wherever it leads. A crash of theirs costs one
process of a small pool here, is told as damage, and the next chunk gets a new process.
"""

from __future__ import annotations

import atexit
import json
import os
import subprocess
import sys
import threading
from contextlib import suppress
from io import BufferedReader
from typing import IO, Any, cast

import numpy as np
import numpy.typing as npt

from imageryxr.sources.codecs import decoder_process

__all__ = ["ISOLATED_ENCODINGS", "DecoderStartError", "StreamError", "decode_in_process"]

ISOLATED_ENCODINGS = frozenset({"compresso", "crackle", "fpzip", "kempressed", "zfpc"})
TIMEOUT_SECONDS = 60.0
"""Longer than any chunk takes; what takes longer goes in circles."""


class StreamError(ValueError):
    """A stream that its decoder cannot decode, or that it did not survive."""


class DecoderStartError(OSError):
    """There is no process to decode in: nothing is wrong with the chunk."""


class _Decoder:
    """A process that decodes one chunk at a time."""

    def __init__(self) -> None:
        # A file, not -m, so that the package is not imported; -P, so that its folder is not searched for modules.
        command = [sys.executable, "-P", decoder_process.__file__, json.dumps(list(map(str, sys.path)))]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
        try:
            self.process: subprocess.Popen[bytes] = subprocess.Popen(command, **pipes)  # type: ignore[call-overload]
        except OSError as error:
            raise DecoderStartError(
                error.errno,
                f"no process can be started to decode in ({error.strerror or error}); see to the limits of memory, "
                "processes and open files of this one",
            ) from error
        self.requests, self.answers = cast(IO[bytes], self.process.stdin), cast(BufferedReader, self.process.stdout)

    def decode(self, stored: bytes, encoding: str, expected: int) -> npt.NDArray[Any]:
        """Return what the process makes of a stream; raises `StreamError`, or `EOFError` if it ends instead."""
        requests, answers = self.requests, self.answers
        late = threading.Timer(TIMEOUT_SECONDS, self.process.kill)
        late.daemon = True
        late.start()
        try:
            asked = {"encoding": encoding, "expected": expected, "size": len(stored)}
            requests.write(json.dumps(asked).encode() + b"\n")
            requests.write(stored)
            requests.flush()
            line = answers.readline()
            answer = json.loads(line) if line else {"size": -1}
            body = np.empty(max(answer["size"], 0), np.uint8)
            if answer["size"] < 0 or answers.readinto(body.data) < body.size:
                raise EOFError
        finally:
            late.cancel()
        if "problem" in answer:
            raise StreamError(answer["problem"])
        return body.view(answer["dtype"]).reshape(answer["shape"], order="F")

    def end(self) -> int:
        """End the process, if it has not ended, and return how it ended."""
        self.process.kill()
        for pipe in (self.requests, self.answers):
            with suppress(OSError):  # bytes that nobody reads any more
                pipe.close()
        return self.process.wait()


class _Pool:
    """The decoders that wait for work; as many run at a time as threads ask for one."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.idle: list[_Decoder] = []

    def take(self) -> _Decoder:
        with self.lock:
            if self.idle:
                return self.idle.pop()
        return _Decoder()

    def put(self, decoder: _Decoder) -> None:
        with self.lock:
            if len(self.idle) < (os.cpu_count() or 1):
                self.idle.append(decoder)
                return
        decoder.end()

    def end(self) -> None:
        """End all that wait."""
        while self.idle:
            self.idle.pop().end()

    def leave(self) -> None:
        """Let go of what a forked process has inherited: the pipes are those of its parent."""
        for decoder in self.idle:
            decoder.process.returncode = 0  # it is no child of this process, which cannot wait for it
            for pipe in (decoder.requests, decoder.answers):
                with suppress(OSError):
                    pipe.close()
        self.__init__()  # type: ignore[misc]


_POOL = _Pool()
atexit.register(_POOL.end)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_POOL.leave)


def decode_in_process(stored: bytes, encoding: str, expected: int) -> npt.NDArray[Any]:
    """Return the voxels of a chunk, decoded in another process.

    Parameters
    ----------
    stored : bytes
        The chunk, gzip and the like taken off.
    encoding : str
        One of `ISOLATED_ENCODINGS`.
    expected : int
        Bytes of its voxels.

    Raises
    ------
    StreamError
        If it cannot be decoded, or the decoder does not survive it.
    DecoderStartError
        If there is no decoder.
    """
    for turn in range(2):
        # One that has waited may have been killed meanwhile, for want of memory or by hand; so a new one has its turn.
        decoder = _Decoder() if turn else _POOL.take()
        try:
            found = decoder.decode(stored, encoding, expected)
        except (EOFError, OSError, json.JSONDecodeError):
            how = decoder.end()
        except BaseException:
            # Stopped within an answer that nobody will read; or its decoder has failed, and left who knows what behind.
            decoder.end()
            raise
        else:
            _POOL.put(decoder)
            return found
    raise StreamError(f"its decoder did not survive it ({f'signal {-how}' if how < 0 else f'exit code {how}'})")
