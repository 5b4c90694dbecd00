"""A file server on 127.0.0.1 that behaves like a distant bucket: latency per response, and a shared bandwidth.

The server runs in a separate process, so that it does not compete with the client for the interpreter. It counts
requests.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import urllib.request
from collections import deque
from contextlib import suppress
from io import FileIO
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from tests.support.http_server import ServerProcess, byte_range, serve

_PIECE = 1 << 18


class _Files(asyncio.Protocol):
    """One connection of a client. It uses callbacks, not tasks, to leave the processor to the measured clients."""

    def __init__(self, server: _Server) -> None:
        self.server, self.loop = server, asyncio.get_running_loop()
        self.received, self.waiting = b"", deque[memoryview]()
        self.is_paused = self.is_sending = False

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def pause_writing(self) -> None:
        self.is_paused = True

    def resume_writing(self) -> None:
        self.is_paused = False
        self._send()

    def data_received(self, data: bytes) -> None:
        self.received += data
        while (end := self.received.find(b"\r\n\r\n")) >= 0:
            head, self.received = self.received[:end].decode("latin-1"), self.received[end + 4 :]
            first, *lines = head.split("\r\n")
            method, path, _ = first.split(" ", 2)
            headers = {k.lower(): v.strip() for k, _, v in (line.partition(":") for line in lines)}
            path = unquote(path.partition("?")[0])
            if path == "/__counts__":
                self._answer(method, "200 OK", [], self.server.take_counts())
                continue
            self.server.begin(path)
            self.loop.call_later(self.server.latency, self._reply, method, path, headers)

    def _reply(self, method: str, path: str, headers: dict[str, str]) -> None:
        self._answer(method, *self.server.answer(path, headers))

    def _answer(self, method: str, status: str, more: list[str], content: bytes) -> None:
        lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(content)}", "Accept-Ranges: bytes", *more, "", ""]
        self.waiting.append(memoryview("\r\n".join(lines).encode()))
        body = memoryview(content if method != "HEAD" else b"")
        self.waiting.extend(body[start : start + _PIECE] for start in range(0, len(body), _PIECE))
        self._send()

    def _send(self) -> None:
        while self.waiting and not (self.is_paused or self.is_sending):
            piece = self.waiting.popleft()
            seconds = self.server.seconds_until_sent(len(piece))
            if seconds > 2e-3:  # shorter timers are inaccurate
                self.is_sending = True
                self.loop.call_later(seconds, self._send_late, piece)
            else:
                self.transport.write(piece)

    def _send_late(self, piece: memoryview) -> None:
        self.is_sending = False
        self.transport.write(piece)
        self._send()


class _Server:
    def __init__(self, root: Path, latency: float, bandwidth: float) -> None:
        self.root, self.latency, self.bandwidth = str(root), latency, bandwidth
        self.free_at = 0.0
        self.reset()

    def reset(self) -> None:
        self.counts: dict[str, int] = {}
        self.sent = self.running = self.peak = 0

    def take_counts(self) -> bytes:
        found = {"requests": sum(self.counts.values()), "paths": self.counts, "bytes": self.sent, "peak": self.peak}
        self.reset()
        return json.dumps(found).encode()

    def begin(self, path: str) -> None:
        self.counts[path] = self.counts.get(path, 0) + 1
        self.running += 1
        self.peak = max(self.peak, self.running)

    def answer(self, path: str, headers: dict[str, str]) -> tuple[str, list[str], bytes]:
        self.running -= 1
        for name, more in ((path, []), (f"{path}.gz", ["Content-Encoding: gzip"])):
            with suppress(OSError), open(f"{self.root}{name}", "rb", buffering=0) as file:
                return self._answer_file(file, more, headers)
        return "404 Not Found", [], b""

    def _answer_file(self, file: FileIO, more: list[str], headers: dict[str, str]) -> tuple[str, list[str], bytes]:
        found = os.fstat(file.fileno())
        size, etag = found.st_size, f'"{found.st_mtime_ns:x}-{found.st_size:x}"'
        more = [*more, f"ETag: {etag}"]
        if headers.get("if-none-match") == etag:
            return "304 Not Modified", more, b""
        range_header = headers.get("range", "")
        start, stop = byte_range(range_header, size) if range_header.startswith("bytes=") else (0, size)
        if start >= stop and range_header:
            return "416 Range Not Satisfiable", [f"Content-Range: bytes */{size}"], b""
        file.seek(start)
        content = file.read(stop - start)
        self.sent += len(content)
        if not range_header.startswith("bytes="):
            return "200 OK", more, content
        more.append(f"Content-Range: bytes {start}-{stop - 1}/{size}")
        return "206 Partial Content", more, content

    def seconds_until_sent(self, count: int) -> float:
        now = asyncio.get_running_loop().time()
        self.free_at = max(now, self.free_at) + count / self.bandwidth
        return self.free_at - now


class LatencyServer(ServerProcess):
    """Serve a folder in another process; use as a context manager.

    Parameters
    ----------
    root : Path
        Folder to serve. A file ``NAME.gz`` is served as ``NAME`` with the content encoding gzip.
    latency : float
        Seconds before the first byte of each response.
    bandwidth : float
        Bytes per second of all responses together.
    """

    program = "tests.support.latency_server"

    def __init__(self, root: Path, latency: float = 0.05, bandwidth: float = 200e6) -> None:
        super().__init__(root, latency, bandwidth)

    def counts(self) -> dict[str, Any]:
        """Return ``requests``, ``paths`` (requests by path), ``bytes`` and ``peak`` (in flight) since the last call."""
        with urllib.request.urlopen(f"{self.url}/__counts__") as reply:
            found: dict[str, Any] = json.load(reply)
            return found


if __name__ == "__main__":
    server = _Server(Path(sys.argv[1]), *map(float, sys.argv[2:]))
    with suppress(KeyboardInterrupt):
        asyncio.run(serve(lambda: _Files(server)))
