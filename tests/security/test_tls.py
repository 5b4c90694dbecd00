"""TLS verifies the name of the host although the socket connects to a resolved address."""

from __future__ import annotations

import datetime
import socket
import ssl
import threading
from contextlib import suppress

import pytest

import imageryxr as ix
from imageryxr.sources.fetch import client

x509 = pytest.importorskip("cryptography.x509")
ec = pytest.importorskip("cryptography.hazmat.primitives.asymmetric.ec")
serialization = pytest.importorskip("cryptography.hazmat.primitives.serialization")
hashes = pytest.importorskip("cryptography.hazmat.primitives.hashes")

HASTY = ix.Connection(timeout=5, retries=0)


def write_certificate(path, name):
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    built = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    secret = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path.write_bytes(secret + built.public_bytes(serialization.Encoding.PEM))
    return path


@pytest.fixture
def server(tmp_path, monkeypatch):
    """Start an https server for public.example; yield it, the host names that clients sent, and its connections."""
    path = write_certificate(tmp_path / "server.pem", "public.example")
    for variable in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("SSL_CERT_FILE", str(path))
    real = socket.getaddrinfo
    monkeypatch.setattr(socket, "getaddrinfo", lambda host, *args, **kwargs: real("127.0.0.1", *args, **kwargs))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(path)
    names: list[str | None] = []
    context.sni_callback = lambda sock, name, _: names.append(name)

    def serve(sock):
        with suppress(OSError), context.wrap_socket(sock, server_side=True) as secure:
            while secure.recv(65536):
                secure.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello")

    def accept():
        while True:
            try:
                sock, _ = listening.accept()
            except OSError:
                return
            threading.Thread(target=serve, args=(sock,), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listening:
        threading.Thread(target=accept, daemon=True).start()
        yield listening.getsockname()[1], names
        listening.shutdown(socket.SHUT_RDWR)


def test_the_host_name_is_verified_and_the_connection_reused(server):
    port, names = server
    for _ in range(3):
        assert client.send_interruptible_request("GET", f"https://public.example:{port}/", HASTY).body == b"hello"
    assert names == ["public.example"]


def test_a_certificate_of_another_name_is_an_error_without_a_retry(server):
    port, names = server
    with pytest.raises(ix.errors.ServerError, match=r"other\.example.*certificate"):
        client.send_interruptible_request("GET", f"https://other.example:{port}/", ix.Connection(timeout=5, retries=5))
    assert names == ["other.example"]


def test_an_unsigned_certificate_is_an_error(server, tmp_path, monkeypatch):
    port, _ = server
    monkeypatch.setenv("SSL_CERT_FILE", str(write_certificate(tmp_path / "other.pem", "public.example")))
    with pytest.raises(ix.errors.ServerError, match="certificate verify failed"):
        client.send_interruptible_request("GET", f"https://public.example:{port}/", HASTY)
