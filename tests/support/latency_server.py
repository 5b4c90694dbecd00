"""A file server on 127.0.0.1 that answers like a distant bucket: every response is late, and the bandwidth is shared.

It runs in a process of its own, so that it does not compete with the client for the interpreter. It counts requests.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import urllib.request
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import unquote

_PIECE = 1 << 18


class _Files(asyncio.Protocol):
    """One connection of a client."""

    def __init__(self, server: _Server) -> None:
        self.server, self.received, self.jobs = server, b"", asyncio.Queue[tuple[str, str, dict[str, str]]]()
        self.can_write = asyncio.Event()

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self.can_write.set()
        self.task = asyncio.get_running_loop().create_task(self._answer_all())

    def connection_lost(self, error: Exception | None) -> None:
        self.task.cancel()

    def pause_writing(self) -> None:
        self.can_write.clear()

    def resume_writing(self) -> None:
        self.can_write.set()

    def data_received(self, data: bytes) -> None:
        self.received += data
        while b"\r\n\r\n" in self.received:
            head, self.received = self.received.split(b"\r\n\r\n", 1)
            first, *lines = head.decode("latin-1").split("\r\n")
            headers = {k.lower(): v.strip() for k, _, v in (line.partition(":") for line in lines)}
            method, path, _ = first.split(" ", 2)
            self.jobs.put_nowait((method, unquote(path.partition("?")[0]), headers))

    async def _answer_all(self) -> None:
        while True:
            method, path, headers = await self.jobs.get()
            status, more, body = await self.server.answer(path, headers)
            lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", "Accept-Ranges: bytes", *more]
            self.transport.write(("\r\n".join(lines) + "\r\n\r\n").encode())
            for start in range(0, len(body) if method != "HEAD" else 0, _PIECE):
                piece = body[start : start + _PIECE]
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
        first, _, last = asked[6:].partition("-")
        start = int(first) if first else max(0, len(whole) - int(last))
        stop = min(len(whole), int(last) + 1) if first and last else len(whole)
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

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        listening = await loop.create_server(lambda: _Files(self), "127.0.0.1", 0, backlog=4096)
        print(listening.sockets[0].getsockname()[1], flush=True)
        await listening.serve_forever()


class LatencyServer:
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

    def __init__(self, root: Path, latency: float = 0.05, bandwidth: float = 200e6) -> None:
        self._command = [sys.executable, __file__, str(root), str(latency), str(bandwidth)]

    def __enter__(self) -> LatencyServer:
        self._process = subprocess.Popen(self._command, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        self.url = f"http://127.0.0.1:{int(self._process.stdout.readline())}"
        return self

    def __exit__(self, *error: object) -> None:
        self._process.kill()
        self._process.communicate()

    def counts(self) -> dict[str, Any]:
        """Return ``requests``, ``paths`` (requests by path), ``bytes`` and ``peak`` (in flight) since the last call."""
        with urllib.request.urlopen(f"{self.url}/__counts__") as reply:
            found: dict[str, Any] = json.load(reply)
            return found


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        asyncio.run(_Server(Path(sys.argv[1]), *map(float, sys.argv[2:])).run())
