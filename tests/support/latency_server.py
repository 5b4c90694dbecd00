"""A file server on 127.0.0.1 that answers like a distant bucket: every response is late, and the bandwidth is shared.

It runs in a process of its own, so that it does not compete with the client for the interpreter. It counts requests.
"""

from __future__ import annotations

import asyncio
import json
import sys
import urllib.request
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from tests.support.http_server import HttpConnection, ServerProcess, byte_range, serve

_PIECE = 1 << 18


class _Files(HttpConnection):
    def __init__(self, server: _Server) -> None:
        super().__init__()
        self.server = server

    async def respond(self, method: str, path: str, headers: dict[str, str], body: bytes) -> None:
        status, more, content = await self.server.answer(unquote(path.partition("?")[0]), headers)
        lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(content)}", "Accept-Ranges: bytes", *more]
        self.transport.write(("\r\n".join(lines) + "\r\n\r\n").encode())
        for start in range(0, len(content) if method != "HEAD" else 0, _PIECE):
            piece = content[start : start + _PIECE]
            await self.server.wait_for_bandwidth(len(piece))
            await self.can_write.wait()
            self.transport.write(piece)


class _Server:
    def __init__(self, root: Path, latency: float, bandwidth: float) -> None:
        self.root, self.latency, self.bandwidth = root, latency, bandwidth
        self.free_at = 0.0
        self.reset()

    def reset(self) -> None:
        self.counts: dict[str, int] = {}
        self.sent = self.running = self.peak = 0

    async def answer(self, path: str, headers: dict[str, str]) -> tuple[str, list[str], bytes]:
        if path == "/__counts__":
            found = {"requests": sum(self.counts.values()), "paths": self.counts, "bytes": self.sent, "peak": self.peak}
            self.reset()
            return "200 OK", [], json.dumps(found).encode()
        self.counts[path] = self.counts.get(path, 0) + 1
        self.running += 1
        self.peak = max(self.peak, self.running)
        await asyncio.sleep(self.latency)
        self.running -= 1
        file, more = self.root / path.lstrip("/"), []
        if not file.is_file() and Path(f"{file}.gz").is_file():
            file, more = Path(f"{file}.gz"), ["Content-Encoding: gzip"]
        if not file.is_file():
            return "404 Not Found", [], b""
        whole = file.read_bytes()
        etag = f'"{file.stat().st_mtime_ns:x}-{len(whole):x}"'
        more.append(f"ETag: {etag}")
        if headers.get("if-none-match") == etag:
            return "304 Not Modified", more, b""
        asked = headers.get("range", "")
        if not asked.startswith("bytes="):
            self.sent += len(whole)
            return "200 OK", more, whole
        start, stop = byte_range(asked, len(whole))
        if start >= stop:
            return "416 Range Not Satisfiable", [f"Content-Range: bytes */{len(whole)}"], b""
        self.sent += stop - start
        more.append(f"Content-Range: bytes {start}-{stop - 1}/{len(whole)}")
        return "206 Partial Content", more, whole[start:stop]

    async def wait_for_bandwidth(self, count: int) -> None:
        now = asyncio.get_running_loop().time()
        self.free_at = max(now, self.free_at) + count / self.bandwidth
        if self.free_at - now > 2e-3:  # shorter sleeps are not exact
            await asyncio.sleep(self.free_at - now)


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
