"""Packages that are imported when they are first used, by several threads at once."""

from __future__ import annotations

import ast
import importlib
import sys
import threading
from pathlib import Path

import pytest

import imageryxr
from imageryxr.core.lazy_import import import_package

# Packages that are imported completely before a computation starts threads.
_ALWAYS_LOADED = {"dask", "imageryxr", "numpy"}

_INIT = """
import threading
started, may_continue = threading.Event(), threading.Event()
started.set()
may_continue.wait(30)
from slow_package.module import value
"""


def test_a_module_waits_for_its_package_that_another_thread_imports(tmp_path, monkeypatch):
    (tmp_path / "slow_package").mkdir()
    (tmp_path / "slow_package" / "__init__.py").write_text(_INIT)
    (tmp_path / "slow_package" / "module.py").write_text("import slow_package\nvalue = 5")
    monkeypatch.syspath_prepend(str(tmp_path))
    found = []

    def use() -> None:
        import_package("slow_package")
        found.append(importlib.import_module("slow_package").value)

    first = threading.Thread(target=importlib.import_module, args=("slow_package",))
    first.start()
    while not hasattr(sys.modules.get("slow_package"), "may_continue"):
        pass
    second = threading.Thread(target=use)
    second.start()
    sys.modules["slow_package"].may_continue.set()
    first.join(30)
    second.join(30)
    assert found == [5]


@pytest.mark.slow
def test_functions_import_a_package_before_one_of_its_modules():
    folder = Path(imageryxr.__file__).parent
    early = [
        f"{path.relative_to(folder)}:{line} {name}"
        for path in sorted(folder.rglob("*.py"))
        for function in ast.walk(ast.parse(path.read_text()))
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
        for line, name in _early_imports(function)
    ]
    assert not early, "call imageryxr.core.lazy_import.import_package first"


def _early_imports(function: ast.FunctionDef | ast.AsyncFunctionDef) -> list[tuple[int, str]]:
    """Return the imports of modules before the import of their package."""
    complete, early = set(_ALWAYS_LOADED), []
    nodes = [n for n in ast.walk(function) if isinstance(n, ast.Import | ast.ImportFrom | ast.Call)]
    for node in sorted(nodes, key=lambda n: n.lineno):
        if isinstance(node, ast.Call):
            if isinstance(node.func, ast.Name) and node.func.id == "import_package":
                complete.add(node.args[0].value)
            continue
        names = [a.name for a in node.names] if isinstance(node, ast.Import) else [str(node.module)]
        for name in names:
            package = "google.auth" if name.startswith("google.auth") else name.partition(".")[0]
            if name == package:
                complete.add(package)
            elif package not in sys.stdlib_module_names and package not in complete:
                early.append((node.lineno, name))
    return early
