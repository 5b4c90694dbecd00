"""Draw slices into Matplotlib axes, in physical coordinates."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from imageryxr.core.array_labels import grid_of
from imageryxr.core.bbox import DIMS
from imageryxr.core.lazy_import import import_package
from imageryxr.core.validate import check_choice, check_flag
from imageryxr.errors import OptionError, format_value
from imageryxr.graph.labelled import check_array
from imageryxr.render.figure import array_to_pil
from imageryxr.render.figure.picture import squeeze_slice
from imageryxr.render.figure.scale_bars import format_length, largest_round_length
from imageryxr.render.overlay_view import draw_array, overlay_view

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.image import AxesImage


def plot(
    obj: xr.DataArray | xr.Dataset,
    /,
    ax: Axes | None = None,
    *,
    unit: str = "µm",
    scale_bar: bool = False,
    contrast_limits: tuple[float, float] | None = None,
    **options: Any,
) -> AxesImage:
    """Draw one slice into Matplotlib axes, in physical coordinates; computes it.

    Synapses, skeletons or arrows that are drawn into the same axes use the same coordinates. In a figure saved as SVG
    or PDF, lines, text and the scale bar remain vector graphics (text in SVG only if Matplotlib's ``svg.fonttype`` is
    "none").

    Parameters
    ----------
    obj : DataArray or Dataset
        One slice: RGBA, grey values, ids or a mask. The layers of a Dataset are drawn over each other.
    ax : matplotlib.axes.Axes, optional
        The axes to draw into. Default: the current axes.
    unit : {"µm", "nm"}, default "µm"
        Unit of the coordinates.
    scale_bar : bool, default False
        Whether to draw a scale bar instead of ticks.
    contrast_limits : (low, high), optional
        As in `to_rgba`.
    **options
        Options of ``ax.imshow``, such as ``interpolation="none"``.

    Returns
    -------
    matplotlib.image.AxesImage
        The y axis points down, as in the viewer.

    Raises
    ------
    OptionError, LayerError
        If the array is not one slice, or an argument is invalid.
    GridError
        If the array has no coordinates.

    Examples
    --------
    >>> import matplotlib
    >>> matplotlib.use("agg")
    >>> import imageryxr as ix
    >>> em = ix.open_image(ix.sample("sample").image, mip=2)
    >>> drawn = em.isel(z=[3]).imagery.plot()
    >>> [round(float(v), 3) for v in drawn.get_extent()]
    [32.768, 40.96, 24.576, 16.384]
    """
    import_package("matplotlib")
    import matplotlib.pyplot as plt

    factors = {"µm": 1e-3, "um": 1e-3, "nm": 1.0}
    factor = factors[check_choice("unit", unit, factors, expected="'µm' or 'nm'")]
    check_flag("scale_bar", scale_bar)
    picture = overlay_view(obj) if isinstance(obj, xr.Dataset) else _to_picture(obj, contrast_limits)
    flat = squeeze_slice(picture)
    rows, columns = (str(d) for d in flat.dims if d != "rgba")
    grid = grid_of(picture)
    axes = dict(zip(DIMS, grid.axes, strict=True))
    (top, bottom), (left, right) = ((float(e) * factor for e in axes[d].edges()) for d in (rows, columns))
    ax = plt.gca() if ax is None else ax
    if not hasattr(ax, "imshow"):
        raise OptionError(f"ax={format_value(ax)} must be Matplotlib axes, such as plt.subplots()[1]")
    values = np.asarray(flat.values)
    pixels = values if values.ndim == 3 else np.asarray(array_to_pil(values))
    defaults: dict[str, Any] = {"origin": "upper", "extent": (left, right, bottom, top), "interpolation": "none"}
    if pixels.ndim == 2:
        defaults |= {"cmap": "gray", "vmin": 0, "vmax": 255}
    try:
        drawn = ax.imshow(pixels, **{**defaults, **options})
    except (AttributeError, TypeError, ValueError) as error:
        raise OptionError(f"ax.imshow does not accept the options {format_value(options)}: {error}") from error
    ax.set_aspect("equal")
    if scale_bar:
        ax.set(xticks=[], yticks=[])
        _draw_scale_bar(ax, (left, right, bottom, top), factor)
    else:
        ax.set(
            xlabel=f"{columns} ({'nm' if factor == 1 else 'µm'})", ylabel=f"{rows} ({'nm' if factor == 1 else 'µm'})"
        )
    return drawn


def _to_picture(array: xr.DataArray, limits: tuple[float, float] | None) -> xr.DataArray:
    check_array(array)
    squeeze_slice(array if "rgba" in array.dims else array.astype(bool))  # checks the shape
    return draw_array(array, limits)


def _draw_scale_bar(ax: Axes, extent: tuple[float, float, float, float], factor: float) -> None:
    import_package("matplotlib")
    from matplotlib.patches import Rectangle
    from matplotlib.patheffects import withStroke

    left, right, bottom, top = extent
    width, height = right - left, bottom - top
    length = largest_round_length(width / factor / 4)
    margin, thick = 0.04 * min(width, height), 0.015 * min(width, height)
    x = right - margin - length * factor
    ax.add_patch(Rectangle((x, bottom - margin - thick), length * factor, thick, color="white", ec="black", lw=0.5))
    text = ax.text(x + length * factor / 2, bottom - margin - 1.6 * thick, format_length(length), color="white")
    text.set(ha="center", va="bottom", path_effects=[withStroke(linewidth=1.5, foreground="black")])
