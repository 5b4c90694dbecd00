"""Declared dependencies match the imports, in each file that declares them."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from functools import cache
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

# Dependencies that no module imports.
NOT_IMPORTED = {
    "scipy",  # examples of the documentation filter images with it
    "caveclient",  # `open_datastack` accepts its clients
    "cryptography",  # the certificates of `distributed.Security.temporary`
    "click",  # restricts the version that typer uses
}
IMPORTED_IF_INSTALLED = {"h5py"}
CONDA_NAMES = {"brotli": "brotli-python", "dask": "dask-core", "matplotlib": "matplotlib-base"}


def normalize(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def split_requirement(requirement: str) -> tuple[str, str]:
    """Return the name of a requirement, without extras, and its version specifiers."""
    name, bounds = re.fullmatch(r"([\w.-]+)(?:\[[\w,]+\])?(.*)", requirement).groups()
    return normalize(name), bounds.strip()


def imported_packages(folder: Path) -> set[str]:
    """Return the third-party top-level modules that the files of a folder import anywhere."""
    found = set()
    for path in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                found.add(node.module)
    # several distributions have a part of the package `google`
    found = {"google.auth" if name.startswith("google.auth") else name.partition(".")[0] for name in found}
    return found - set(sys.stdlib_module_names) - {"imageryxr", "tests", "conftest", "benchmarks"}


@cache
def providers() -> dict[str, list[str]]:
    """Return the distributions that provide each top-level module."""
    return {**packages_distributions(), "google.auth": ["google-auth"]}


@cache
def imported_distributions(folder: Path) -> frozenset[str]:
    modules = imported_packages(folder)
    return frozenset(normalize(name) for module in modules for name in providers().get(module, [module]))


DEPENDENCIES = dict(split_requirement(requirement) for requirement in PROJECT["dependencies"])
EXTRAS = {
    extra: {split_requirement(requirement)[0] for requirement in requirements}
    for extra, requirements in PROJECT["optional-dependencies"].items()
}


@pytest.mark.slow
def test_each_dependency_is_imported_by_the_package():
    imported = imported_distributions(ROOT / "imageryxr")
    assert set(DEPENDENCIES) - imported == NOT_IMPORTED


@pytest.mark.slow
def test_each_import_of_the_package_is_declared():
    used = imported_distributions(ROOT / "imageryxr")
    assert used - set(DEPENDENCIES) - EXTRAS["codecs"] - EXTRAS["video"] == IMPORTED_IF_INSTALLED


@pytest.mark.slow
def test_each_import_of_the_tests_is_declared():
    used = imported_distributions(ROOT / "tests")
    declared = set(DEPENDENCIES) | EXTRAS["test"] | EXTRAS["codecs"] | EXTRAS["video"]
    assert used - declared == set()


def test_the_conda_recipe_requires_the_dependencies_of_pyproject():
    recipe = load_recipe()
    run = dict(line.partition(" ")[::2] for line in recipe["requirements"]["run"])
    assert run.pop("python").replace("${{ python_min }}", recipe["context"]["python_min"]) == PROJECT["requires-python"]
    assert run == {CONDA_NAMES.get(name, name): bounds for name, bounds in DEPENDENCIES.items()}


def test_the_conda_recipe_installs_the_same_commands():
    made = [f"{name} = {target}" for name, target in PROJECT["scripts"].items()]
    assert load_recipe()["build"]["python"]["entry_points"] == made


def test_version_and_licence_are_the_same_everywhere():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    recipe = load_recipe()
    assert {citation["version"], recipe["context"]["version"]} == {PROJECT["version"]}
    assert {citation["license"], recipe["about"]["license"]} == {PROJECT["license"]}
    assert [author["name"] for author in citation["authors"]] == [author["name"] for author in PROJECT["authors"]]
    assert citation["repository-code"] == recipe["about"]["repository"] == PROJECT["urls"]["Source"]


def test_each_declared_python_is_tested_by_the_workflow():
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "tests.yml").read_text())
    tested = workflow["jobs"]["newest"]["strategy"]["matrix"]["python"]
    declared = [line.rpartition(" ")[2] for line in PROJECT["classifiers"] if "Python :: 3." in line]
    assert set(declared) <= set(tested)
    lowest = [step["with"]["python-version"] for step in workflow["jobs"]["lowest"]["steps"] if "with" in step]
    assert lowest == [PROJECT["requires-python"].removeprefix(">=")]


def load_recipe() -> dict[str, Any]:
    return yaml.safe_load((ROOT / ".ci" / "conda" / "recipe.yaml").read_text())
