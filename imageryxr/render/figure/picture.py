"""Slices of arrays as Pillow pictures, and the metadata that a picture keeps of them.

The metadata are the size of the pixels, the slices that the picture shows, areas that are already used, and the height
of its text.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
import xarray as xr

from imageryxr.core.array_labels import grid_of
from imageryxr.core.bbox import DIMS
from imageryxr.core.display import ANNOTATION_IDS, ANNOTATION_SCALE, DRAWN_COLORS
from imageryxr.core.grid import Axis, Grid
from imageryxr.core.validate import check_whole
from imageryxr.errors import ImageryError, LayerError, Message, OptionError, Wording, param, warn
from imageryxr.graph.cutout_arrays import grid_in_volume

if TYPE_CHECKING:
    from PIL.Image import Image

Rect: TypeAlias = tuple[int, int, int, int]
"""Left, top, right and bottom, in pixels; right and bottom exclusive."""

NM = "nm_per_pixel"
_KEY = "imageryxr"
KEPT_ATTRS = ("plane_axes", DRAWN_COLORS, ANNOTATION_SCALE, ANNOTATION_IDS)
"""Attrs of an array that a picture of it keeps: the directions of a plane, and the colours that were drawn."""
# Samples per side of a picture; comparing these distinguishes a copy from a crop or an enlargement.
_SAMPLES = 32


def to_pil(rgba: xr.DataArray, *, scale: int = 1) -> Image:
    """Convert one slice to a Pillow image; computes it.

    Parameters
    ----------
    rgba : DataArray
        uint8 with the dims (z, y, x, rgba), as `overlay` and `to_rgba` return it, or uint8 or bool without ``rgba``.
        One of z, y and x is absent or has size 1. If several have size 1, the first of them is dropped.
    scale : int, default 1
        Pixels per voxel and side. Enlarge small pictures before adding text, so that it is legible in print.

    Returns
    -------
    PIL.Image.Image
        Mode RGBA with straight alpha; mode L for grey values, and for masks with 0 and 255. Rows and columns are (y, x)
        of a z slice, (z, x) of a y slice, (z, y) of an x slice. Each voxel becomes a square, even if it is not a cube.
        ``info["nm_per_pixel"]`` is the width of a pixel in nm if the array has coordinates.

    Raises
    ------
    OptionError
        If there is more than one slice, or none.
    LayerError
        If the array contains segment ids or grey values other than uint8, or has other dims.

    Warns
    -----
    ImageryWarning
        If the voxels of the slice are not squares, so that the picture is out of proportion.

    Examples
    --------
    >>> import numpy as np, xarray as xr, imageryxr as ix
    >>> volume = xr.DataArray(np.zeros((5, 40, 60), np.uint8), dims=("z", "y", "x"))
    >>> ix.to_pil(volume.isel(z=0)).size
    (60, 40)
    >>> ix.to_pil(volume.isel(y=[7])).size
    (60, 5)
    """
    scale = check_whole("scale", scale, 1, 100, unit="pixels per voxel")
    flat = squeeze_slice(rgba)
    plane = np.asarray(flat.values)
    picture = array_to_pil(plane if scale == 1 else plane.repeat(scale, axis=0).repeat(scale, axis=1))
    view = _slice_view(rgba, flat, scale)
    if view is None:
        return attach_geometry(picture, None)
    rows, columns = (axis for number, axis in enumerate(view.grid.axes) if number != view.axis)
    if rows.resolution != columns.resolution:
        _warn_of_proportions(grid_of(rgba).resolution, DIMS[view.axis])
    return attach_geometry(picture, (columns.resolution, rows.resolution), views=(view,))


def _warn_of_proportions(resolution: tuple[float, ...], across: str) -> None:
    sizes = dict(zip("xyz", map(float, resolution), strict=True))
    rows, columns = (dim for dim in DIMS if dim != across)
    side = min(sizes[rows], sizes[columns])
    to = ", ".join(f"{sizes[dim] if dim == across else side:g}" for dim in "xyz")
    warn(
        Message(
            f"the pixels are {sizes[columns]:g} × {sizes[rows]:g} nm but are drawn as squares: the picture is out of ",
            f"proportion, and lengths are correct only along {columns}; ",
            Wording(
                f"resample the layers before they are drawn, with align(image, segmentation, to=({to})) or "
                f"regrid(array, ({to}))",
                "leave --no-square out to resample them",
            ),
        )
    )


def _slice_view(rgba: xr.DataArray, flat: xr.DataArray, scale: int) -> View | None:
    """Return the slice of the volume that a picture shows; None if its place is unknown."""
    try:
        grid = grid_in_volume(rgba)
    except ImageryError:
        return None
    if grid is None:
        return None
    rows, columns = [DIMS.index(str(dim)) for dim in flat.dims if dim != "rgba"][-2:]
    across = 3 - rows - columns
    axes = [
        replace(axis, size=1)
        if number == across
        else Axis(axis.size * scale, axis.resolution / scale, axis.offset * scale)
        for number, axis in enumerate(grid.axes)
    ]
    kept = {name: rgba.attrs[name] for name in KEPT_ATTRS if name in rgba.attrs}
    return View((0, 0, axes[columns].size, axes[rows].size), Grid.from_axes(axes), across, kept)


def as_picture(picture: Any) -> Image:
    """Return a picture unchanged and convert an array with `to_pil`; raise `OptionError` for anything else."""
    from PIL import Image as PilImage

    if isinstance(picture, xr.DataArray):
        return to_pil(picture)
    if not isinstance(picture, PilImage.Image):
        raise OptionError(
            f"a {type(picture).__name__} is not a picture; give one slice as imageryxr.overlay returns it, or a Pillow "
            "image, as imageryxr.to_pil and PIL.Image.fromarray return it"
        )
    return picture


def array_to_pil(plane: npt.NDArray[Any]) -> Image:
    """Convert pixels (rows, columns) of uint8, uint16 or bool, or uint8 (rows, columns, 4), to a Pillow image.

    Its mode is RGBA for four channels, I;16 for uint16, otherwise L. True becomes 255.
    """
    from PIL import Image

    if plane.dtype == np.bool_:
        plane = plane.astype(np.uint8) * 255
    gray = plane.ndim == 2 and plane.dtype in (np.uint8, np.uint16)
    if not gray and not (plane.ndim == 3 and plane.shape[2] == 4 and plane.dtype == np.uint8):
        raise LayerError(
            f"pixels of shape {plane.shape} and dtype {plane.dtype} are not a picture; convert them to uint8 RGBA"
        )
    return Image.fromarray(np.ascontiguousarray(plane))


def squeeze_slice(da: Any) -> xr.DataArray:
    """Return an array without its slice axis, after checking that it is one picture; computes nothing."""
    _check_values(da)
    dims = [dim for dim in DIMS if dim in da.dims]
    others = [str(dim) for dim in da.dims if dim not in (*DIMS, "rgba")]
    shape = ", ".join(f"{dim}: {size}" for dim, size in da.sizes.items())
    if others or len(dims) < 2:
        hint = f"take one with .isel({others[0]}=0)" if others else "keep the dropped ones, as with .isel(y=[0])"
        raise LayerError(f"a picture has two of the dims z, y and x, but this array has ({shape}); {hint}")
    if 0 in da.sizes.values():
        raise OptionError(f"the array is empty ({shape}); select a larger region")
    if len(dims) == 3:
        thin = next((dim for dim in dims if da.sizes[dim] == 1), None)
        if thin is None:
            raise OptionError(
                f"the array has {da.sizes['z']} slices ({shape}), but a picture is one slice; select one with "
                ".isel(z=0), arrange them with montage(array), or write each to a file with "
                "export(array, 'stack/z{z:04d}.png')"
            )
        da = da.isel({thin: 0})
        dims.remove(thin)
    warn_of_outline_axis(da, next(dim for dim in DIMS if dim not in dims), "the picture is a slice")
    plane: xr.DataArray = da.transpose(*dims, *(["rgba"] if "rgba" in da.dims else []))
    return plane


def warn_of_outline_axis(da: xr.DataArray, across: str, shown: str) -> None:
    """Warn if outlines were drawn in one plane, but slices across another axis are ``shown``: there the lines break."""
    drawn = da.attrs.get("outline_axis")
    if drawn in DIMS and drawn != across:
        text = f"the outlines were drawn in slices across {drawn}, but {shown} across {across}, "
        warn(Message(text, "where they look broken: draw them with ", param("axis", across)))


def _check_values(da: Any) -> None:
    if not isinstance(da, xr.DataArray):
        raise LayerError(
            f"a {type(da).__name__} is not a DataArray with dims such as (z, y, x, rgba); give "
            "xarray.DataArray(values, dims=('y', 'x')) for a NumPy array, or ds.image for a Dataset's variable"
        )
    if "rgba" in da.dims:
        if da.dtype != np.uint8 or da.sizes["rgba"] != 4:
            raise LayerError(
                f"RGBA must be uint8 with 4 channels, but this array is {da.dtype} with {da.sizes['rgba']}; "
                "create it with overlay(…) or to_rgba(…)"
            )
        return
    if da.dtype == np.bool_:
        return
    if da.attrs.get("layer_type") == "segmentation" or da.dtype in (np.uint64, np.int64):
        raise LayerError(
            f"the array contains segment ids ({da.dtype}), which have no colours yet; write ",
            "to_pil(overlay(image, segmentation)), or overlay(None, segmentation, alpha=1) without an image",
        )
    if da.dtype != np.uint8:
        raise LayerError(
            f"grey values of dtype {da.dtype} need contrast limits; write "
            "to_pil(to_rgba(image, contrast_limits=(black, white)))"
        )


# ---------------------------------------------------------------------------------------------------------
# metadata


@dataclass(frozen=True)
class View:
    """A rectangle of a picture that shows a slice of a volume."""

    rect: Rect
    grid: Grid
    """Grid of its pixels, which has one voxel along ``axis``."""
    axis: int
    """The axis across the slice: 0 for z, 1 for y, 2 for x."""
    attrs: Mapping[str, Any]
    """Those of `KEPT_ATTRS` that the array has."""
    covered: tuple[Rect, ...] = ()
    """Areas of the picture that show other things, such as scale bars."""

    has_inset: bool = False
    """Whether a part of the slice is shown twice, so that a mark would have two places."""

    def shift(self, left: int, top: int) -> View:
        """Return the view at another place in a picture."""
        covered = tuple(shift_rect(rect, left, top) for rect in self.covered)
        return replace(self, rect=shift_rect(self.rect, left, top), covered=covered)

    def cover(self, rect: Rect) -> View:
        """Return the view with one more covered area."""
        return replace(self, covered=(*self.covered, rect))


def shift_rect(rect: Rect, left: int, top: int) -> Rect:
    """Return a rectangle at another place in a picture."""
    return rect[0] + left, rect[1] + top, rect[2] + left, rect[3] + top


class Text(NamedTuple):
    """Text on a picture."""

    height: int
    """Height in pixels."""
    verb: str
    """The function that drew it."""


@dataclass(frozen=True)
class Geometry:
    """Metadata of one picture and of copies that show the same."""

    size: tuple[int, int] = (0, 0)
    nm: tuple[float, float] | None = None
    """Width and height of a pixel in nm; None if they are unknown."""
    taken: tuple[Rect, ...] = ()
    """Areas of insets, scale bars and legends."""
    text: Text | None = None
    """The smallest text."""
    views: tuple[View, ...] = ()
    """The slices that the picture shows."""
    samples: bytes = field(default=b"", repr=False)
    owner: Any = field(default=None, compare=False, repr=False)
    """A weak reference to the picture."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (Geometry, (self.size, self.nm, self.taken, self.text, self.views, self.samples))

    def is_valid_for(self, picture: Image) -> bool:
        """Return whether the metadata belong to a picture; Pillow keeps ``info`` when it crops and resizes."""
        if picture.size != self.size:
            return False
        if self.owner is not None and self.owner() is picture:
            return True
        return _is_same_picture(self.samples, _sample_pixels(picture))


def geometry_of(picture: Any) -> Geometry:
    """Return the metadata of a picture; empty ones for pictures of other origin and for cropped or resized ones."""
    geometry = _info(picture).get(_KEY)
    return geometry if isinstance(geometry, Geometry) and geometry.is_valid_for(picture) else Geometry()


def _info(picture: Any) -> dict[Any, Any]:
    """Return the ``info`` of a Pillow picture; tables have a method of this name."""
    info = getattr(picture, "info", None)
    return info if isinstance(info, dict) else {}


def stale_pixel_size(picture: Any) -> str | None:
    """Return the pixel size in a picture's ``info``, which may be outdated by cropping or resizing."""
    value = _info(picture).get(NM)
    return None if value is None else f"{float(value):g}" if isinstance(value, int | float) else str(value)


def attach_geometry(
    picture: Image,
    nm: tuple[float, float] | None,
    taken: Iterable[Rect] = (),
    text: Text | None = None,
    views: Iterable[View] = (),
) -> Image:
    """Store metadata in a picture and return the same picture."""
    samples, owner = _sample_pixels(picture), weakref.ref(picture)
    geometry = Geometry(picture.size, nm, tuple(taken), text, tuple(views), samples, owner)
    picture.info.pop(NM, None)
    if nm is not None:
        picture.info[NM] = nm[0]
    picture.info[_KEY] = geometry
    return picture


def smallest_text(*texts: Text | None) -> Text | None:
    """Return the smallest of several texts; None if there is no text."""
    return min((text for text in texts if text is not None), default=None)


def overlap_area(a: Rect, b: Rect) -> int:
    """Return the number of pixels that two rectangles share."""
    across, down = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    return max(0, across) * max(0, down)


def choose_corner(
    places: Mapping[str, Rect], taken: Iterable[Rect], position: str | None, warning: str, otherwise: str
) -> str:
    """Return the corner for an inset or a scale bar: the given one, or the first that covers least of taken areas.

    Warns if the corner covers a part of a taken area.

    Parameters
    ----------
    places : mapping
        Rectangle of the inset or scale bar in each corner.
    taken : iterable of rectangles
        Areas that it should not cover.
    position : str or None
        The given corner.
    warning : str
        Text with the fields ``corner`` and ``pixels``.
    otherwise : str or Message
        Advice if no corner is free.
    """
    areas = list(taken)
    covered = {name: sum(overlap_area(box, area) for area in areas) for name, box in places.items()}
    corner = min(covered, key=covered.__getitem__) if position is None else position
    if covered[corner]:
        free = [f"position={name!r}" for name, pixels in covered.items() if not pixels]
        advice = f"give {' or '.join(free)}" if free else otherwise
        warn(Message(warning.format(corner=corner, pixels=covered[corner]), "; ", advice))
    return corner


def _sample_pixels(picture: Image) -> bytes:
    from PIL import Image as PilImage

    small = picture.resize((_SAMPLES, _SAMPLES), PilImage.Resampling.NEAREST)
    return (small.convert("RGB") if small.mode in ("RGBA", "P") else small).convert("L").tobytes()


def _is_same_picture(one: bytes, other: bytes) -> bool:
    """Return whether samples agree outside of the background; False for pictures of a single grey value."""
    a, b = (np.frombuffer(samples, np.uint8).astype(int) for samples in (one, other))
    if len(a) != len(b):
        return False
    ground = int(np.bincount(a).argmax())
    seen = (abs(a - ground) > 2) | (abs(b - ground) > 2)
    return bool(seen.sum() >= 8 and (abs(a - b)[seen] <= 2).mean() >= 0.8)
