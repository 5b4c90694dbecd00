"""A web server whose responses are any bytes, sent at any speed."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from contextlib import suppress


class HostileServer:
    """Accept connections on 127.0.0.1 and pass each request to a function that writes to the socket.

    Parameters
    ----------
    answer : callable
        Function of the socket and the head of the request. The connection is closed if it returns False or None.
    """

    def __init__(self, answer: Callable[[socket.socket, str], object], family: int = socket.AF_INET) -> None:
        self.answer = answer
        self.requests: list[str] = []
        self.connections = 0
        self.stopped = threading.Event()
        self._listening = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.port = self._listening.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._open: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> HostileServer:
        return self

    def __exit__(self, *args: object) -> None:
        self.stopped.set()
        for sock in (self._listening, *self._open):
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()

    def drip(self, sock: socket.socket, data: bytes, seconds: float) -> None:
        """Send bytes one by one, with a pause after each, until the client or the test ends."""
        for number in range(len(data)):
            if self.stopped.wait(seconds):
                return
            sock.sendall(data[number : number + 1])

    def _accept(self) -> None:
        while not self.stopped.is_set():
            try:
                sock, _ = self._listening.accept()
            except OSError:
                return
            self.connections += 1
            self._open.append(sock)
            threading.Thread(target=self._serve, args=(sock,), daemon=True).start()

    def _serve(self, sock: socket.socket) -> None:
        with suppress(OSError), sock:
            rest = b""
            while True:
                while b"\r\n\r\n" not in rest:
                    piece = sock.recv(65536)
                    if not piece:
                        return
                    rest += piece
                head, _, rest = rest.partition(b"\r\n\r\n")
                self.requests.append(head.decode("latin-1"))
                if not self.answer(sock, self.requests[-1]):
                    return


def reply(sock: socket.socket, body: bytes = b"", status: str = "200 OK", **headers: str) -> bool:
    """Send a complete response and keep the connection."""
    given = {"Content-Length": str(len(body)), **{name.replace("_", "-"): value for name, value in headers.items()}}
    lines = [f"HTTP/1.1 {status}", *(f"{name}: {value}" for name, value in given.items())]
    sock.sendall("\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body)
    return True
