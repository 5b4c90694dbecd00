"""No two modules import each other; functions are short, and importing the package is light."""

from __future__ import annotations

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import imageryxr

ROOT = Path(imageryxr.__file__).parent


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(path): path for path in sorted(ROOT.rglob("*.py"))}
# A compiled loop is one idea however long it is; all other functions are short.
READ = [name for name in MODULES if ".kernels" not in name]


def imports_of(name: str) -> set[str]:
    """Return the modules of this package that a module imports anywhere in its file."""
    found = set()
    for node in ast.walk(ast.parse(MODULES[name].read_text())):
        if isinstance(node, ast.Import):
            found |= {a.name for a in node.names if a.name in MODULES}
        elif isinstance(node, ast.ImportFrom) and node.module in MODULES:
            whole = {f"{node.module}.{a.name}" for a in node.names}
            found |= {m if m in MODULES else node.module for m in whole}
    return found - {name}


def test_no_two_modules_import_each_other():
    list(TopologicalSorter({name: imports_of(name) for name in MODULES}).static_order())  # raises CycleError


@pytest.mark.parametrize("name", READ)
def test_function_bodies_are_under_50_lines(name):
    for node in ast.walk(ast.parse(MODULES[name].read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            body = node.body[1:] if ast.get_docstring(node) else node.body
            lines = body[-1].end_lineno - body[0].lineno + 1 if body else 0
            assert lines <= 50, f"{name}.{node.name} has {lines} lines"


def test_import_stays_light():
    heavy = [
        "numba",
        "cloudvolume",
        "cloudfiles",
        "caveclient",
        "zarr",
        "matplotlib",
        "PIL",
        "distributed",
        "tqdm",
        "typer",
    ]
    code = f"import xarray, dask.array, sys; before = set(sys.modules); import imageryxr; print([m for m in {heavy} if m in set(sys.modules) - before])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_everything_public_is_listed_and_there():
    assert imageryxr.__all__ == sorted(imageryxr.__all__)
    assert len(set(imageryxr.__all__)) == len(imageryxr.__all__)
    for name in imageryxr.__all__:
        assert getattr(imageryxr, name).__doc__
    assert {n for n in vars(imageryxr) if not n.startswith("_")} >= set(imageryxr.__all__)
