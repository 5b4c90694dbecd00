# %% [markdown]
# # A CAVE datastack, pinned in time
#
# In CAVE the ids of cells change as people proofread. This notebook opens a datastack at one instant, draws a figure,
# and compares two instants on either side of an edit. A datastack on this machine, made of the sample volume, stands in
# for a real one, so the notebook needs no network and no account. With an account of your own, leave out the next cell,
# `server_address=` and `token=`.

# %%
import tempfile

import numpy as np

import imageryxr as ix
from imageryxr.testing.local_cave import TOKEN, LocalCave

sample = ix.sample(tempfile.mkdtemp() + "/sample")
spot = ix.BBox.around((4600, 2560, 130), (384, 384, 16), resolution=(8, 8, 40))
cave = LocalCave(ix.align(ix.open_image(sample.image), ix.open_segmentation(sample.segmentation), bbox=spot))
account = {"server_address": cave.address, "token": TOKEN}

# %% [markdown]
# A datastack names an image, a segmentation and the voxel size of its viewer. `open_datastack` fixes the instant and
# sends it with every request, so all arrays of this tree show one state of the segmentation.

# %%
tree = ix.open_datastack(cave.datastack, timestamp="2023-11-15T12:00:00Z", **account)
tree["segmentation/segmentation"].attrs["timestamp"], tree.attrs["viewer_resolution"]

# %%
box = tree.imagery.around((4600, 2560, 130), (320, 320))  # in voxels as the viewer displays them
ds = tree.imagery.align(bbox=box)
picture = ix.overlay(ds.image, ds.segmentation, alpha=0.3, outline=ix.Outline(1, side="in", merge=False))
ix.scale_bar(picture, scale=2)

# %% [markdown]
# The segmentation consists of root ids, one for each cell. `agglomerate=False` gives the supervoxels that make them up.

# %%
supervoxels = ix.open_segmentation(cave.table, agglomerate=False, token=TOKEN, bbox=box)
before, voxels = ix.unique_ids(ds.segmentation, counts=True)
print(len(before), "roots of", len(ix.unique_ids(supervoxels)), "supervoxels")

# %% [markdown]
# On 16 November somebody merges the second and third largest cells. The tree above shows an earlier instant and does
# not change. A tree of a later instant has one new root in place of the two old ones.

# %%
first, second = before[np.argsort(voxels)][-3:-1].tolist()
cave.merge(first, second, "2023-11-16T00:00:00Z")
later = ix.open_datastack(cave.datastack, timestamp="2023-11-18T12:00:00Z", **account)
merged = later.imagery.align(bbox=box)
after = ix.unique_ids(merged.segmentation)
gone, new = np.setdiff1d(before, after), np.setdiff1d(after, before)
assert (len(gone), len(new)) == (2, 1)
print(len(gone), "roots are gone,", len(new), "is new")

# %%
ix.montage(
    [
        ix.to_pil(ix.overlay(ds.image, ds.segmentation, ids=gone, alpha=0.5)),
        ix.to_pil(ix.overlay(merged.image, merged.segmentation, ids=new, alpha=0.5)),
    ],
    labels=["15 November", "18 November"],
)

# %% [markdown]
# A root of the old state is no root of the new one. Opening it there is an error that names its successor, and
# `stale="update"` takes the successor.

# %%
try:
    ix.open_segmentation(cave.table, ids=[first], timestamp="2023-11-18T12:00:00Z", token=TOKEN)
except ix.errors.StaleRootError as error:
    print(error)

# %%
updated = ix.open_segmentation(
    cave.table, ids=[first], stale="update", timestamp="2023-11-18T12:00:00Z", token=TOKEN, bbox=box
)
assert ix.unique_ids(updated).tolist() == new.tolist()
ix.unique_ids(updated)

# %%
cave.close()
