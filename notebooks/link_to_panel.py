# %% [markdown]
# # From a Neuroglancer link to a panel
#
# A colleague sends a link. This notebook makes the panel of a figure from it, with the same segments, colours and
# contrast, and a link back. The sample volume stands in for the data, so the notebook needs no network. With a real
# link, leave out the next cell.

# %%
import json
import tempfile
import urllib.parse
from pathlib import Path

import imageryxr as ix

folder = Path(tempfile.mkdtemp())
sample = ix.sample(folder / "sample")
em, seg = ix.open_image(sample.image), ix.open_segmentation(sample.segmentation)
spot = ix.crop(seg, ix.BBox.around((4600, 2560, 130), (512, 384), resolution=(8, 8, 40)))
found, voxels = ix.unique_ids(spot, counts=True)
cells = found[voxels.argsort()[::-1]][:4].tolist()
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
# Opening reads metadata only. The layer of annotations is empty, so the tree contains the other two. This link names
# files of this machine, which requires `allow_local=True`.

# %%
tree = ix.open_neuroglancer(link, allow_local=True)
tree.imagery

# %%
ds = tree.imagery.view(size=(512, 384))
ds.cells.attrs

# %% [markdown]
# `overlay` uses the segments, colours, opacities and contrast in the attrs of the layers, so the picture looks as in
# the viewer. Outlines improve it in print.

# %%
picture = ds.imagery.overlay(outline=ix.Outline(1.5, side="in", merge=False))
panel = ix.scale_bar(picture, scale=3)
panel

# %% [markdown]
# The parts of a figure: the panel with a legend, the same place in four slices, and a magnified detail. `colors_of`
# returns the colours that the picture was drawn with, here those of the link's colour seed.

# %%
colors = ix.colors_of(picture, cells)
assert colors == ix.palette(cells, ("neuroglancer", 42)) | {cells[0]: (255, 179, 0)}
named = ix.legend(panel, colors, names={i: f"cell {n}" for n, i in enumerate(cells, 1)}, title="Selected")
named

# %%
stack = tree.imagery.view(size=(256, 192, 4)).imagery.overlay()
ix.montage(stack, columns=2, scale=2, labels=["a", "b", "c", "d"], label_size=28)

# %%
detail = ix.BBox.around((4640, 2610, 130), (64, 48), resolution=(8, 8, 40))
ix.inset(picture, detail, zoom=3, position="top left", scale=3, scale_bar=True)

# %% [markdown]
# A page is 180 mm wide. The file stores its size in print, and the size of a pixel in the tissue.

# %%
written = ix.save_figure(named, folder / "panel.png", width_mm=180)
written.name

# %% [markdown]
# A link back opens the same layers, segments and colours at the same place.

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
