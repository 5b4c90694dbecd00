"""The structure of the package: layers, import cycles, lengths of functions, public names."""

from __future__ import annotations

import ast
import pickle
import pydoc
import re
import subprocess
import sys
from collections import Counter
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import imageryxr
from imageryxr import errors

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
    "measure",
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


@pytest.mark.slow
def test_no_two_modules_import_each_other():
    list(TopologicalSorter({name: imports_of(name) for name in MODULES}).static_order())  # raises CycleError


def test_the_root_of_the_package_has_at_most_15_entries():
    entries = {p.name for p in ROOT.iterdir()} - {"__pycache__", "py.typed"}
    assert len(entries) <= 15, sorted(entries)


@pytest.mark.slow
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


def test_no_two_classes_share_a_name():
    """Except ``_ProcessState``, which two modules hold for the same purpose: the state that a fork resets."""
    names = Counter(
        node.name
        for path in MODULES.values()
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ClassDef) and node.name != "_ProcessState"
    )
    assert [name for name, count in names.items() if count > 1] == []


def test_one_function_issues_all_warnings_at_the_line_of_the_caller():
    assert [name for name, path in MODULES.items() if "warnings.warn(" in path.read_text()] == ["imageryxr.errors"]


def test_cached_properties_hold_no_lock():
    """The locks of `functools.cached_property` in Python 3.11 made threads wait for each other."""
    imported = re.compile(r"from functools import .*\bcached_property")
    importing = [name for name, path in MODULES.items() if imported.search(path.read_text())]
    using = [name for name, path in MODULES.items() if "functools.cached_property" in path.read_text()]
    assert (importing, using) == ([], ["imageryxr.core.fork"])


def modules_after(code: str) -> set[str]:
    """Return the modules that code loads in a new process."""
    code += "\nimport sys; print(*sys.modules)"
    return set(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split())


HEAVY = {
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
}
ALL_NAMES = "import imageryxr as ix\nfor name in ix.__all__: getattr(ix, name)"


def test_importing_imageryxr_loads_few_modules_and_no_heavy_packages():
    loaded = modules_after("import imageryxr") - modules_after("import xarray")
    assert len([name for name in loaded if name.startswith("imageryxr")]) <= 10  # the goal is at most 60
    assert loaded & (HEAVY | {"scipy", "dask", "imageryxr.kernels"}) == set()


@pytest.mark.slow
def test_loading_all_public_names_imports_no_heavy_packages():
    loaded = modules_after(ALL_NAMES) - modules_after("import xarray, dask.array")
    assert loaded & HEAVY == set()


@pytest.mark.slow
def test_accessors_exist_whatever_is_imported_first():
    for order in ("imageryxr, xarray", "xarray, imageryxr"):
        code = f"import {order}; xarray.DataArray([[0]]).imagery; xarray.Dataset().imagery; xarray.DataTree().imagery"
        assert "imageryxr.accessor" in modules_after(code)


def test_dunder_all_lists_the_documented_public_names_in_order():
    assert imageryxr.__all__ == sorted(imageryxr.__all__)
    assert len(set(imageryxr.__all__)) == len(imageryxr.__all__)
    for name in imageryxr.__all__:
        assert getattr(imageryxr, name).__doc__
    assert set(dir(imageryxr)) >= set(imageryxr.__all__)


def test_type_checkers_find_each_public_name_in_the_module_from_which_it_is_loaded():
    seen = {}
    for node in ast.walk(ast.parse(MODULES["imageryxr"].read_text())):
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("imageryxr."):
            seen |= {alias.name: node.module for alias in node.names}
    own = {"errors": None, "ImageryError": "imageryxr.errors", "ImageryWarning": "imageryxr.errors"}
    assert {name: seen.get(name) for name in imageryxr.__all__} == imageryxr._MODULES | own


def test_the_top_level_exports_only_the_base_classes_of_errors_and_warnings():
    kinds = {
        name for name, value in vars(errors).items() if isinstance(value, type) and value.__module__ == errors.__name__
    }
    assert {"MipError", "LinkWarning"} < kinds
    assert kinds & set(imageryxr.__all__) == {"ImageryError", "ImageryWarning"}
    for name in kinds - set(imageryxr.__all__):
        with pytest.raises(AttributeError, match=rf"write imageryxr\.errors\.{name}$"):
            getattr(imageryxr, name)


def test_an_unknown_name_is_an_attribute_error_with_a_suggestion():
    code = "import imageryxr as ix\nix.opn_image"
    errors = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stderr
    assert "module 'imageryxr' has no attribute 'opn_image'. Did you mean: 'open_image'?" in errors


@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n in imageryxr.__all__ if f"imageryxr.{n}" in MODULES and n != "errors"])
def test_a_function_is_not_replaced_by_its_subpackage(name):
    code = f"import imageryxr.{name} as package, imageryxr.export.plan.planner, imageryxr as ix, sys\n"
    code += f"from imageryxr import *\nassert ix.{name} is {name} and callable({name})\n"
    code += f"import importlib; assert importlib.import_module('imageryxr.{name}').{name} is {name}"
    assert f"imageryxr.{name}" in modules_after(code)


def test_public_functions_are_pickled_by_name():
    for name in set(imageryxr.__all__) - {"errors"}:
        value = getattr(imageryxr, name)
        assert pickle.loads(pickle.dumps(value)) is value


def test_help_lists_the_public_functions():
    text = pydoc.plain(pydoc.render_doc(imageryxr))
    assert "open_image(" in text
    assert "crop(" in pydoc.plain(pydoc.render_doc(imageryxr.crop))
