"""HTTP connections, byte ranges, and servers in a separate process: what all file servers of the tests share."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, Self

ROOT = Path(__file__).parents[2]


class HttpConnection(asyncio.Protocol, ABC):
    """One connection of a client, whose requests are answered in order."""

    def __init__(self) -> None:
        self.received, self.jobs = b"", asyncio.Queue[tuple[str, str, dict[str, str], bytes]]()
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
            head, rest = self.received.split(b"\r\n\r\n", 1)
            first, *lines = head.decode("latin-1").split("\r\n")
            headers = {k.lower(): v.strip() for k, _, v in (line.partition(":") for line in lines)}
            length = int(headers.get("content-length", 0))
            if len(rest) < length:
                return
            self.received = rest[length:]
            method, path, _ = first.split(" ", 2)
            self.jobs.put_nowait((method, path, headers, rest[:length]))

    async def _answer_all(self) -> None:
        while True:
            await self.respond(*await self.jobs.get())

    @abstractmethod
    async def respond(self, method: str, path: str, headers: dict[str, str], body: bytes) -> None:
        """Answer a request."""


def byte_range(header: str, size: int) -> tuple[int, int]:
    """Return start and stop of the bytes that a Range header requests; start ≥ stop if the file has no such bytes."""
    first, _, last = header.removeprefix("bytes=").partition("-")
    start = int(first) if first else max(0, size - int(last))
    return start, min(size, int(last) + 1) if first and last else size


async def serve(connect: Callable[[], asyncio.Protocol], on_start: Callable[[int], Any] = lambda port: None) -> None:
    """Print a free port, and accept connections on it until the process is stopped."""
    listening = await asyncio.get_running_loop().create_server(connect, "127.0.0.1", 0, backlog=4096)
    port = listening.sockets[0].getsockname()[1]
    on_start(port)
    print(port, flush=True)
    await listening.serve_forever()


class ServerProcess:
    """A server in another process; use as a context manager. The module `program` prints its port."""

    program: ClassVar[str]

    def __init__(self, root: Path, *options: object) -> None:
        self._command = [sys.executable, "-m", self.program, str(root.absolute()), *map(str, options)]

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(self._command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
        assert self._process.stdout is not None
        self.port = int(self._process.stdout.readline())
        self.url = f"http://127.0.0.1:{self.port}"
        return self

    def __exit__(self, *error: object) -> None:
        self._process.kill()
        self._process.communicate()
