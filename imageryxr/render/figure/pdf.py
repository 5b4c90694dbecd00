"""Write a picture as a PDF of one page, without loss."""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from PIL.Image import Image


def encode_pdf(picture: Image, dpi: float, nm_per_pixel: float | None) -> bytes:
    """Return a PDF whose page has the printed size of a picture and contains its pixels.

    Pillow stores pictures in a PDF as JPEG, which changes their colours.
    """
    if picture.mode not in ("L", "RGB", "RGBA", "I;16"):
        picture = picture.convert("L" if picture.mode == "1" else "RGBA")
    width, height = (f"{72 * side / dpi:.6g}" for side in picture.size)
    page = f"q {width} 0 0 {height} 0 0 cm /Picture Do Q".encode()
    mask = picture.getchannel("A") if picture.mode == "RGBA" else None
    opaque = picture.convert("RGB") if mask is not None else picture
    info = "" if nm_per_pixel is None else f"/nm_per_pixel ({nm_per_pixel:g})"
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
        f"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 {width} {height}] /Contents 4 0 R "
        "/Resources << /XObject << /Picture 5 0 R >> >> >>".encode(),
        _stream(f"<< /Length {len(page)} >>", page),
        _image(opaque, "" if mask is None else "/SMask 7 0 R"),
        f"<< /Producer (imageryxr) {info} >>".encode(),
    ]
    return _join(objects if mask is None else [*objects, _image(mask)])


def _stream(dictionary: str, content: bytes) -> bytes:
    return dictionary.encode() + b"\nstream\n" + content + b"\nendstream"


def _image(picture: Image, extra: str = "") -> bytes:
    bits = 16 if picture.mode == "I;16" else 8
    pixels = np.asarray(picture)
    content = zlib.compress((pixels.astype(">u2") if bits == 16 else pixels).tobytes())
    space = "DeviceRGB" if picture.mode == "RGB" else "DeviceGray"
    return _stream(
        f"<< /Type /XObject /Subtype /Image /Width {picture.width} /Height {picture.height} /ColorSpace /{space} "
        f"/BitsPerComponent {bits} /Filter /FlateDecode /Length {len(content)} {extra} >>",
        content,
    )


def _join(objects: list[bytes]) -> bytes:
    """Return a file of numbered objects, of which the first is the catalog and the sixth the information."""
    out, places = b"%PDF-1.5\n%\xe2\xe3\xcf\xd3\n", []
    for number, content in enumerate(objects, 1):
        places.append(len(out))
        out += f"{number} 0 obj\n".encode() + content + b"\nendobj\n"
    rows = "".join(f"{place:010d} 00000 n \n" for place in places)
    size, start = len(objects) + 1, len(out)
    table = f"xref\n0 {size}\n0000000000 65535 f \n{rows}trailer\n<< /Size {size} /Root 1 0 R /Info 6 0 R >>\n"
    return out + table.encode() + f"startxref\n{start}\n%%EOF\n".encode()
