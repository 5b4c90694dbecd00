# %% [markdown]
# # A first figure
#
# An image and a segmentation of different resolutions, one box, one picture. The sample volume stands in for yours:
# use any `precomputed://` or `zarr://` address in its place.

# %%
import tempfile

import imageryxr as ix

sample = ix.sample(tempfile.mkdtemp() + "/sample")
em = ix.open_image(sample.image)
seg = ix.open_segmentation(sample.segmentation)
em

# %% [markdown]
# Nothing is read yet. Coordinates are voxel centres in nanometres. The box has the numbers that Neuroglancer displays:
# (x, y, z), in voxels of 8 × 8 × 40 nm.

# %%
box = ix.BBox.around((4600, 2560, 130), (512, 512), resolution=(8, 8, 40))
ds = ix.align(em, seg, bbox=box)
ds

# %%
picture = ix.overlay(ds.image, ds.segmentation, alpha=0.3, outline=ix.Outline(2, side="in", merge=False))
ix.scale_bar(picture)

# %% [markdown]
# The four largest cells of the slice, each in a picture of its own.

# %%
cells, voxels = ix.unique_ids(ds.segmentation, counts=True)
largest = cells[voxels.argsort()[::-1]][:4]
ix.montage([ix.overlay(ds.image, ds.segmentation, ids=[cell], alpha=0.5) for cell in largest], columns=2)
