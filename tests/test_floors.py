"""A module imports only from floors below its own; imports inside functions count."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import imageryxr

ROOT = Path(imageryxr.__file__).parent

# Lower floors first. Modules on one line do not know each other; those of the kernels may use those before them.
FLOORS = [
    ["errors"],
    ["units", "plain_attrs"],
    ["kernels.compiling"],
    ["kernels.runs"],
    ["kernels.lookup", "kernels.segcheck"],
    ["kernels.axes", "kernels.idsets"],
    ["kernels.fill", "kernels.relabel", "kernels.interpolate", "kernels.shrink", "kernels.shrink_rgba"],
    ["kernels.resample"],
    ["kernels.inside", "kernels.outside", "kernels.topmost"],
    ["kernels.outline"],
    ["sources.weburl"],
    ["boxes"],
    ["grid"],
    ["half_voxel"],
    ["axismap", "extra_coords", "colors.reading", "colors.ids", "colors.lab"],
    ["colors.viewer", "colors.distinct", "colors.files"],
    ["colors.palettes"],
    ["colors.chosen"],
    ["colors.drawn"],
    ["colors", "look"],
    [
        "sources.base",
        "sources.members",
        "sources.address",
        "sources.instant",
        "sources.compression",
        "sources.ranges",
        "sources.formats",
        "sources.frames",
        "sources.pictures",
        "sources.streams",
        "sources.decoder_process",
        "tissue",
    ],
    ["sources.access", "sources.guard"],
    ["sources.sockets"],
    ["sources.transport", "sources.parallel"],
    ["micrograph", "sources.web"],
    ["sample", "testing.local_cave", "testing"],
    ["sources.apart"],
    [
        "sources.auth",
        "sources.shards",
        "sources.decoding",
        "sources.ngff",
        "sources.info",
        "sources.ngff_groups",
        "sources.zarrcodecs",
        "sources.zarrobjects",
    ],
    ["sources.boundedcodecs", "sources.checks", "sources.services", "sources.zarrmeta", "sources.zipstore"],
    ["sources.state_json"],
    ["sources.links"],
    [
        "sources.ngff_places",
        "sources.shaders",
        "sources.placement",
        "sources.segment_groups",
        "sources.layer_groups",
        "sources.webobjects",
    ],
    ["sources.shader_channel", "sources.transforms", "sources.navigation", "sources.webstore"],
    ["sources.chunks", "sources.chunkedgraph", "sources.cave", "sources.zarrstore"],
    ["sources.rawfiles"],
    ["sources.memory", "sources.precomputed", "sources.omezarr", "sources.neuroglancer"],
    ["sources.graphene"],
    ["sources.resolve"],
    ["expr"],
    ["strides"],
    ["evaluation"],
    ["reads", "blocks"],
    ["lazy"],
    ["foreign", "selection"],
    ["fields"],
    ["ranges"],
    ["retracing"],
    ["volumes", "idcounts"],
    ["points", "figure.geometry", "figure.lettering"],
    ["figure.slices", "figure.printing"],
    ["figure.montages"],
    ["figure.bars", "figure.legends"],
    ["figure.insets", "figure.saving"],
    ["figure"],
    ["segments"],
    ["painting", "stacking"],
    ["layers"],
    ["levels", "slicing", "frames", "link_sources", "linked_layers"],
    ["align", "opening"],
    ["overlay", "views", "link_layers"],
    ["viewer"],
    ["written_state"],
    ["sharing", "plane", "looking", "plots"],
    ["datastack"],
    [
        "export.reach",
        "export.regions",
        "export.storage",
        "export.square",
        "export.report",
        "export.scratch",
        "export.heap",
        "export.source_places",
        "export.threads",
        "export.probe",
    ],
    ["export.buckets", "export.cancellation"],
    ["export.targets.base", "export.lease", "export.estimate", "export.locks", "export.header"],
    ["export.targets", "export.manifest", "export.targets.slices", "export.targets.pyramid", "export.targets.memory"],
    ["export.targets.zarrarray"],
    [
        "export.targets.tiff",
        "export.targets.video",
        "export.targets.gif",
        "export.targets.omezarr",
        "export.targets.precomputed",
    ],
    ["export.targets.pictures"],
    ["export.neighbours", "export.refusing", "export.overlap", "export.sites", "export.asking"],
    ["export.choosing", "export.reading", "export.workspace"],
    ["export.shelves", "export.rolling"],
    ["export.slicewise"],
    ["export.job", "export.room"],
    ["export.executors"],
    ["export.crew"],
    ["export.cutting"],
    ["export.plan"],
    ["export.planning"],
    ["export.run"],
    ["export"],
    ["masks"],
    ["accessor", "backend", "demo"],
    ["cli_words", "cli_help"],
    ["cli_export", "cli_layers", "cli_info"],
    ["cli_figure"],
    ["cli"],
    ["__main__"],
]
RANK = {name: rank for rank, floor in enumerate(FLOORS) for name in floor}


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported(path: Path) -> set[str]:
    """Return the modules of this package that a file imports anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {a.name for a in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            for a in node.names:
                whole = f"{node.module}.{a.name}"
                found.add(whole if whole.removeprefix("imageryxr.") in RANK else node.module)
    return {m.removeprefix("imageryxr.") for m in found if m.startswith("imageryxr.")}


MODULES = sorted(p for p in ROOT.rglob("*.py") if name_of(p) not in ("", "kernels", "sources", "conftest"))
# A compiled loop is one idea however long it is; everything that people read from the top is held short.
READ = [p for p in MODULES if "kernels" not in p.parts]


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_imports_come_from_below(path):
    name = name_of(path)
    assert name in RANK, f"{name} has no floor: add it to FLOORS"
    for other in imported(path):
        assert RANK[other] < RANK[name], f"{name} imports {other}, which does not lie below it"


@pytest.mark.parametrize("path", READ, ids=name_of)
def test_a_verb_reads_as_a_table_of_contents(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef):
            body = node.body[1:] if ast.get_docstring(node) else node.body
            lines = body[-1].end_lineno - body[0].lineno + 1 if body else 0
            assert lines <= 50, f"{name_of(path)}.{node.name} has {lines} lines"


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
        "scipy",
        "h5py",
        "boto3",
        "obstore",
        "tifffile",
        "av",
        "colorcet",
        "fastremap",
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
