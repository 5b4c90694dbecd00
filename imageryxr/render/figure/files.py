"""Pictures on disk, with the size that they have in print and in the tissue."""

from __future__ import annotations

import json
import os
import uuid
import warnings
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from imageryxr.errors import ImageryWarning, OptionError, TargetError, TargetExistsError
from imageryxr.render.figure.geometry import geometry_of
from imageryxr.render.figure.print_size import LEAST_POINTS, PRINT_DPI, check_length, points_of
from imageryxr.render.figure.scale_bars import pixel_size
from imageryxr.render.figure.slice_image import as_picture

if TYPE_CHECKING:
    from PIL.Image import Image


def save_figure(
    picture: Image | xr.DataArray,
    path: str | os.PathLike[str],
    *,
    dpi: float | None = None,
    width_mm: float | None = None,
    nm_per_pixel: float | None = None,
    overwrite: bool = False,
) -> Path:
    """Write a picture as PNG, TIFF or JPEG that says how large it is printed, and how large its pixels are.

    Parameters
    ----------
    picture : PIL.Image.Image or DataArray
        As `to_pil`, `montage`, `scale_bar` and their like return it, or one slice as `overlay` does, which `to_pil`
        makes a picture of.
    path : str or path
        ``….png``, ``….tif``, ``….tiff`` or, of opaque pictures and with losses, ``….jpg``.
    dpi : float, optional
        Pixels per inch in print, by default 300.
    width_mm : float, optional
        How wide the picture is printed: 85 or 180 mm, a column or a page of most journals. In place of `dpi` the
        pixels stay as they are. With `dpi` the picture is resampled so that both hold: pixels are repeated where the
        result is a whole number of times larger, else by Lanczos' filter.
    nm_per_pixel : float, optional
        Width of a pixel in nm, kept in the file: as the text entry ``nm_per_pixel`` of a PNG, and as JSON in the
        description of a TIFF, whose resolution is that of print (`export` writes TIFFs that ImageJ takes as
        calibrated). Default: what the coordinates of an array say, or what the picture holds, if they do. Of a
        picture that is resampled the file has the width of its new pixels.
    overwrite : bool, default False
        Whether to replace a file that is there.

    Returns
    -------
    Path
        Where it was written.

    Raises
    ------
    OptionError
        If an option is outside its range.
    TargetExistsError, TargetError
        If the file is there, or cannot be written.

    Warns
    -----
    ImageryWarning
        If the picture has too few pixels for its width: less than 150 to the inch. If `width_mm` or `dpi` is given and
        text on the picture will be below 5 pt in print.

    Examples
    --------
    >>> import tempfile
    >>> from PIL import Image
    >>> path = save_figure(Image.new("L", (1004, 500)), tempfile.mkdtemp() + "/a.png", width_mm=85, nm_per_pixel=4)
    >>> with Image.open(path) as back:
    ...     round(back.info["dpi"][0])
    300
    """
    target = check_suffix(path)
    step = None if nm_per_pixel is None else check_length("nm_per_pixel", nm_per_pixel)
    if step is None and isinstance(picture, xr.DataArray):
        with suppress(OptionError):  # an array that does not say it is a picture all the same
            step = pixel_size(picture, None)
    picture = as_picture(picture)
    held = geometry_of(picture)
    if step is None and held is not None and held.nm is not None:
        step = held.nm[0]
    dpi = None if dpi is None else check_length("dpi", dpi, "pixels per inch")
    inches = None if width_mm is None else check_length("width_mm", width_mm, "mm") / 25.4
    native = PRINT_DPI if dpi is None else dpi
    if inches is not None:
        native = picture.width / inches
    if held is not None and held.text and (width_mm, dpi) != (None, None):
        _check_text(held.text, native, picture.width / native * 25.4)
    if dpi is not None and inches is not None:
        before = picture.width
        picture = _resampled(picture, max(1, round(inches * dpi)))
        step = None if step is None else step * before / picture.width
    else:
        dpi = native
    if dpi < 150:
        warnings.warn(
            f"{target.name} has {picture.width} pixels, {dpi:.0f} to the inch at that width: coarse in print, and text "
            f"on it is large; before text is set make to_pil(rgba, scale={int(np.ceil(PRINT_DPI / dpi))})",
            ImageryWarning,
            stacklevel=2,
        )
    if target.exists() and not overwrite:
        raise TargetExistsError(f"{target} exists; give overwrite=True to replace it, or another name")
    # What is opaque needs no alpha, which JPEG cannot hold and journals send back.
    if picture.mode == "RGBA" and picture.getchannel("A").getextrema() == (255, 255):
        picture = picture.convert("RGB")
    # Written beside its place and moved there, so that what is there is whole at all times.
    beside = target.with_name(f".{target.stem}-{uuid.uuid4().hex[:8]}{target.suffix}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        picture.save(beside, dpi=(dpi, dpi), **_options(target.suffix.lower(), step))
        os.replace(beside, target)
    except OSError as error:
        # the error's own file is the temporary one, which nobody typed
        raise TargetError(
            f"{target} cannot be written: no file can be made in the folder {target.parent} "
            f"({error.strerror or error}); choose another folder, or see to its rights and free space"
        ) from error
    finally:
        beside.unlink(missing_ok=True)
    return target


def _check_text(pixels: int, dpi: float, width_mm: float) -> None:
    """Warn if text of a height in pixels is too small in print."""
    points = points_of(pixels, dpi)
    if points < LEAST_POINTS - 0.05:
        warnings.warn(
            f"text on the picture is {points:.1f} pt high at the printed width of {width_mm:.0f} mm, and less than "
            f"{LEAST_POINTS:g} pt is hard to read; draw it with label_pt=7, width_mm={width_mm:.0f}",
            ImageryWarning,
            stacklevel=3,
        )


def _resampled(picture: Image, width: int) -> Image:
    """Return a picture of another width: pixels repeated where that fits, else by Lanczos' filter."""
    from PIL import Image as PilImage

    if width == picture.width:
        return picture
    height = max(1, round(picture.height * width / picture.width))
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
    """Return the path of a picture to write, or raise `OptionError` if no such picture can be written."""
    target = Path(path)
    if target.suffix.lower() not in (".png", ".tif", ".tiff", ".jpg", ".jpeg"):
        raise OptionError(
            f"path={str(target)!r} is of no picture format that is written here; end it in .png, .tif or .jpg (SVG and "
            "PDF come from array.imagery.plot())"
        )
    return target


def _options(kind: str, step: float | None) -> dict[str, Any]:
    from PIL.PngImagePlugin import PngInfo

    if kind == ".png":
        texts = PngInfo()
        if step is not None:
            texts.add_text("nm_per_pixel", f"{step:g}")
        return {"pnginfo": texts, "optimize": True}
    if kind in (".jpg", ".jpeg"):
        return {"quality": 95, "subsampling": 0}
    about = {} if step is None else {"nm_per_pixel": step}
    return {"compression": "tiff_deflate", "description": json.dumps(about)}
