"""
The same colours across a paper
===============================

``save_palette`` writes the colours of one figure. Other figures load them, so that a cell has the same colour in all of
them.
"""

import tempfile
from pathlib import Path

import tissue

import imageryxr as ix

ds = ix.align(ix.open_image(tissue.IMAGE), ix.open_segmentation(tissue.SEGMENTATION))
cells = [2150, 2491, 56811, 60683, 24720, 49774]
path = Path(tempfile.mkdtemp()) / "colors.json"
ix.save_palette(ix.palette(cells, "husl"), path)

# %%
# Load the colours in a later session:

colors = ix.load_palette(path)
line = ix.Outline(1, side="in", merge=False)
figures = [
    ix.overlay(part.image, part.segmentation, colors=colors, alpha=0.45, outline=line, contrast_limits=(70, 195))
    for part in (ds.isel(z=[5]), ds.isel(z=[65]))
]
ix.legend(ix.montage(figures, labels=["Figure 1", "Figure 2"], scale=2), colors, title="cell", label_size=16)
