"""Options that `figure` and `export` share, and the layers, boxes and styles that they define."""

from __future__ import annotations

import json
import re
from typing import Annotated, Any

import typer
import xarray as xr

import imageryxr as ix
from imageryxr.errors import OptionError

_CORNERS = "Corners, upper one exclusive: x0,y0,z0:x1,y1,z1 in units of --resolution."
Bbox = Annotated[str | None, typer.Option(help=_CORNERS)]
Center = Annotated[str | None, typer.Option(help="Middle of the box: x,y,z in units of --resolution.")]
Size = Annotated[str | None, typer.Option(help="Size of the box: w,h (one slice) or w,h,d in units of --resolution.")]
Resolution = Annotated[
    str, typer.Option(help="nm per unit of positions and sizes: x,y,z, or 'viewer' for that of a datastack.")
]
Image = Annotated[str | None, typer.Option("--image", help="Source of the image.")]
Segmentation = Annotated[str | None, typer.Option("--segmentation", help="Source of the segmentation.")]
ImageMip = Annotated[int | None, typer.Option(help="Level of the image; default: the finest.")]
SegMip = Annotated[int | None, typer.Option(help="Level of the segmentation; default: the finest.")]
Ids = Annotated[str | None, typer.Option(help="Draw only these segments: id,id,…")]
Colors = Annotated[str | None, typer.Option(help="Name of a palette, or a JSON object of ids and colours.")]
Alpha = Annotated[float, typer.Option(help="Opacity of the fill, 0 to 1.")]
AlphaOrTheirs = Annotated[
    float | None, typer.Option("--alpha", help="Opacity of the fill, 0 to 1; default: 0.2, or that of the link.")
]
OutlineWidth = Annotated[float | None, typer.Option("--outline", help="Width of outlines; default: no outlines.")]
Side = Annotated[str, typer.Option("--outline-side", help="Side of the edge: 'out' or 'in'.")]
Merge = Annotated[bool, typer.Option("--merge/--no-merge", help="Outline touching segments as one, or each of them.")]
LineAlpha = Annotated[float, typer.Option("--outline-alpha", help="Opacity of outlines, 0 to 1.")]
LineUnit = Annotated[str, typer.Option("--outline-unit", help="Unit of --outline: 'px' or 'nm'.")]
RestAlpha = Annotated[float | None, typer.Option(help="With --ids: opacity of the other segments; default: 0.")]
Contrast = Annotated[str | None, typer.Option(help="Grey values that become black and white: low,high.")]
Axis = Annotated[str, typer.Option(help="Axis that the slices are perpendicular to: z, y or x.")]
MissingChunks = Annotated[
    str | None,
    typer.Option(
        "--missing",
        help="Missing chunks: 'raise', 'fill' or 'warn'. Default: fill value in Zarr, an error in other formats.",
    ),
]
To = Annotated[
    str | None,
    typer.Option(help="Voxels of the result: 'finest' (default), 'coarsest', 'image', 'segmentation', or nm x,y,z."),
]
Channel = Annotated[int | None, typer.Option(help="Channel of an image with several, from 0.")]
Time = Annotated[int | None, typer.Option(help="Time point of an image with several, from 0.")]
Assume = Annotated[
    str, typer.Option(help="Point of a voxel that an OME-Zarr translation refers to: 'center' or 'corner'.")
]
Agglomerate = Annotated[
    bool,
    typer.Option("--agglomerate/--no-agglomerate", help="Read root ids or supervoxels of a graphene segmentation."),
]
Datastack = Annotated[str | None, typer.Option(help="A CAVE datastack, instead of --image and --segmentation.")]
Server = Annotated[str | None, typer.Option(help="Info service of --datastack; default: that of caveclient.")]
Timestamp = Annotated[str | None, typer.Option(help="Instant of a graphene segmentation, ISO 8601; default: now.")]
LINES = {
    "outline_side": "--outline-side",
    "merge": "--merge/--no-merge",
    "outline_alpha": "--outline-alpha",
    "outline_unit": "--outline-unit",
}
"""Flags of the style of outlines, by parameter name."""
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace a target that exists.")]


def open_layers(
    image: str | None,
    segmentation: str | None,
    *,
    image_mip: int | None,
    seg_mip: int | None,
    missing: Any,
    datastack: str | None,
    server_address: str | None,
    timestamp: str | None,
    agglomerate: bool,
    **choices: Any,
) -> tuple[dict[str, xr.DataArray], xr.DataTree | None]:
    """Open the layers; return them with the tree of a datastack, or None for other sources.

    `choices` (channel, time, assume) apply to the image, or to the segmentation if there is no image.
    """
    if datastack is not None:
        if image or segmentation:
            raise OptionError("--datastack defines the sources; omit --image and --segmentation")
        if (choices.get("channel"), choices.get("time")) != (None, None):
            raise OptionError("--channel and --time need --image; the layers of a datastack have one of each")
        return _open_datastack_layers(
            datastack, image_mip=image_mip, segmentation_mip=seg_mip, missing=missing, server_address=server_address,
            timestamp=timestamp, agglomerate=agglomerate,
        )  # fmt: skip
    opened = {}
    if image:
        opened["image"] = ix.open_image(image, mip=image_mip, missing=missing, **choices)
    if segmentation:
        opened["segmentation"] = ix.open_segmentation(
            segmentation, mip=seg_mip, missing=missing, timestamp=timestamp, agglomerate=agglomerate,
            **({} if image else choices),
        )  # fmt: skip
    if not opened:
        raise OptionError("nothing to draw: give --image SOURCE, --segmentation SOURCE or both, or --datastack NAME")
    return opened, None


def _open_datastack_layers(name: str, **options: Any) -> tuple[dict[str, xr.DataArray], xr.DataTree]:
    tree = ix.open_datastack(name, **options)
    layers = {name: tree[name][name] for name in ("image", "segmentation")}
    return layers, tree  # type: ignore[return-value]


def viewer_resolution(tree: xr.DataTree | None) -> Any:
    """Return the viewer resolution of a datastack; None if there is no datastack, or it states none."""
    return None if tree is None else tree.attrs.get("viewer_resolution")


def cut_layers(
    opened: dict[str, xr.DataArray], box: ix.BBox | None, *, plane: str | None = None, to: str | None = None
) -> dict[str, xr.DataArray]:
    """Return the layers, cropped to a box and aligned on one grid."""
    grid = _parse_grid(to, len(opened))
    if len(opened) == 1 and isinstance(grid, tuple):
        opened = {name: ix.regrid(array, grid) for name, array in opened.items()}
    if plane is not None and box is None:
        # of two layers, the middle of the box that both cover
        box = _middle_slice(ix.grid_of(next(iter(_align_layers(opened, None, grid).values()))), plane)
    return _align_layers(opened, box, grid)


def _align_layers(opened: dict[str, xr.DataArray], box: ix.BBox | None, to: Any) -> dict[str, xr.DataArray]:
    if len(opened) == 2:
        both = ix.align(opened["image"], opened["segmentation"], to=to, bbox=box)
        return {"image": both["image"], "segmentation": both["segmentation"]}
    return {name: array if box is None else ix.crop(array, box) for name, array in opened.items()}


def _parse_grid(to: str | None, layers: int) -> Any:
    if to is None:
        return "finest"
    if to[:1].isalpha():
        if layers == 1:
            raise OptionError(f"--to {to} is a choice between two layers, and there is one; give nm, --to x,y,z")
        return to
    x, y, z = parse_numbers(to, "--to", (3,))
    return x, y, z


def _middle_slice(grid: ix.Grid, plane: str) -> ix.BBox:
    size = [min(1024, n) for n in grid.shape[::-1]]
    size["xyz".index(plane)] = 1
    center = [o + n / 2 for o, n in zip(grid.voxel_offset, grid.shape[::-1], strict=True)]
    return ix.BBox.around(center, size, resolution=grid.resolution)


def draw_layers(layers: dict[str, xr.DataArray], options: dict[str, Any]) -> xr.DataArray:
    """Return the picture of the layers, lazily, with options as `overlay_options` returns them."""
    if "segmentation" not in layers:
        if options["ids"] or options["colors"] or options["outline"]:
            raise OptionError("--ids, --colors and --outline need segments: also give --segmentation SOURCE")
        return ix.to_rgba(layers["image"], contrast_limits=options["contrast_limits"])
    return ix.overlay(layers.get("image"), layers["segmentation"], **options)


def overlay_options(
    ids: str | None,
    colors: str | None,
    alpha: float | None,
    rest_alpha: float | None,
    lines: ix.Outline | None,
    contrast: str | None,
    axis: str,
) -> dict[str, Any]:
    """Return the options of `imageryxr.overlay`."""
    limits = None if contrast is None else parse_numbers(contrast, "--contrast", (2,))
    return {
        "ids": None if ids is None else [i.strip() for i in ids.split(",")],
        "colors": _palette(colors),
        "alpha": alpha,
        "rest_alpha": rest_alpha,
        "outline": lines,
        "contrast_limits": None if limits is None else (limits[0], limits[1]),
        "axis": axis,
    }


def make_outline(width: float | None, side: Any, merge: bool, alpha: float, unit: Any) -> ix.Outline | None:
    """Return the outline style; None without a width."""
    return None if width is None else ix.Outline(width, side=side, merge=merge, alpha=alpha, unit=unit)


def check_outline_options(context: typer.Context, width: float | None) -> None:
    """Raise `OptionError` if the command line, not a job file, styles outlines without giving their width."""
    typed = [
        flag
        for name, flag in LINES.items()
        if (source := context.get_parameter_source(name)) is not None and source.name == "COMMANDLINE"
    ]
    if width is None and typed:
        raise OptionError(f"{', '.join(typed)} without --outline draws nothing: also give --outline WIDTH")


def _palette(colors: str | None) -> Any:
    if colors is None or not colors.lstrip().startswith("{"):
        return colors
    try:
        return json.loads(colors)
    except json.JSONDecodeError as error:
        raise OptionError(f'--colors {colors} is no JSON object ({error}); write \'{{"12": "red"}}\'') from None


def make_box(
    bbox: str | None, center: str | None, size: str | None, resolution: str, axis: str, viewer: Any
) -> ix.BBox | None:
    """Return the box given by its corners or its centre; None if there is neither."""
    unit = parse_resolution(resolution, viewer)
    if bbox is not None:
        if center is not None or size is not None:
            raise OptionError("--bbox defines the box; omit --center and --size")
        corners = bbox.split(":")
        if len(corners) != 2:
            raise OptionError(f"--bbox {bbox} is not two corners; write x0,y0,z0:x1,y1,z1")
        lo, hi = (parse_numbers(c, "--bbox", (3,)) for c in corners)
        return ix.BBox(lo, hi, resolution=unit)
    if center is None:
        if size is not None:
            raise OptionError("--size needs --center x,y,z")
        return None
    if size is None:
        raise OptionError("--center needs --size w,h or w,h,d")
    sizes = parse_numbers(size, "--size", (2, 3))
    if len(sizes) == 2:
        sizes.insert("xyz".index(axis), 1)
    return ix.BBox.around(parse_numbers(center, "--center", (3,)), sizes, resolution=unit)


def parse_resolution(resolution: str, viewer: Any) -> list[float]:
    """Return the nm per unit (x, y, z): the given numbers, or those of a datastack's viewer."""
    if resolution == "viewer" and viewer is None:
        raise OptionError(
            "--resolution viewer is that of a datastack's viewer; give --datastack, or nm per unit: x,y,z"
        )
    return list(viewer) if resolution == "viewer" else parse_numbers(resolution, "--resolution", (3,))


def parse_numbers(text: str, option: str, count: tuple[int, ...]) -> list[float]:
    """Return the numbers of a comma-separated list; raise `OptionError` if their count is not allowed."""
    try:
        values = [float(part) if "." in part or "e" in part.lower() else int(part) for part in text.split(",")]
    except ValueError:
        values = []
    if len(values) not in count:
        shape = " or ".join(",".join("xyz"[:n]) for n in count)
        raise OptionError(f"{option} {text} is not {' or '.join(map(str, count))} numbers {shape}, separated by commas")
    return values


def check_axis(axis: str) -> str:
    """Return the name of an axis, or raise `OptionError`."""
    if axis not in ("z", "y", "x"):
        raise OptionError(f"--axis {axis} is none of z, y and x: the axis across the slices")
    return axis


def slicing_axis(pattern: str) -> str:
    """Return the axis that a file name pattern slices along; z if the target is not a pattern."""
    named = re.findall(r"{([xyz])(?:_nm)?[:}]", pattern)
    return str(named[0]) if named else "z"


def check_one_slice(layers: dict[str, xr.DataArray], axis: str) -> None:
    """Raise `OptionError` if a box has several slices."""
    count = next(iter(layers.values())).sizes[axis]
    if count > 1:
        raise OptionError(
            f"the box is {count} slices deep along {axis}, but a figure is one slice; give --center and --size w,h, or "
            "use imageryxr export for one picture per slice"
        )
