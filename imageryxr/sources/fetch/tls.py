"""TLS connections to servers and to proxies, and through a TLS proxy, without a call that blocks."""

from __future__ import annotations

import os
import ssl
from collections.abc import Callable
from functools import lru_cache
from typing import Any

from imageryxr.sources.fetch.sockets import NOT_READY, LimitedSocket, RequestLimits, Steps, open_sockets

_PIECE = 1 << 16


class _TLSSocket(LimitedSocket, ssl.SSLSocket):
    def handshake(self) -> Steps[None]:
        while True:
            try:
                self.do_handshake()
            except NOT_READY as error:
                yield self.wait_for(error)
            else:
                return


class _InnerTLS:
    """TLS inside the TLS connection to a proxy."""

    def __init__(self, sock: _TLSSocket, context: ssl.SSLContext, host: str) -> None:
        self._sock, self._received, self._sent = sock, ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._received, self._sent, server_hostname=host)
        self.fileno, self.close = sock.fileno, sock.close

    def pending(self) -> int:
        return self._tls.pending() + self._received.pending

    def handshake(self) -> Steps[None]:
        yield from self._do(self._tls.do_handshake)

    def recv_steps(self, size: int) -> Steps[bytes]:
        try:
            found: bytes = yield from self._do(self._tls.read, size)
        except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
            return b""
        return found

    def send_steps(self, data: bytes) -> Steps[None]:
        yield from self._do(self._tls.write, data)

    def _do(self, call: Callable[..., Any], *arguments: Any) -> Steps[Any]:
        while True:
            try:
                found, is_done = call(*arguments), True
            except ssl.SSLWantReadError:
                found, is_done = None, False
            if self._sent.pending:
                yield from self._sock.send_steps(self._sent.read())
            if is_done:
                return found
            received = yield from self._sock.recv_steps(_PIECE)
            if received:
                self._received.write(received)
            else:
                self._received.write_eof()

    @property
    def limits(self) -> RequestLimits:
        """The limits of the running request."""
        return self._sock.limits

    @limits.setter
    def limits(self, limits: RequestLimits) -> None:
        self._sock.limits = limits


def secure(sock: Any, host: str, limits: RequestLimits) -> Steps[Any]:
    """Return a TLS socket over a connected socket, after verifying the certificate of the host."""
    try:
        context = _tls_context(_certificates())
        if isinstance(sock, _TLSSocket):
            sock = _InnerTLS(sock, context, host)
        else:
            sock = context.wrap_socket(sock, server_hostname=host, do_handshake_on_connect=False)
            open_sockets.add(sock)
        sock.limits = limits
        yield from sock.handshake()
    except BaseException:
        sock.close()
        raise
    return sock


@lru_cache(maxsize=4)
def _tls_context(certificates: str) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=certificates)
    context.sslsocket_class = _TLSSocket
    context.set_alpn_protocols(["http/1.1"])
    return context


def _certificates() -> str:
    import certifi

    named = (os.environ.get(name) for name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE"))
    return next((path for path in named if path and os.path.isfile(path)), certifi.where())
