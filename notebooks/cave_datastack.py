# %% [markdown]
# # A CAVE datastack, pinned in time
#
# In CAVE the ids of cells change as people proofread. This opens a datastack at one instant, draws a figure of it,
# and compares two instants on either side of an edit. A small CAVE deployment on this machine, with the sample volume
# in it, stands in for a real one, so that the notebook runs offline; with an account of your own the cell below is
# not needed, and `server_address=` and `token=` are left out.

# %%
import tempfile
from contextlib import ExitStack
from pathlib import Path

import numpy as np

import imageryxr as ix
from tests.support import cave_server

folder, running = Path(tempfile.mkdtemp()), ExitStack()
tissue = cave_server.sample_tissue(ix.sample(folder / "sample"))
server = running.enter_context(
    cave_server.serving_cave(folder / "cave", tissue, cave_server.write_layers(folder / "cave", tissue))
)
account = {"server_address": server.url, "token": cave_server.TOKEN}

# %% [markdown]
# The datastack names an image and a segmentation, and the voxel size that its viewer shows. The instant is resolved
# when it is opened, "now" included, and sent with every request: all that is made of this tree is of one state.

# %%
tree = ix.open_datastack(cave_server.DATASTACK, timestamp="2023-11-15T12:00:00Z", **account)
tree.segmentation.segmentation.attrs["timestamp"], tree.attrs["viewer_resolution"]

# %%
middle = ix.grid_of(tree["image/image"]).bbox.center_nm
box = tree.imagery.around(
    [c / r for c, r in zip(middle, tree.attrs["viewer_resolution"], strict=True)], (380, 380), resolution="viewer"
)
ds = tree.imagery.align(bbox=box)
picture = ix.overlay(ds.image, ds.segmentation, alpha=0.3, outline=ix.Outline(1, side="in", merge=False))
ix.to_pil(picture, scale=3)

# %% [markdown]
# Roots, or the supervoxels that they are made of.

# %%
supervoxels = ix.open_segmentation(server.table, agglomerate=False, token=account["token"], bbox=box)
print(len(ix.unique_ids(ds.segmentation)), "roots of", len(ix.unique_ids(supervoxels)), "supervoxels")

# %% [markdown]
# Somebody merges two cells. The tree is of the instant that it was opened at, and does not change; one of a later
# instant has the new root.

# %%
later = ix.open_datastack(cave_server.DATASTACK, timestamp="2023-11-18T12:00:00Z", **account)
before = ix.crop(tree["segmentation/segmentation"], tree["segmentation/segmentation"].imagery.grid.bbox)
after = ix.crop(later["segmentation/segmentation"], before.imagery.grid.bbox)
gone = np.setdiff1d(ix.unique_ids(before), ix.unique_ids(after))
print(len(gone), "roots are gone, and", len(np.setdiff1d(ix.unique_ids(after), ix.unique_ids(before))), "have come")

# %% [markdown]
# An id of the old state is no id of the new one: asking for it is an error that names its successors, and
# `stale="update"` takes those.

# %%
try:
    ix.open_segmentation(server.table, ids=gone[:1], timestamp="2023-11-18T12:00:00Z", token=account["token"])
except ix.StaleRootError as error:
    print(error)

# %%
updated = ix.open_segmentation(
    server.table, ids=gone[:1], stale="update", timestamp="2023-11-18T12:00:00Z", token=account["token"]
)
ix.unique_ids(updated)

# %%
running.close()
