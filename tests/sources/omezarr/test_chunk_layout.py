"""Decoded chunks of Zarr arrays, against zarr-python."""

from __future__ import annotations

import numcodecs
import numpy as np
import pytest

from imageryxr.sources.omezarr.chunk_layout import chunk_layout, decode_chunk, decode_with_zarr
from tests.support.zarr_arrays import ARRAYS, metadata_of, write


@pytest.mark.parametrize("form", ARRAYS)
def test_frequent_codecs_are_decoded_as_zarr_python_decodes_them(tmp_path, form):
    array = write(tmp_path, **ARRAYS[form])
    if "shards" in ARRAYS[form]:
        return
    layout = chunk_layout(metadata_of(tmp_path))
    assert (layout.plain is None) == (form in ("v2 filter", "v3 checksum", "v3 transposed"))
    body = (tmp_path / array.metadata.encode_chunk_key((0, 0, 0))).read_bytes()
    found = decode_chunk(layout.array, body, layout.plain)
    np.testing.assert_array_equal(found, array[:4, :8, :16])
    np.testing.assert_array_equal(found, decode_with_zarr(layout.array, body))


@pytest.mark.parametrize("form", ["v2", "v3", "v3 raw"])
def test_a_chunk_that_decompresses_to_another_size_is_an_error(tmp_path, form):
    write(tmp_path, **ARRAYS[form])
    layout = chunk_layout(metadata_of(tmp_path))
    assert layout.plain is not None
    body = bytes(layout.chunk_bytes + 2)
    if layout.plain.compressor is not None:
        body = numcodecs.get_codec({"id": "zstd"}).encode(body)
    with pytest.raises(ValueError, match=r"size|shape|reshape"):
        decode_chunk(layout.array, body, layout.plain)
