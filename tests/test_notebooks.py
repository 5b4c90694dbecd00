"""Notebooks are text, and run from top to bottom."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.py"))


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebook_runs(path):
    runpy.run_path(str(path))


def test_the_gate_runs_what_the_readme_says():
    root = Path(__file__).parents[1]
    line = "pip install '.[test]' && pytest"
    assert f"    {line}\n" in (root / "README.md").read_text()
    assert line.replace("install", "install --quiet", 1) in (root / ".ci" / "run").read_text()


def test_what_the_readme_links_to_is_there():
    root = Path(__file__).parents[1]
    inside = [link for link in re.findall(r"\]\(([^)\s]+)\)", (root / "README.md").read_text()) if "://" not in link]
    assert inside
    assert [link for link in inside if not (root / link).exists()] == []
