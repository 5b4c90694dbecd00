"""The sample volume of the tests. All processes of a session share it, and later sessions use it again."""

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
    """Return the folder of the sample volume: in pytest's cache if there is one, otherwise in the session's folder."""
    code = blake2b(digest_size=8)
    for path in sorted(Path(imageryxr.testing.__path__[0]).glob("*.py")):
        code.update(path.read_bytes())
    with suppress(
        AttributeError, OSError
    ):  # pytest runs without the cache plugin, or the folder of the cache is not writable
        return request.config.cache.mkdir(f"imageryxr-{code.hexdigest()}") / "sample"  # type: ignore[union-attr]
    base: Path = request.getfixturevalue("tmp_path_factory").getbasetemp()
    return (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "sample"


def session_sample(request: pytest.FixtureRequest) -> Sample:
    """Return the sample volume. The first process writes it, which takes 20 s; others wait."""
    folder = _sample_folder(request)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _lock(folder.with_name(f"{folder.name}.lock")):
        return sample(folder)


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        with suppress(ImportError):  # without fcntl, on Windows, several processes may write the volume
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX)
        yield
