"""The sample volume of the tests, which all processes of a session and later sessions share."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from hashlib import blake2b
from pathlib import Path

import pytest

import imageryxr.testing
from imageryxr.testing.sample import Sample, sample


def _sample_folder(request: pytest.FixtureRequest) -> Path:
    """Return the folder of the sample volume: in pytest's cache, or in the folder of the session if it has no cache."""
    code = blake2b(digest_size=8)
    for path in sorted(Path(imageryxr.testing.__path__[0]).glob("*.py")):
        code.update(path.read_bytes())
    with suppress(AttributeError, OSError):  # without the plugin of the cache, or if its folder is not writable
        return request.config.cache.mkdir(f"imageryxr-{code.hexdigest()}") / "sample-volume"  # type: ignore[union-attr]
    base: Path = request.getfixturevalue("tmp_path_factory").getbasetemp()
    return (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "sample-volume"


def session_sample(request: pytest.FixtureRequest) -> Sample:
    """Write the sample volume, which takes 20 s of the processor, or wait for the process that writes it."""
    folder = _sample_folder(request)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _locked(folder.with_name(f"{folder.name}.lock")):
        return sample(folder)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        with suppress(ImportError):  # Windows has no fcntl; each process may write the volume there
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX)
        yield
