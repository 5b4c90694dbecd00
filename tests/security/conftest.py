"""Fixtures: servers under fictitious names, and a home folder with secrets."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.recorder import Recorder, certificate, own_connections, recording, resolve_here

TOKEN = "0123456789abcdef0123456789abcdef"
NAMES = ("good.example", "evil.example", "other.example", "minnie.microns-daf.com", "global.daf-apis.com")


@pytest.fixture
def secrets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder of secrets in a home folder, with a CAVE token."""
    home = tmp_path / "home"
    folder = home / ".cloudvolume" / "secrets"
    folder.mkdir(parents=True)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.delenv("CAVE_TOKEN", raising=False)
    monkeypatch.delenv("CLOUD_VOLUME_DIR", raising=False)
    (folder / "cave-secret.json").write_text(json.dumps({"token": TOKEN}))
    return folder


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> None:
    """Resolve fictitious names to this machine."""
    for variable in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(variable, raising=False)
    resolve_here(monkeypatch)


@pytest.fixture
def stranger(names: None):
    """Start a server over plain http."""
    with recording() as server:
        yield server


@pytest.fixture(scope="session")
def keys(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Return the files of a certificate for the names of the test servers, and of its key."""
    return certificate(tmp_path_factory.mktemp("keys"), *NAMES, "localhost")


@pytest.fixture
def tls(names: None, keys: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch):
    """Start an https server whose certificate is trusted."""
    for variable in ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
        monkeypatch.setenv(variable, str(keys[0]))
    with recording(keys) as server, own_connections(monkeypatch):
        yield server


def graph_info(server: Recorder, host: str, data_dir: str, path: str = "/segmentation/table/t") -> None:
    """Make a server answer like a PyChunkedGraph server with a table at a path."""
    scale = {
        "key": "8_8_40",
        "size": [8, 8, 8],
        "resolution": [8, 8, 40],
        "chunk_sizes": [[8, 8, 8]],
        "encoding": "raw",
    }
    info = {"type": "segmentation", "data_type": "uint64", "num_channels": 1, "scales": [scale]}
    info |= {"@type": "neuroglancer_multiscale_volume", "data_dir": data_dir}
    info |= {"graph": {"n_layers": 4, "n_bits_for_layer_id": 8}, "app": {}}
    server.files[f"{path}/info"] = info
    server.files["/segmentation/api/v1/table/t/oldest_timestamp"] = {"iso": "2020-01-01T00:00:00Z"}
