"""Legends: lists of segment ids and their colours."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import xarray as xr

from imageryxr.core.colors import parse_color
from imageryxr.core.colors.ids import parse_id
from imageryxr.core.colors.palettes import TypePalette
from imageryxr.core.display import ANNOTATION_IDS, ANNOTATION_SCALE, colors_of, legend_colors
from imageryxr.errors import ColorError, OptionError, format_value, param, warn
from imageryxr.render.figure.picture import Text, as_picture, attach_geometry, geometry_of, smallest_text
from imageryxr.render.figure.print_size import check_label_size, check_legible, label_pixels, pixels_per_point
from imageryxr.render.figure.scale_bars import largest_round_length
from imageryxr.render.figure.text import LEGIBLE, contrasting_color, font, one_line

if TYPE_CHECKING:
    from PIL.Image import Image

# Without room for so many ids, a warning states how to choose some.
_MANY = 1000


def legend(
    picture: Image | xr.DataArray,
    colors: Mapping[Any, Any] | Iterable[int] | None = None,
    *,
    names: Mapping[Any, str] | None = None,
    title: str = "",
    background: Any = "white",
    label_size: int | None = None,
    label_pt: float | None = None,
    width_mm: float | None = None,
) -> Image:
    """Draw a list of ids and their colours to the right of a picture.

    Parameters
    ----------
    picture : PIL.Image.Image or DataArray
        Any picture, or one slice as `overlay` returns it.
    colors : mapping or iterable of int, optional
        Id → colour, as `palette` returns it, in the order of the list; for a palette by type, the types are listed. If
        there is no room for all, the last line states the number of the others. A list of ids without colours gets the
        colours with which ``picture`` was drawn, as `colors_of` returns them. Default: all ids or types whose colours
        ``picture`` records, including segments by which `annotate` coloured annotations, or round numbers of the colour
        map of its annotations.
        Without colours, ``picture`` must be an array that `overlay` or `annotate` returned, or a picture that `to_pil`,
        `montage`, `scale_bar` or `annotate` made of one.
    names : mapping, optional
        Id → text of its line. Default: the id.
    title : str, optional
        Text of a line above the list.
    background : colour, default "white"
        Background of the list; the text is black or white, whichever has more contrast.
    label_size : int, optional
        Height of the text in pixels. Default: 1/40 of the picture's height, at least 12.
    label_pt : float, optional
        Height of the text in points at the printed width, instead of ``label_size``.
    width_mm : float, optional
        Printed width of the picture with its legend, for ``label_pt``. Default: its width at 300 pixels per inch.

    Returns
    -------
    PIL.Image.Image
        Mode RGB: the picture with the list, which is as wide as its longest line.

    Raises
    ------
    ColorError
        If the colours of ``picture`` are needed and are not recorded.
    IdError
        If a key of ``colors`` is neither an id nor a text.
    OptionError
        If ``colors`` is empty, or there is no room for a single line.

    Warns
    -----
    ImageryWarning
        If there is no room for 1000 or more of the ids.

    Examples
    --------
    >>> import imageryxr as ix
    >>> from PIL import Image
    >>> ix.legend(Image.new("L", (300, 200)), {5: "red", 7: "blue"}, names={5: "axon", 7: "dendrite"}).mode
    'RGB'
    """
    from PIL import Image as PilImage

    _check_texts(colors, names, title)
    drawn = next((view for view in geometry_of(picture).views if view.attrs), picture)
    scale = getattr(drawn, "attrs", {}).get(ANNOTATION_SCALE)
    if colors is None and scale is not None:
        colors, title = _scale_colors(json.loads(scale), title)
    segments = getattr(drawn, "attrs", {}).get(ANNOTATION_IDS)
    if colors is None and segments is not None:
        colors = _listed_colors(drawn) | {int(i): color for i, color in json.loads(segments).items()}
    if isinstance(colors, TypePalette):
        colors = colors.types
    if not isinstance(colors, Mapping):
        colors = legend_colors(drawn) if colors is None else colors_of(drawn, colors)
        if not colors:
            raise OptionError("none of the ids in colors is drawn in the picture; give ids of its segments")
    picture = as_picture(picture)
    title = one_line(title)
    lines = [(one_line(str((names or {}).get(key, key))), parse_color(color)) for key, color in colors.items()]
    size = _text_height(picture, [title, *(text for text, _ in lines)], label_size, label_pt, width_mm)
    step = 2 * size
    room = (picture.height - size) // step - bool(title)
    if not lines:
        raise OptionError("colors is empty; give a dict id → colour")
    if room < 1:
        raise OptionError(
            f"the picture is {picture.height} pixels high, too low for a legend line of {step} pixels; enlarge it"
        )
    shown = lines if len(lines) <= room else lines[: room - 1]
    rest = len(lines) - len(shown)
    if rest >= _MANY:
        warn(
            f"the legend has room for {len(shown)} of {len(lines):,} ids; give the ids that matter, such as the "
            "largest: imageryxr.measure(segmentation).sortby('voxels', ascending=False).segment[:10]"
        )
    ground = parse_color(background)
    ink = contrasting_color(PilImage.new("RGBA", (1, 1), ground), None)[:3]
    texts = [title, *(text for text, _ in shown), f"and {rest:,} more" if rest else ""]
    width = _list_width(texts, size)
    out = PilImage.new("RGB", (picture.width + width, picture.height), ground[:3])
    out.paste(picture.convert("RGB"), (0, 0))
    _draw_list(out, picture.width, shown, title, f"and {rest:,} more" if rest else "", size, ink)
    geometry = geometry_of(picture)
    beside = (picture.width, 0, out.width, out.height)
    written = smallest_text(Text(size, "legend"), geometry.text)
    return attach_geometry(out, geometry.nm, [*geometry.taken, beside], written, geometry.views)


def _check_texts(colors: Any, names: Any, title: Any) -> None:
    if isinstance(colors, str) or not (colors is None or isinstance(colors, Iterable)):
        raise OptionError(
            param("colors", str(colors)[:60]),
            " is neither a dict nor a list of ids; give a dict id → colour, such as ",
            "imageryxr.palette(imageryxr.unique_ids(segmentation), 'husl'), or the ids ",
            "alone",
        )
    for key in colors if isinstance(colors, Mapping) else ():
        if not isinstance(key, str):  # a legend may list texts
            parse_id(key, "colors")
    if not (names is None or isinstance(names, Mapping)):
        hint = "; write names.to_dict()" if hasattr(names, "to_dict") else ""
        raise OptionError(f"names={format_value(names)} must be a dict id → text{hint}")
    if not isinstance(title, str):
        raise OptionError(f"title={format_value(title)} must be a text, '' for none")


def _listed_colors(picture: Any) -> dict[Any, Any]:
    """Return the colours that a picture lists, if it lists any."""
    try:
        return legend_colors(picture)
    except (ColorError, OptionError):
        return {}


def _scale_colors(scale: Mapping[str, Any], title: str) -> tuple[dict[str, str], str]:
    """Return round numbers of the colour map of annotations with their colours, and the title of the legend."""
    low, high, steps = scale["low"], scale["high"], scale["colors"]
    shown = {}
    for number in _round_numbers(low, high, scale.get("is_whole", False)):
        share = (number / 2 - low / 2) / (high / 2 - low / 2) if high != low else 1.0
        shown[f"{number:,.15g}"] = steps[round(min(max(share, 0), 1) * (len(steps) - 1))]
    return shown, title or scale["title"]


def _round_numbers(low: float, high: float, is_whole: bool) -> list[float]:
    """Return three to eight round numbers between two limits, from `high` to `low`; integers if `is_whole`."""
    bottom, top = min(low, high), max(low, high)
    if not 0 < top - bottom < math.inf:
        return [high, low]
    step = largest_round_length((top - bottom) / 3)
    step = max(step, 1.0) if is_whole else step
    # The computed quotient of 0.3 and 0.1 is slightly below 3.
    counts = range(math.ceil(bottom / step - 1e-9), math.floor(top / step + 1e-9) + 1)
    return [count * step for count in (counts if low > high else reversed(counts))]


def _draw_list(
    out: Image, left: int, shown: list[tuple[str, Any]], title: str, last: str, size: int, ink: tuple[int, ...]
) -> None:
    """Draw the lines of a legend to the right of a picture."""
    from PIL import ImageDraw

    draw, face, step = ImageDraw.Draw(out), font(size), 2 * size
    left, top = left + size, size
    if title:
        draw.text((left, top + size / 2), title, fill=ink, font=face, anchor="lm")
        top += step
    for text, color in shown:
        draw.rectangle((left, top, left + size - 1, top + size - 1), fill=color[:3])
        draw.text((left + 1.7 * size, top + size / 2), text, fill=ink, font=face, anchor="lm")
        top += step
    if last:
        draw.text((left, top + size / 2), last, fill=ink, font=face, anchor="lm")


def _list_width(texts: Iterable[str], size: int) -> int:
    face = font(size)
    longest: float = max(face.getlength(text) for text in texts)
    return round(longest) + 4 * size


def _text_height(picture: Image, texts: list[str], label_size: Any, label_pt: Any, width_mm: Any) -> int:
    """Return the height of the text in pixels.

    A height in points depends on the width of the picture in pixels, which includes the list of texts.
    """
    scale = pixels_per_point(label_size, label_pt, width_mm, picture.width)
    if scale is None:
        return max(12, picture.height // 40) if label_size is None else check_label_size(label_size, LEGIBLE)
    label_pt, width_mm = float(label_pt), None if width_mm is None else float(width_mm)
    if width_mm is None:
        return label_pixels(None, label_pt, None, picture.width) or 1
    share = scale * label_pt / picture.width
    size = next((n for n in range(1, 4 * picture.height) if n >= share * (picture.width + _list_width(texts, n))), 0)
    if not size:
        raise OptionError(
            param("label_pt", text=f"{label_pt:g}"),
            " is too large for a legend on ",
            param("width_mm", text=f"{width_mm:g}"),
            ": the list would be as wide as the whole print; give a smaller label_pt, a larger width_mm or shorter ",
            "names",
        )
    return check_legible(label_pt, size)
