"""The pages of the documentation are complete. Building them, as the gate does, runs their ``{code-cell}`` blocks."""

from __future__ import annotations

import ast
import inspect
import re
from pathlib import Path

import pytest

import imageryxr as ix
from imageryxr.accessor import ImageryArray, ImageryDataset, ImageryTree

DOCS = Path(__file__).parents[1] / "docs"


def listed_names() -> set[str]:
    """Return the names that the API reference lists, each relative to the package."""
    text = (DOCS / "api.md").read_text()
    blocks = re.findall(r"\.\. autosummary::\n +:toctree: generated/\n\n((?: +[\w.]+\n)+)", text)
    return {name for block in blocks for name in block.split()}


def test_api_reference_lists_every_public_name():
    listed = {name.removeprefix("errors.") for name in listed_names() if not name.startswith("accessor.")}
    assert set(ix.__all__) - listed == set()


def test_api_reference_lists_every_error_and_warning():
    kinds = {
        name
        for name, value in vars(ix.errors).items()
        if isinstance(value, type) and issubclass(value, (ix.ImageryError, ix.ImageryWarning))
    }
    assert kinds - {name.removeprefix("errors.") for name in listed_names()} == set()


@pytest.mark.parametrize(
    ("kind", "accessor"),
    [("DataArray", ImageryArray), ("Dataset", ImageryDataset), ("DataTree", ImageryTree)],
)
def test_api_reference_lists_every_accessor_method(kind, accessor):
    text = (DOCS / "api.md").read_text()
    section = re.search(rf"### `{kind}\.imagery`\n(.*?)\n##", text, re.DOTALL)[1]
    named = set(re.findall(r"\{func\}`~imageryxr\.(\w+)`", section))
    own = set(re.findall(r"accessor\.\w+\.(\w+)", section))
    assert named | own == {name for name in vars(accessor) if not name.startswith("_")}
    assert named & own == set()


def test_every_page_is_in_the_table_of_contents():
    index = (DOCS / "index.md").read_text()
    entries = {
        line for block in re.findall(r"```\{toctree\}\n(.*?)```", index, re.DOTALL) for line in block.splitlines()
    }
    written = {page.stem for page in DOCS.glob("*.md")} - {"index"}
    assert written - entries == set()


def test_the_readme_of_the_tissue_credits_its_source():
    text = (DOCS / "_data" / "README.md").read_text()
    assert "HHMI Janelia Research Campus" in text
    assert "https://creativecommons.org/licenses/by/3.0/" in text


def test_gallery_has_at_least_twelve_figures_each_with_a_title():
    scripts = sorted((DOCS / "gallery").glob("*.py"))
    assert len(scripts) >= 12
    titles = [re.match(r'"""\n(.+)\n=+\n\n', script.read_text()) for script in scripts]
    assert all(titles)
    assert len({title[1] for title in titles}) == len(scripts)


def plain_blocks() -> list[str]:
    """Return the Python blocks that a build does not run, because they need a network or a cluster."""
    pages = sorted(DOCS.glob("*.md"))
    return [code for page in pages for code in re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)]


def test_examples_that_no_build_runs_call_public_functions_with_their_parameters():
    called = 0
    for code in plain_blocks():
        for call in (node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Call)):
            if isinstance(call.func, ast.Attribute) and ast.unparse(call.func.value) == "ix":
                function = getattr(ix, call.func.attr)
                keywords = {k.arg: None for k in call.keywords}
                inspect.signature(function).bind(*call.args, **keywords)
                called += 1
    assert called > 10


def test_commands_on_the_pages_have_the_flags_that_they_show():
    from typer.main import get_command

    from imageryxr.cli.main import app

    commands, shown = get_command(app).commands, 0
    for page in sorted(DOCS.glob("*.md")):
        for command in re.findall(r"^    imageryxr (.+(?:\\\n.+)*)$", page.read_text(), re.MULTILINE):
            name, *words = command.replace("\\\n", " ").split()
            flags = {flag for param in commands[name].params for flag in [*param.opts, *param.secondary_opts]}
            assert {word for word in words if word.startswith("--")} <= flags, f"{page.name}: {command}"
            shown += 1
    assert shown > 5
