"""The pages of the documentation are complete. The gate builds them and so runs their code."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import imageryxr as ix
from imageryxr.accessor import ImageryArray, ImageryDataset, ImageryTree

DOCS = Path(__file__).parents[1] / "docs"
PAGES = [
    "get_started",
    "open_volumes",
    "align",
    "overlays",
    "figures",
    "neuroglancer_links",
    "cave",
    "annotations",
    "measurements",
    "cutouts",
    "exports",
    "clusters",
    "performance",
    "coming_from_imageryclient",
    "api",
    "contributing",
]


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
    assert {page for page in PAGES if (DOCS / f"{page}.md").exists()} <= entries


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
