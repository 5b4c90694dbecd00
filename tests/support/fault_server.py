"""A file server on 127.0.0.1 whose responses fail as those of real networks and servers do; a seed selects the faults.

It runs in a separate process, and forwards requests for files that it does not have to another server.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import random
import sys
import urllib.request
from contextlib import suppress
from pathlib import Path
from urllib.parse import parse_qs, unquote

from tests.support.http_server import HttpConnection, ServerProcess, byte_range, serve

PAGE = b"<!DOCTYPE html>\n<html><body>Please sign in</body></html>"
KINDS = (
    "late", "stall", "stalled body", "reset", "reset body", "429", "503", "500", "truncated", "cut", "empty", "flip", "html",
    "html as data", "login", "loop", "moved", "no http", "wrong range", "whole",
)  # fmt: skip
_FOREVER = 60.0

Answer = tuple[int, dict[str, str], bytes]


class _Connection(HttpConnection):
    def __init__(self, server: _Server) -> None:
        super().__init__()
        self.server = server

    async def respond(self, method: str, path: str, headers: dict[str, str], body: bytes) -> None:
        control = self.server.control(path)
        if control is not None:
            self._send(200, {}, control)
            return
        answer = await self.server.answer(method, path, headers, body)
        await self._fail(self.server.fault(path, headers.get("range", "")), path, headers, answer)

    def _send(self, status: int, headers: dict[str, str], body: bytes, *, stop: int | None = None) -> None:
        given = {"Content-Length": str(len(body)), **headers}
        lines = [f"HTTP/1.1 {status} Status", *(f"{k}: {v}" for k, v in given.items())]
        head = ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")
        self.transport.write(head + (b"" if status == 304 else body[:stop]))

    async def _fail(
        self, fault: tuple[str, random.Random], path: str, request_headers: dict[str, str], answer: Answer
    ) -> None:
        (kind, rng), (status, headers, body) = fault, answer
        if kind == "late":
            await asyncio.sleep(rng.uniform(0, 0.05))
        elif kind == "stall":
            await asyncio.sleep(_FOREVER)
        if kind in ("stalled body", "reset body", "truncated"):
            self._send(status, headers, body, stop=len(body) // 2)
            if kind == "stalled body":
                await asyncio.sleep(_FOREVER)
            if kind == "reset body":
                await asyncio.sleep(0.005)
                self.transport.abort()
            self.transport.close()
        elif kind == "reset":
            self.transport.abort()
        elif kind == "no http":
            self.transport.write(rng.randbytes(300))
            self.transport.close()
        elif kind.isdecimal():
            self._send(int(kind), {"Retry-After": "0"} if kind != "500" else {}, b"busy")
        elif kind == "login":
            self._send(302, {"Location": "/login.html"}, b"")
        elif kind == "loop":
            self._send(302, {"Location": path}, b"")
        elif kind == "moved":
            self._send(307, {"Location": f"/moved{path}"}, b"")
        else:
            self._send(*_damage(kind, rng, request_headers, answer))


def _damage(kind: str, rng: random.Random, request_headers: dict[str, str], answer: Answer) -> Answer:
    status, headers, body = answer
    if kind == "html":
        return 200, {"Content-Type": "text/html"}, PAGE
    if kind == "html as data":
        return status, headers, PAGE.ljust(len(body))
    if kind == "cut":
        return status, headers, body[: rng.randrange(len(body) + 1)]
    if kind == "empty":
        return status, headers, b""
    if kind == "flip" and body:
        place = rng.randrange(len(body))
        return status, headers, body[:place] + bytes([body[place] ^ 1 << rng.randrange(8)]) + body[place + 1 :]
    if kind == "wrong range" and status == 206:
        first, _, rest = headers["Content-Range"].removeprefix("bytes ").partition("-")
        last, _, size = rest.partition("/")
        return status, {**headers, "Content-Range": f"bytes {int(first) + 1}-{int(last) + 1}/{size}"}, body
    return answer


class _Server:
    def __init__(self, root: Path, upstream: int) -> None:
        self.root, self.upstream, self.port = root, upstream, 0
        self.begin({"seed": ["0"], "rate": ["0"], "checksums": ["0"], "stalls": ["0"]})

    def begin(self, given: dict[str, list[str]]) -> None:
        self.seed, self.rate = given["seed"][0], float(given["rate"][0])
        self.checksums, self.stalls = given["checksums"][0] == "1", given["stalls"][0] == "1"
        self.seen: dict[str, int] = {}
        self.log: list[tuple[str, str]] = []

    def control(self, path: str) -> bytes | None:
        name, _, query = path.partition("?")
        if name == "/__begin__":
            self.begin(parse_qs(query))
            return b"{}"
        return json.dumps(self.log).encode() if name == "/__log__" else None

    def fault(self, path: str, part: str) -> tuple[str, random.Random]:
        """Return the fault of a request, which depends only on the seed, the path, the range and their repetitions."""
        key = f"{path} {part}"
        self.seen[key] = self.seen.get(key, 0) + 1
        rng = random.Random(f"{self.seed} {key.replace(str(self.port), '')} {self.seen[key]}")
        kind = rng.choice(KINDS) if rng.random() < self.rate and path != "/login.html" else ""
        if kind.startswith("stall") and (
            not self.stalls or rng.random() < 0.7
        ):  # few stalls, because each of them takes the whole timeout of the client
            kind = "late"
        if kind:
            self.log.append((path, kind))
        return kind, rng

    async def answer(self, method: str, path: str, headers: dict[str, str], body: bytes) -> Answer:
        if path == "/login.html":
            return 200, {"Content-Type": "text/html"}, PAGE
        path = path.removeprefix("/moved")
        file = self.root / unquote(path.partition("?")[0]).lstrip("/")
        if method != "GET" or (not file.is_file() and not Path(f"{file}.gz").is_file()):
            if self.upstream and not file.is_dir():
                return await self._pass_on(method, path, headers, body)
            return 404, {}, b""
        found = {}
        if not file.is_file():
            file, found = Path(f"{file}.gz"), {"Content-Encoding": "gzip"}
        whole = file.read_bytes()
        digest = hashlib.md5(whole).digest()
        found["ETag"] = f'"{digest.hex()}"'
        if headers.get("if-none-match") == found["ETag"]:
            return 304, found, b""
        if "range" not in headers:
            if self.checksums:
                more = {"x-goog-stored-content-encoding": found.get("Content-Encoding", "identity")}
                found |= {"x-goog-hash": f"md5={base64.b64encode(digest).decode()}", **more}
            return 200, found, whole
        start, stop = byte_range(headers["range"], len(whole))
        if start >= stop:
            return 416, {"Content-Range": f"bytes */{len(whole)}"}, b""
        return 206, {**found, "Content-Range": f"bytes {start}-{stop - 1}/{len(whole)}"}, whole[start:stop]

    async def _pass_on(self, method: str, path: str, headers: dict[str, str], body: bytes) -> Answer:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.upstream)
        kept = {k: v for k, v in headers.items() if k in ("authorization", "content-type", "range", "if-none-match")}
        kept |= {"host": f"127.0.0.1:{self.upstream}", "connection": "close", "content-length": str(len(body))}
        head = f"{method} {path} HTTP/1.1\r\n" + "".join(f"{k}: {v}\r\n" for k, v in kept.items())
        writer.write(f"{head}\r\n".encode("latin-1") + body)
        found = await reader.read(-1)
        writer.close()
        head, _, content = found.partition(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        given = dict(line.split(": ", 1) for line in lines)
        sent = {k: v for k, v in given.items() if k.lower() not in ("content-length", "connection")}
        return int(first.split(" ")[1]), sent, content.replace(f":{self.upstream}".encode(), f":{self.port}".encode())

    def set_port(self, port: int) -> None:
        self.port = port


class FaultServer(ServerProcess):
    """Serve a folder in another process; use as a context manager.

    Parameters
    ----------
    root : Path
        Folder to serve. A file ``NAME.gz`` is served as ``NAME`` with the content encoding gzip.
    upstream : int
        Port of another server on this machine, which answers all other requests; 0 if there is none.
    """

    program = "tests.support.fault_server"

    def __init__(self, root: Path, upstream: int = 0) -> None:
        super().__init__(root, upstream)

    def begin(self, seed: object, rate: float, *, checksums: bool = False, stalls: bool = True) -> None:
        """Set the seed and the rate of the faults of all following requests, and clear the log."""
        self._request(f"__begin__?seed={seed}&rate={rate}&checksums={int(checksums)}&stalls={int(stalls)}")

    def log(self) -> list[tuple[str, str]]:
        """Return the path and the kind of each fault since `begin`."""
        return [tuple(entry) for entry in json.loads(self._request("__log__"))]

    def _request(self, path: str) -> bytes:
        with urllib.request.urlopen(f"{self.url}/{path}") as reply:
            return bytes(reply.read())


if __name__ == "__main__":
    server = _Server(Path(sys.argv[1]), int(sys.argv[2]))
    with suppress(KeyboardInterrupt):
        asyncio.run(serve(lambda: _Connection(server), server.set_port))
