"""The addresses of the tissue that the documentation shows.

A crop of the FIB-25 sample of the *Drosophila* medulla (10 nm voxels) and its proofread segmentation. Credit: FlyEM
project, HHMI Janelia Research Campus; CC BY 3.0. ``_data/README.md`` describes the files.
"""

from __future__ import annotations

from pathlib import Path

_DATA = Path(__file__).parent / "_data"

IMAGE = f"precomputed://{_DATA / 'image'}"
SEGMENTATION = f"zarr://{_DATA / 'segmentation.ome.zarr'}"
