"""Decoding in a separate process, for encodings whose decoders may crash.

The decoders of compresso, crackle, fpzip and zfp do not check their input. A crash ends only one process of a small
pool and is reported as a damaged chunk; the next chunk gets a new process.
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

from imageryxr.core.fork import run_after_fork
from imageryxr.sources.codecs import decoder_process

ISOLATED_ENCODINGS = frozenset({"compresso", "crackle", "fpzip", "kempressed", "zfpc"})
TIMEOUT_SECONDS = 60.0
"""Time after which the process that decodes a chunk is killed; only an endless loop takes as long."""


class StreamError(ValueError):
    """A stream that its decoder cannot decode, or that crashes the decoder."""


class DecoderStartError(OSError):
    """The decoder process cannot be started; the chunk may be intact."""


class _Decoder:
    """A process that decodes one chunk at a time."""

    def __init__(self) -> None:
        # Running the file instead of -m does not import the package. -P keeps the folder of the file from `sys.path`.
        command = [sys.executable, "-P", decoder_process.__file__, json.dumps(list(map(str, sys.path)))]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
        try:
            self.process: subprocess.Popen[bytes] = subprocess.Popen(command, **pipes)  # type: ignore[call-overload]
        except OSError as error:
            raise DecoderStartError(
                error.errno,
                f"the decoder process cannot be started ({error.strerror or error}); check the limits of memory, "
                "processes and open files of this process",
            ) from error
        self.requests, self.answers = cast(IO[bytes], self.process.stdin), cast(BufferedReader, self.process.stdout)

    def decode(self, stored: bytes, encoding: str, expected: int) -> npt.NDArray[Any]:
        """Return the decoded voxels of a stream; raises `StreamError`, or `EOFError` if the process dies."""
        requests, answers = self.requests, self.answers
        late = threading.Timer(TIMEOUT_SECONDS, self.process.kill)
        late.daemon = True
        late.start()
        try:
            request = {"encoding": encoding, "expected": expected, "size": len(stored)}
            requests.write(json.dumps(request).encode() + b"\n")
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

    def close(self) -> int:
        """Kill the process if it is running, and return its exit code."""
        self.process.kill()
        for pipe in (self.requests, self.answers):
            with suppress(OSError):  # closing writes buffered bytes, which a dead process does not read
                pipe.close()
        return self.process.wait()


class _Pool:
    """Idle decoder processes. A thread that decodes takes an idle process or starts a new one."""

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
        decoder.close()

    def close(self) -> None:
        """Close all idle decoders."""
        while self.idle:
            self.idle.pop().close()

    def reset_after_fork(self) -> None:
        """Discard the decoders in a forked process: their pipes belong to its parent."""
        for decoder in self.idle:
            decoder.process.returncode = 0  # Popen must not wait for it, because it is no child of this process
            for pipe in (decoder.requests, decoder.answers):
                with suppress(OSError):
                    pipe.close()
        self.__init__()  # type: ignore[misc]


_POOL = _Pool()
atexit.register(_POOL.close)
run_after_fork(_POOL.reset_after_fork)


def decode_in_process(stored: bytes, encoding: str, expected: int) -> npt.NDArray[Any]:
    """Return the voxels of a chunk, `expected` bytes, decoded in another process.

    `encoding` is one of `ISOLATED_ENCODINGS`. `StreamError` is raised if the chunk cannot be decoded or the decoder
    crashes, and `DecoderStartError` if the process cannot be started.
    """
    for attempt in range(2):
        # The system may have killed an idle decoder for lack of memory, so the second attempt uses a new one.
        decoder = _Decoder() if attempt else _POOL.take()
        try:
            found = decoder.decode(stored, encoding, expected)
        except (EOFError, OSError, json.JSONDecodeError):
            code = decoder.close()
        except BaseException:
            # The pipe may contain an unread answer, and a decoder that failed may have corrupted its process.
            decoder.close()
            raise
        else:
            _POOL.put(decoder)
            return found
    raise StreamError(f"its decoder crashed ({f'signal {-code}' if code < 0 else f'exit code {code}'})")
