"""Gives the doctests the sample volume; not part of the installed package."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from imageryxr.sample import sample


@pytest.fixture(scope="session")
def sample_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the sample volume of this test session lies."""
    path = tmp_path_factory.getbasetemp() / "sample-volume"
    sample(path)
    return path


@pytest.fixture(autouse=True)
def _names(doctest_namespace: dict[str, Any], request: pytest.FixtureRequest) -> None:
    if isinstance(request.node, pytest.DoctestItem):
        doctest_namespace["os"] = os
        if "sample_path" in "".join(e.source for e in request.node.dtest.examples):
            doctest_namespace["sample_path"] = request.getfixturevalue("sample_path")
