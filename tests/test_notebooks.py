"""The code in the README and in the notebooks runs, and their links lead to existing files."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.py"))


# Writing the sample takes longer than most notebooks, so they use the sample of this session.
RUN = """
import os, runpy, shutil, sys
import imageryxr
write = imageryxr.sample
def sample(path):
    shutil.copytree({written!r}, path, copy_function=os.link, dirs_exist_ok=True)
    return write(path)
imageryxr.sample = sample
sys.modules['tests'] = None
runpy.run_path({path!r})
"""


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebook_runs_in_any_folder(path, tmp_path, sample):
    code = RUN.format(path=str(path), written=str(sample.path))
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "MPLBACKEND": "agg", "TMPDIR": str(tmp_path)}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


README = (ROOT / "README.md").read_text()
HERE = re.compile(
    r"https://(?:github|raw\.githubusercontent)\.com/imageryxr/imageryxr/(?:blob/|tree/)?main/([^#]+)(?:#.+)?"
)


def test_the_gate_runs_the_command_of_the_readme():
    line = "pip install '.[test]' && pytest"
    assert f"    {line}\n" in README
    assert line.replace("install", "install --quiet", 1) in (ROOT / ".ci" / "run").read_text()


def test_the_readme_is_short():
    assert len(README.splitlines()) <= 200


def test_files_that_the_readme_links_to_exist():
    links = re.findall(r"\]\(([^)\s]+)\)", README)
    inside = [HERE.fullmatch(link)[1] for link in links if HERE.fullmatch(link)]
    assert len(inside) > 10
    assert [link for link in inside if not (ROOT / link).exists()] == []
    assert [link for link in links if "://" not in link] == []  # the package index cannot resolve relative links


def test_the_readme_code_makes_its_picture(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "docs").symlink_to(ROOT / "docs", target_is_directory=True)
    exec(re.search(r"```python\n(.*?)```", README, re.DOTALL)[1], {})
    with Image.open(tmp_path / "overlay.png") as made, Image.open(ROOT / "docs" / "_static" / "overlay.jpg") as shown:
        assert made.size == shown.size
        apart = np.asarray(made.convert("RGB")).astype(int) - np.asarray(shown)
    assert np.abs(apart).mean() < 4  # JPEG changes the pixels a little
