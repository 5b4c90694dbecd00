"""The structure of the package: layers, import cycles, lengths of functions, public names."""

from __future__ import annotations

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import imageryxr

ROOT = Path(imageryxr.__file__).parent

# From the lowest layer to the highest; imports inside functions count, too.
LAYERS = [
    "errors",
    "testing",
    "core",
    "kernels",
    "sources",
    "graph",
    "ops",
    "neuroglancer",
    "render",
    "export",
    "accessor",
    "imageryxr",
    "cli",
    "__main__",
]


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(path): path for path in sorted(ROOT.rglob("*.py"))}
# Compiled loops may be longer than other functions.
NOT_COMPILED = [name for name in MODULES if ".kernels" not in name]


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


def layer_of(name: str) -> str:
    return name.split(".")[1] if "." in name else name


@pytest.mark.parametrize("name", MODULES)
def test_a_package_imports_only_from_packages_below_it(name):
    assert layer_of(name) in LAYERS, f"the package of {name} is missing in LAYERS"
    for other in imports_of(name):
        assert LAYERS.index(layer_of(other)) <= LAYERS.index(layer_of(name)), (
            f"{name} imports {other}, a layer above it"
        )


def test_no_two_modules_import_each_other():
    list(TopologicalSorter({name: imports_of(name) for name in MODULES}).static_order())  # raises CycleError


def test_the_root_of_the_package_has_at_most_14_entries():
    entries = {p.name for p in ROOT.iterdir()} - {"__pycache__", "py.typed"}
    assert len(entries) <= 14, sorted(entries)


def test_no_test_module_imports_another():
    tests = Path(__file__).parent
    for path in sorted(tests.rglob("test_*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            module = node.module if isinstance(node, ast.ImportFrom) else None
            assert module is None or ".test_" not in module, f"{path.relative_to(tests)} imports {module}"


@pytest.mark.parametrize("name", NOT_COMPILED)
def test_function_bodies_are_under_50_lines(name):
    for node in ast.walk(ast.parse(MODULES[name].read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            body = node.body[1:] if ast.get_docstring(node) else node.body
            lines = body[-1].end_lineno - body[0].lineno + 1 if body else 0
            assert lines <= 50, f"{name}.{node.name} has {lines} lines"


def test_importing_imageryxr_does_not_import_heavy_packages():
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


def test_all_lists_documented_public_names_in_order():
    assert imageryxr.__all__ == sorted(imageryxr.__all__)
    assert len(set(imageryxr.__all__)) == len(imageryxr.__all__)
    for name in imageryxr.__all__:
        assert getattr(imageryxr, name).__doc__
    assert {n for n in vars(imageryxr) if not n.startswith("_")} >= set(imageryxr.__all__)
