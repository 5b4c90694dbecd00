"""Save pictures with their printed size and the physical size of their pixels."""

from __future__ import annotations

import io
import json
import os
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from imageryxr.core.validate import check_flag, check_number, check_path
from imageryxr.core.write_file import write_file
from imageryxr.errors import Message, OptionError, TargetExistsError, Wording, param, warn
from imageryxr.render.figure.picture import Text, as_picture, geometry_of
from imageryxr.render.figure.print_size import LEAST_POINTS, PRINT_DPI, check_length
from imageryxr.render.figure.scale_bars import pixel_size

if TYPE_CHECKING:
    from PIL.Image import Image

_MOST_DPI, _MOST_PIXELS = 1e5, 2**16
_FORMATS = {".png": "PNG", ".tif": "TIFF", ".tiff": "TIFF", ".jpg": "JPEG", ".jpeg": "JPEG", ".pdf": "PDF"}


def save_figure(
    picture: Image | xr.DataArray,
    path: str | os.PathLike[str],
    *,
    dpi: float | None = None,
    width_mm: float | None = None,
    nm_per_pixel: float | None = None,
    overwrite: bool = False,
) -> Path:
    """Write a picture as PNG, TIFF, JPEG or PDF with its printed size and the physical size of its pixels.

    Parameters
    ----------
    picture : PIL.Image.Image or DataArray
        A picture as `to_pil`, `montage` or `scale_bar` return it, or one slice as `overlay` returns it.
    path : str or path
        ``….png``, ``….tif``, ``….tiff``, ``….jpg`` for opaque pictures (lossy), or ``….pdf``, a page of the size of the
        picture that contains its pixels without loss. Use `plot` for lines and text that remain lines and text.
    dpi : float, optional
        Pixels per inch in print, by default 300.
    width_mm : float, optional
        Printed width of the picture: 85 mm is a column and 180 mm a page of most journals. Without `dpi` the pixels
        are not changed. With `dpi` the picture is resampled to satisfy both: pixels are repeated if it becomes larger
        by a whole factor, otherwise Lanczos' filter is used.
    nm_per_pixel : float, optional
        Width of a pixel in nm, stored in the file: as the text entry ``nm_per_pixel`` of a PNG, as an entry of this
        name in the information of a PDF, or as JSON in the description of a TIFF. The resolution of the TIFF is that of
        print; use `export` for TIFFs that are calibrated in ImageJ. Default: from the coordinates of the array, or from
        the picture's metadata. After resampling the file has the width of the new pixels.
    overwrite : bool, default False
        Whether to replace an existing file.

    Returns
    -------
    Path
        Path of the written file.

    Raises
    ------
    OptionError
        If an option is outside its range, an array has several slices, or the format cannot store the picture, such as
        JPEG transparent pixels.
    LayerError
        If an array contains segment ids or grey values other than uint8, or has other dims.
    TargetExistsError, TargetError
        If the file exists, or cannot be written.

    Warns
    -----
    ImageryWarning
        If the picture has less than 150 pixels per inch in print. If `width_mm` or `dpi` is given and text on the
        picture will be smaller than 5 pt in print.

    Examples
    --------
    >>> import tempfile, imageryxr as ix
    >>> from PIL import Image
    >>> path = ix.save_figure(Image.new("L", (1004, 500)), tempfile.mkdtemp() + "/a.png", width_mm=85, nm_per_pixel=4)
    >>> with Image.open(path) as back:
    ...     round(back.info["dpi"][0])
    300
    """
    target = check_suffix(path)
    check_flag("overwrite", overwrite)
    step = None if nm_per_pixel is None else check_length("nm_per_pixel", nm_per_pixel)
    if step is None and isinstance(picture, xr.DataArray):
        with suppress(OptionError):  # an array without coordinates can also be saved
            step = pixel_size(picture, None)
    picture = as_picture(picture)
    geometry = geometry_of(picture)
    if step is None and geometry.nm is not None:
        step = geometry.nm[0]
    dpi = None if dpi is None else check_number("dpi", dpi, high=_MOST_DPI, above=0, unit="pixels per inch")
    inches = None if width_mm is None else check_length("width_mm", width_mm, "mm") / 25.4
    native = PRINT_DPI if dpi is None else dpi
    if inches is not None:
        native = picture.width / inches
        if native > _MOST_DPI or inches * (dpi or 0) > _MOST_PIXELS:
            raise OptionError(
                param("width_mm", width_mm), " is too small or too large for this picture; give mm in print"
            )
    if geometry.text and (width_mm, dpi) != (None, None):
        _warn_of_small_text(geometry.text, native, picture.width / native * 25.4)
    if dpi is not None and inches is not None:
        before = picture.width
        picture = _resample(picture, saved_size(picture, dpi, width_mm))
        step = None if step is None else step * before / picture.width
    else:
        dpi = native
    _warn_of_few_pixels(target.name, picture.width, dpi)
    if os.path.exists(target) and not overwrite:
        raise TargetExistsError(
            Message(f"{target} exists; give ", param("overwrite", True), " to replace it, or another name")
        )
    # Alpha is dropped from opaque pictures because JPEG does not support it and journals reject it.
    if picture.mode == "RGBA" and picture.getchannel("A").getextrema() == (255, 255):
        picture = picture.convert("RGB")
    write_file(target, _encode(picture, target, dpi, step))
    return target


def _encode(picture: Image, target: Path, dpi: float, step: float | None) -> bytes:
    """Return a picture in the format of a path; raise `OptionError` if the format cannot store it."""
    kind, content = target.suffix.lower(), io.BytesIO()
    if kind == ".pdf":
        from imageryxr.render.figure.pdf import encode_pdf

        return encode_pdf(picture, dpi, step)
    try:
        picture.save(content, _FORMATS[kind], dpi=(dpi, dpi), **_save_options(kind, step))
    except OSError as error:
        is_transparent = "A" in picture.getbands()
        reason = "a JPEG cannot store transparent pixels" if is_transparent else str(error)
        raise OptionError(param("path", str(target)), f" cannot be written: {reason}; end it in .png") from error
    return content.getvalue()


def _warn_of_few_pixels(name: str, width: int, dpi: float) -> None:
    if dpi < 150:
        enlarge = int(np.ceil(PRINT_DPI / dpi))
        warn(
            Message(
                f"{name} is {width} pixels wide, which is only {dpi:.0f} pixels per inch at that printed width; ",
                "enlarge it before adding text, with ",
                Wording(f"to_pil(rgba, scale={enlarge})", f"--scale {enlarge}"),
            )
        )


def _warn_of_small_text(text: Text, dpi: float, width_mm: float) -> None:
    """Warn if a text is too small in print."""
    points, verb = text.height * 72 / dpi, text.verb
    if points < LEAST_POINTS - 0.05:
        printed = Message(param("label_pt", 7), ", ", param("width_mm", text=f"{width_mm:.0f}"))
        warn(
            Message(
                Wording(f"the text that {verb} drew", "text on the picture"),
                f" is {points:.1f} pt high at the printed width of {width_mm:.0f} mm; less than {LEAST_POINTS:g} pt ",
                "is hard to read; draw it with ",
                printed,
            )
        )


def saved_size(picture: Image, dpi: float | None, width_mm: float | None) -> tuple[int, int]:
    """Return the width and height in pixels with which `save_figure` writes a picture."""
    if dpi is None or width_mm is None:
        return picture.size
    width = max(1, round(width_mm / 25.4 * dpi))
    return width, picture.height if width == picture.width else max(1, round(picture.height * width / picture.width))


def _resample(picture: Image, size: tuple[int, int]) -> Image:
    """Return a picture resampled to a size: by repeating pixels for whole factors, otherwise by Lanczos' filter."""
    from PIL import Image as PilImage

    width, height = size
    if width == picture.width:
        return picture
    if width % picture.width == 0:
        return picture.resize((width, height), PilImage.Resampling.NEAREST)
    if picture.mode.startswith("I;16"):
        floats = PilImage.fromarray(np.asarray(picture).astype(np.float32))
        values = np.asarray(floats.resize((width, height), PilImage.Resampling.LANCZOS))
        return PilImage.fromarray(np.clip(np.floor(values + 0.5), 0, 65535).astype(np.uint16))
    if picture.mode in ("P", "PA", "1"):
        picture = picture.convert("L" if picture.mode == "1" else "RGBA")
    return picture.resize((width, height), PilImage.Resampling.LANCZOS)


def check_suffix(path: str | os.PathLike[str]) -> Path:
    """Return the path of a picture, or raise `OptionError` if its format is not supported."""
    target = check_path("path", path)
    if target.suffix.lower() not in _FORMATS:
        raise OptionError(
            param("path", str(target)),
            " has no supported picture format; end it in .png, .tif, .jpg or .pdf (use ",
            "array.imagery.plot() for SVG)",
        )
    return target


def _save_options(kind: str, step: float | None) -> dict[str, Any]:
    from PIL import PngImagePlugin

    if kind == ".png":
        texts = PngImagePlugin.PngInfo()
        if step is not None:
            texts.add_text("nm_per_pixel", f"{step:g}")
        return {"pnginfo": texts, "optimize": True}
    if kind in (".jpg", ".jpeg"):
        return {"quality": 95, "subsampling": 0}
    about = {} if step is None else {"nm_per_pixel": step}
    return {"compression": "tiff_deflate", "description": json.dumps(about)}
