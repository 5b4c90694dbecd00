# %% [markdown]
# # From a Neuroglancer link to a panel
#
# You have the link that a colleague sent. This makes the panel of a figure from it, with the same segments, colours and
# contrast, and a link back. The sample volume stands in for the data, so that the notebook runs offline: with a real
# link the cell below is not needed.

# %%
import json
import tempfile
import urllib.parse
import warnings
from pathlib import Path

import numpy as np

import imageryxr as ix

folder = Path(tempfile.mkdtemp())
sample = ix.sample(folder / "sample")
em, seg = ix.open_image(sample.image), ix.open_segmentation(sample.segmentation)
spot = ix.crop(seg, ix.BBox.around((4600, 2560, 130), (512, 384), resolution=(8, 8, 40)))
found, voxels = np.unique(spot.values, return_counts=True)
cells = [int(i) for i in found[np.argsort(-voxels)] if i][:4]
state = {
    "dimensions": {"x": [8e-9, "m"], "y": [8e-9, "m"], "z": [4e-8, "m"]},
    "position": [4600.5, 2560.5, 130.5],
    "crossSectionScale": 1,
    "layers": [
        {"type": "image", "name": "em", "source": sample.image, "shaderControls": {"normalized": {"range": [50, 225]}}},
        {
            "type": "segmentation",
            "name": "cells",
            "source": sample.segmentation,
            "segments": [str(i) for i in cells],
            "segmentColors": {str(cells[0]): "#ffb300"},
            "selectedAlpha": 0.35,
            "notSelectedAlpha": 0.06,
            "colorSeed": 42,
        },
        {"type": "annotation", "name": "synapses", "source": "local://annotations", "annotations": []},
    ],
}
link = "https://neuroglancer-demo.appspot.com/#!" + urllib.parse.quote(json.dumps(state))

# %% [markdown]
# Opening reads metadata only. Layers without voxels, such as annotations, are listed and warned of. This link leads to
# files of this machine, which a link from elsewhere may not: hence `allow_local`.

# %%
with warnings.catch_warnings(record=True) as told:
    warnings.simplefilter("always")
    tree = ix.open_neuroglancer(link, allow_local=True)
print(*(str(w.message) for w in told), sep="\n")
tree.imagery

# %%
ds = tree.imagery.view(size=(512, 384))
ds.cells.attrs

# %% [markdown]
# `overlay` follows what the layers carry, and so looks like the viewer. Outlines make it print better.

# %%
picture = ds.imagery.overlay(outline=ix.Outline(1.5, side="in", merge=False))
panel = ix.scale_bar(picture, scale=3)
panel

# %% [markdown]
# The whole figure: the panel with a legend, the same place over four slices, and a magnified detail.

# %%
colors = ix.palette(cells, "neuroglancer") | {cells[0]: (255, 179, 0)}
named = ix.legend(panel, colors, names={i: f"cell {n}" for n, i in enumerate(cells, 1)}, title="Selected")
named

# %%
stack = tree.imagery.view(size=(256, 192, 4)).imagery.overlay()
tiles = [ix.to_pil(stack.isel(z=[i]), scale=2) for i in range(4)]
ix.montage(tiles, columns=2, labels=["a", "b", "c", "d"], label_size=28)

# %%
detail = ix.BBox.around((4640, 2610, 130), (64, 48), resolution=(8, 8, 40))
ix.scale_bar(ix.inset(picture, detail, zoom=3, position="top left", scale=3), nm_per_pixel=8 / 3)

# %% [markdown]
# A page is 180 mm wide: the file says how large it is in print, and how large a pixel is in the tissue.

# %%
written = ix.save_figure(named, folder / "panel.png", width_mm=180, nm_per_pixel=8 / 3)
written.name

# %% [markdown]
# And back: the link opens at the same place, with the same layers, segments and colours.

# %%
back = ix.neuroglancer_link(tree, allow_local=True)
again = ix.open_neuroglancer(back, allow_local=True, layers=["em", "cells"])
assert again["cells/segmentation"].attrs["selected_ids"] == cells
back[:80] + "…"

# %% [markdown]
# A cross section at another angle, at the same place.

# %%
cut = ix.plane(ix.align(em, seg), (4600.5, 2560.5, 130.5), (400, 300), normal=(0.3, 0.4, 1), resolution=(8, 8, 40))
ix.scale_bar(ix.overlay(cut.image, cut.segmentation, alpha=0.35), scale=2)
