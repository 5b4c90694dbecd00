"""A web server, optionally with TLS, that records all requests, whatever host name they have."""

from __future__ import annotations

import datetime
import json
import re
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from imageryxr.sources.fetch import attempt


@dataclass(frozen=True)
class RecordedRequest:
    """A recorded request."""

    method: str
    host: str
    path: str
    authorization: str | None
    cookie: str | None
    body: bytes
    text: str
    """The request line and all headers."""


class Recorder(ThreadingHTTPServer):
    """Respond with the first that exists: a redirect in `moved`, a result of `answer`, an entry in `files`, and 404."""

    daemon_threads = True
    request_queue_size = 128  # connections beyond the queue are retried after a second

    def __init__(self, tls: tuple[Path, Path] | None = None) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.requests: list[RecordedRequest] = []
        self.files: dict[str, Any] = {}
        """Bodies by path; objects other than bytes are sent as JSON."""
        self.moved: dict[str, str] = {}
        """Targets of redirects by path."""
        self.answer: Callable[[RecordedRequest], tuple[int, bytes, dict[str, str]] | None] = lambda request: None
        self.scheme = "http"
        if tls is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(*tls)
            self.socket = context.wrap_socket(self.socket, server_side=True)
            self.scheme = "https"

    @property
    def port(self) -> int:
        """Port of the server."""
        return self.server_port

    def url(self, host: str = "127.0.0.1") -> str:
        """Return the server's address under a host name."""
        return f"{self.scheme}://{host}:{self.port}"

    @property
    def secrets(self) -> list[str]:
        """All credentials that the server received."""
        return [text for r in self.requests for text in (r.authorization, r.cookie) if text]

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Do not report clients that disconnect."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Recorder

    def do_GET(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        head = f"{self.requestline}\n{self.headers}"
        header = self.headers.get
        request = RecordedRequest(
            self.command, header("Host", ""), self.path, header("Authorization"), header("Cookie"), body, head
        )
        self.server.requests.append(request)
        path = self.path.partition("?")[0]
        if path in self.server.moved:
            self._send(302, b"", {"Location": self.server.moved[path]})
            return
        found = self.server.answer(request)
        if found is None and path in self.server.files:
            held = self.server.files[path]
            found = 200, held if isinstance(held, bytes) else json.dumps(held).encode(), {}
        self._send(*(found or (404, b"", {})))

    do_POST = do_HEAD = do_GET

    def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        """Do not log."""


@contextmanager
def recording(tls: tuple[Path, Path] | None = None) -> Iterator[Recorder]:
    """Run a recording server on 127.0.0.1."""
    server = Recorder(tls)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


@contextmanager
def own_connections(monkeypatch: Any) -> Iterator[None]:
    """Use new connections within the context, which for example trust another certificate; close them at its end."""
    state = attempt._ProcessState()
    monkeypatch.setattr(attempt, "_state", state)
    try:
        yield
    finally:
        # Stopped requests that still run return their connections later.
        state.connections.put = lambda key, connection: connection.sock.close()  # type: ignore[method-assign]
        state.connections.close()


def resolve_here(monkeypatch: Any, names: str = r".*\.(example|com|org)") -> None:
    """Resolve host names that match a pattern to 127.0.0.1 in this process."""
    real = socket.getaddrinfo

    def getaddrinfo(host: Any, *args: Any, **options: Any) -> Any:
        text = host.decode() if isinstance(host, bytes) else host
        return real("127.0.0.1" if text and re.fullmatch(names, text.lower()) else host, *args, **options)

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)


def certificate(folder: Path, *names: str) -> tuple[Path, Path]:
    """Write a self-signed certificate for some host names and its key; return both paths."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "a test")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name) for name in names]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    paths = folder / "certificate.pem", folder / "key.pem"
    paths[0].write_bytes(made.public_bytes(serialization.Encoding.PEM))
    form = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    paths[1].write_bytes(key.private_bytes(serialization.Encoding.PEM, *form))
    return paths
