"""The sample volume of a test session, which all its processes share."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from imageryxr.testing.sample import Sample, sample


def sample_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of the sample volume that all processes of the session share."""
    # Writing the volume takes longer than most tests. IMAGERYXR_TEST_SAMPLE=folder keeps it between sessions.
    kept = os.environ.get("IMAGERYXR_TEST_SAMPLE")
    base = tmp_path_factory.getbasetemp()
    session = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    return Path(kept) if kept else session / "sample-volume"


def session_sample(tmp_path_factory: pytest.TempPathFactory) -> Sample:
    """Write the sample volume of this session, or wait for the process that writes it."""
    folder = sample_folder(tmp_path_factory)
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
