"""Gives the doctests the sample volume; not part of the installed package."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from imageryxr.sample import sample


def sample_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return where the sample volume of this test session lies: one kept between sessions, or one of its own."""
    # Writing it takes longer than most single tests: IMAGERYXR_TEST_SAMPLE=folder keeps it while one works on them.
    kept = os.environ.get("IMAGERYXR_TEST_SAMPLE")
    return Path(kept) if kept else tmp_path_factory.getbasetemp() / "sample-volume"


@pytest.fixture(scope="session")
def sample_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the sample volume of this test session lies."""
    return sample(sample_folder(tmp_path_factory)).path


@pytest.fixture(autouse=True)
def _names(doctest_namespace: dict[str, Any], request: pytest.FixtureRequest) -> None:
    if isinstance(request.node, pytest.DoctestItem):
        doctest_namespace["os"] = os
        if "sample_path" in "".join(e.source for e in request.node.dtest.examples):
            doctest_namespace["sample_path"] = request.getfixturevalue("sample_path")
