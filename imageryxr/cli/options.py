"""Options that several commands share, and the layers, boxes and styles that these options define."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import xarray as xr

import imageryxr as ix
from imageryxr.cli.commands import option
from imageryxr.core.validate import check_axis
from imageryxr.errors import OptionError, format_value

_IMAGE = "--image SOURCE or --datastack NAME"
_SEGMENTATION = "--segmentation SOURCE or --datastack NAME"
_OUTLINE = "--outline WIDTH"

Opened = tuple[dict[str, xr.DataArray], xr.DataTree | None]


@dataclass(frozen=True)
class SourceOptions:
    """The image and the segmentation."""

    image: str | None = option("Source of the image.")
    segmentation: str | None = option("Source of the segmentation.")
    image_mip: int | None = option("Level of the image; default: the finest.", needs=_IMAGE)
    seg_mip: int | None = option("Level of the segmentation; default: the finest.", needs=_SEGMENTATION)
    channel: int | None = option("Channel of an image with several, from 0.")
    time: int | None = option("Time point of an image with several, from 0.")
    assume: str = option("Point of a voxel that an OME-Zarr translation refers to: 'center' or 'corner'.", "center")
    missing: str | None = option(
        "Missing chunks: 'raise', 'fill' or 'warn'. Default: fill value in Zarr, an error in other formats."
    )
    datastack: str | None = option("A CAVE datastack, instead of --image and --segmentation.")
    server_address: str | None = option(
        "Info service of --datastack; default: that of caveclient.", needs="--datastack NAME"
    )
    timestamp: str | None = option("Instant of a graphene segmentation, ISO 8601; default: now.", needs=_SEGMENTATION)
    agglomerate: bool = option("Read root ids or supervoxels of a graphene segmentation.", True, needs=_SEGMENTATION)

    def open(self) -> Opened:
        """Open the layers; return them with the tree of a datastack, or None for other sources."""
        if self.datastack is not None:
            return self._open_datastack(self.datastack)
        common: dict[str, Any] = {"missing": self.missing}
        # These apply to the image, or to the segmentation if there is no image.
        chosen: dict[str, Any] = {"channel": self.channel, "time": self.time, "assume": self.assume}
        opened = {}
        if self.image is not None:
            opened["image"] = ix.open_image(self.image, mip=self.image_mip, **common, **chosen)
        if self.segmentation is not None:
            common |= {
                "timestamp": self.timestamp,
                "agglomerate": self.agglomerate,
                **(chosen if self.image is None else {}),
            }
            opened["segmentation"] = ix.open_segmentation(self.segmentation, mip=self.seg_mip, **common)
        if not opened:
            raise OptionError("no source: give --image SOURCE, --segmentation SOURCE or both, or --datastack NAME")
        return opened, None

    def _open_datastack(self, name: str) -> Opened:
        if (self.image, self.segmentation) != (None, None):
            raise OptionError("--datastack defines the sources; omit --image and --segmentation")
        if (self.channel, self.time) != (None, None):
            raise OptionError("--channel and --time need --image; the layers of a datastack have one of each")
        options: dict[str, Any] = {
            "image_mip": self.image_mip,
            "segmentation_mip": self.seg_mip,
            "missing": self.missing,
            "server_address": self.server_address,
            "timestamp": self.timestamp,
            "agglomerate": self.agglomerate,
        }
        tree = ix.open_datastack(name, **options)
        return {layer: tree[layer][layer] for layer in ("image", "segmentation")}, tree  # type: ignore[misc]


@dataclass(frozen=True)
class PlaceOptions:
    """The box, the voxels of the result, and the axis of the slices."""

    bbox: str | None = option("Corners, upper one exclusive: x0,y0,z0:x1,y1,z1 in units of --resolution.")
    center: str | None = option("Middle of the box: x,y,z in units of --resolution.")
    size: str | None = option("Size of the box: w,h (one slice) or w,h,d in units of --resolution.")
    resolution: str = option("nm per unit of positions and sizes: x,y,z, or 'viewer' for that of a datastack.", "1,1,1")
    to: str | None = option(
        "Voxels of the result: 'finest' (default), 'coarsest', 'image', 'segmentation', or nm x,y,z.",
        python=("to", "like"),
    )

    def unit(self, tree: xr.DataTree | None) -> list[float]:
        """Return the nm per unit (x, y, z): the given numbers, or the resolution of a datastack's viewer."""
        if self.resolution != "viewer":
            return parse_numbers(self.resolution, "--resolution", (3,))
        viewer = None if tree is None else tree.attrs.get("viewer_resolution")
        if viewer is None:
            raise OptionError(
                "--resolution viewer is the unit of a datastack's viewer; give --datastack, or nm per unit: x,y,z"
            )
        return list(viewer)

    def box(self, unit: list[float], axis: str = "z") -> ix.BBox | None:
        """Return the box given by its corners or its centre; None if there is neither."""
        if self.bbox is not None:
            if self.center is not None or self.size is not None:
                raise OptionError("--bbox defines the box; omit --center and --size")
            corners = self.bbox.split(":")
            if len(corners) != 2:
                raise OptionError(f"--bbox {self.bbox} is not two corners; write x0,y0,z0:x1,y1,z1")
            lo, hi = (parse_numbers(c, "--bbox", (3,)) for c in corners)
            return ix.BBox(lo, hi, resolution=unit)
        if self.center is None:
            if self.size is not None:
                raise OptionError("--size needs --center x,y,z")
            return None
        if self.size is None:
            raise OptionError("--center needs --size w,h or w,h,d")
        sizes = parse_numbers(self.size, "--size", (2, 3))
        if len(sizes) == 2:
            sizes.insert("xyz".index(axis), 1)
        return ix.BBox.around(parse_numbers(self.center, "--center", (3,)), sizes, resolution=unit)


@dataclass(frozen=True)
class DrawingOptions:
    """The colours of segments, their outlines, and the contrast of the image."""

    ids: str | None = option("Draw only these segments: id,id,…")
    colors: str | None = option("Name of a palette, or a JSON object of ids and colours.")
    alpha: float | None = option("Opacity of the fill, 0 to 1; default: 0.2, or that of the layer.")
    rest_alpha: float | None = option("With --ids: opacity of the other segments; default: 0.")
    outline: float | None = option("Width of outlines; default: no outlines.", python=("outline", "width"))
    outline_side: str = option("Side of the edge: 'out' or 'in'.", "out", python="side", needs=_OUTLINE)
    merge: bool = option("Outline touching segments as one, or each of them.", True, needs=_OUTLINE)
    outline_alpha: float = option("Opacity of outlines, 0 to 1.", 1.0, python="outline alpha", needs=_OUTLINE)
    outline_unit: str = option("Unit of --outline: 'px' or 'nm'.", "px", python="unit", needs=_OUTLINE)
    outline_color: str | None = option(
        "One colour for all outlines; default: that of each segment.", python="color", needs=_OUTLINE
    )
    contrast: str | None = option("Grey values that become black and white: low,high.", python="contrast_limits")
    axis: str | None = option(
        "Axis that slices and outlines are perpendicular to: z, y or x. Default: that in the pattern of a stack, or z."
    )

    def __post_init__(self) -> None:
        if self.axis is not None:
            check_axis(self.axis)

    @property
    def id_list(self) -> list[str] | None:
        """The ids as strings of digits."""
        return split_names(self.ids)

    def overlay_options(self, axis: str) -> dict[str, Any]:
        """Return the options of `imageryxr.overlay`."""
        limits = None if self.contrast is None else parse_numbers(self.contrast, "--contrast", (2,))
        style: dict[str, Any] = {"side": self.outline_side, "merge": self.merge, "alpha": self.outline_alpha}
        style |= {"unit": self.outline_unit, "color": self.outline_color}
        return {
            "ids": self.id_list,
            "colors": _palette(self.colors),
            "alpha": self.alpha,
            "rest_alpha": self.rest_alpha,
            "outline": None if self.outline is None else ix.Outline(self.outline, **style),
            "contrast_limits": None if limits is None else (limits[0], limits[1]),
            "axis": axis,
        }


def cut_layers(
    opened: dict[str, xr.DataArray], box: ix.BBox | None, *, plane: str | None = None, to: str | None = None
) -> dict[str, xr.DataArray]:
    """Return the layers, cropped to a box and aligned on one grid."""
    grid = _parse_grid(to, len(opened))
    if len(opened) == 1 and isinstance(grid, tuple):
        opened = {name: ix.regrid(array, grid) for name, array in opened.items()}
    if plane is not None and box is None:
        # two layers are aligned first, so that the slice is the middle of the box that both cover
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
        names = ("ids", "colors", "alpha", "rest_alpha", "outline")
        given = [f"--{name.replace('_', '-')}" for name in names if options[name] is not None]
        if given:
            raise OptionError(
                f"{', '.join(given)} {'draws' if len(given) == 1 else 'draw'} segments: also give --segmentation SOURCE"
            )
        return ix.to_rgba(layers["image"], contrast_limits=options["contrast_limits"])
    return ix.overlay(layers.get("image"), layers["segmentation"], **options)


def _palette(colors: str | None) -> Any:
    if colors is None or not colors.lstrip().startswith("{"):
        return colors
    try:
        return json.loads(colors)
    except json.JSONDecodeError as error:
        raise OptionError(f'--colors {colors} is no JSON object ({error}); write \'{{"12": "red"}}\'') from None


def split_names(text: str | None) -> list[str] | None:
    """Return the names or ids of a comma-separated list; None without a list."""
    return None if text is None else [name.strip() for name in text.split(",")]


def parse_numbers(text: str, option: str, count: tuple[int, ...] | None) -> list[float]:
    """Return the numbers of a comma-separated list; raise `OptionError` if their count is not allowed.

    Any number of numbers is allowed if ``count`` is None.
    """
    try:
        values = [float(part) if "." in part or "e" in part.lower() else int(part) for part in text.split(",")]
    except ValueError:
        values = []
    if count is None and not values:
        raise OptionError(f"{option} {format_value(text)} is not a list of numbers, separated by commas")
    if count is not None and len(values) not in count:
        shape = " or ".join(",".join("xyz"[:n]) for n in count)
        raise OptionError(f"{option} {text} is not {' or '.join(map(str, count))} numbers {shape}, separated by commas")
    return values


def check_one_slice(layers: dict[str, xr.DataArray], axis: str) -> None:
    """Raise `OptionError` if a box has several slices."""
    count = next(iter(layers.values())).sizes[axis]
    if count > 1:
        raise OptionError(
            f"the box is {count} slices deep along {axis}, but a figure is one slice; give --center and --size w,h, or "
            "use imageryxr export for one picture per slice"
        )
