"""Pictures in PDF files."""

from __future__ import annotations

import zlib

import numpy as np
import pytest
from PIL import Image, PdfParser

import imageryxr as ix

RNG = np.random.default_rng(3)


def read_picture(pdf, reference):
    """Return the pixels of an image in a PDF, and its dictionary."""
    found = pdf.read_indirect(reference)
    about = found.dictionary
    assert about[b"Filter"].name == b"FlateDecode"
    raw = zlib.decompress(bytes(found.buf)[: about[b"Length"]])
    dtype = ">u2" if about[b"BitsPerComponent"] == 16 else np.uint8
    bands = {b"DeviceRGB": (3,), b"DeviceGray": ()}[about[b"ColorSpace"].name]
    return np.frombuffer(raw, dtype).reshape(about[b"Height"], about[b"Width"], *bands), about


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "I;16", "1", "P", "LA"])
def test_a_pdf_has_the_size_of_the_print_and_all_pixels(mode, tmp_path):
    values = RNG.integers(0, 256, (100, 251, 4), dtype=np.uint8)
    picture = Image.fromarray(values)
    picture = Image.fromarray(values[..., 0].astype(np.uint16) * 257) if mode == "I;16" else picture.convert(mode)
    path = ix.save_figure(picture, tmp_path / "a.pdf", width_mm=40, nm_per_pixel=4)
    with PdfParser.PdfParser(str(path)) as pdf:
        page = pdf.read_indirect(pdf.pages[0])
        _, _, width, height = page[b"MediaBox"]
        assert float(width) == pytest.approx(40 / 25.4 * 72, rel=1e-4)
        assert float(height) == pytest.approx(float(width) * 100 / 251, rel=1e-4)
        assert pdf.info[b"nm_per_pixel"] == b"4"
        pixels, about = read_picture(pdf, page[b"Resources"][b"XObject"][b"Picture"])
        expected = np.asarray(picture.convert("L" if mode == "1" else "RGBA") if mode in ("1", "P", "LA") else picture)
        if expected.ndim == 3 and expected.shape[2] == 4 and b"SMask" in about:
            mask, _ = read_picture(pdf, about[b"SMask"])
            pixels = np.concatenate([pixels, mask[..., np.newaxis]], axis=2)
        elif expected.ndim == 3:
            assert (expected[..., 3:] == 255).all()
            expected = expected[..., :3]
        np.testing.assert_array_equal(pixels, expected)


def test_a_figure_with_scale_bar_and_legend_is_resampled_to_width_and_dpi_as_in_a_png(tmp_path, sample):
    em = ix.to_rgba(ix.open_image(sample.image, mip=2)).isel(z=[2])
    figure = ix.legend(ix.scale_bar(em, scale=2), {1: "red"})
    for name in ("a.png", "a.pdf"):
        ix.save_figure(figure, tmp_path / name, width_mm=85, dpi=300)
    with PdfParser.PdfParser(str(tmp_path / "a.pdf")) as pdf, Image.open(tmp_path / "a.png") as png:
        page = pdf.read_indirect(pdf.pages[0])
        pixels, _ = read_picture(pdf, page[b"Resources"][b"XObject"][b"Picture"])
        np.testing.assert_array_equal(pixels, np.asarray(png))
        assert pixels.shape[1] == 1004
