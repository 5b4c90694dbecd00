# %% [markdown]
# # Analysis with xarray
#
# The arrays are plain xarray objects, so `groupby` measures areas and intensities per cell. Install `flox` to group
# large arrays faster; the code stays the same. For whole volumes, `measure` and `contacts` compute in one pass over the
# chunks, without loading the arrays.

# %%
import tempfile

import matplotlib.pyplot as plt
import numpy as np
import xarray as xr

import imageryxr as ix

sample = ix.sample(tempfile.mkdtemp() + "/sample")
em, seg = ix.open_image(sample.image), ix.open_segmentation(sample.segmentation)
box = ix.BBox.around((4600, 2560, 130), (384, 384, 6), resolution=(8, 8, 40))
ds = ix.align(em, seg, bbox=box).load()
ds

# %% [markdown]
# ## Area per cell and slice
#
# A voxel covers 8 × 8 nm of the plane. The ids are the labels of the groups, and remain integers.

# %%
width, height, depth = ix.grid_of(ds).resolution
ids = ds.segmentation.rename("id")
ones = xr.ones_like(ids, dtype=np.int64).rename("voxels")
voxels = ones.groupby(ids).sum()
cells = voxels.sel(id=voxels.id > 0)
largest = cells.id[np.argsort(-cells.values)][:6].values
volume = cells * width * height * depth / 1e9
volume.sel(id=largest).rename("volume (µm³)").to_series()

# %%
per_slice = [ones.isel(z=i).groupby(ids.isel(z=i)).sum() for i in range(ds.sizes["z"])]
areas = xr.concat(per_slice, dim=ds.z, fill_value=0, join="outer") * (width * height / 1e6)
areas.name = "area (µm²)"
areas.sel(id=largest).to_pandas()

# %% [markdown]
# ## Contacts
#
# `contacts` adds up the faces of voxels between each pair of cells, in nm². If membranes are background in your
# segmentation, expand the ids over them first.

# %%
touching = ix.contacts(ds.segmentation).imagery.to_dataframe()
touching["area (µm²)"] = touching["area"] / 1e6
touching.nlargest(5, "area")[["segment_a", "segment_b", "faces", "area (µm²)"]]

# %% [markdown]
# ## Intensity per segment

# %%
grey = ds.image.astype(float).groupby(ids).mean()
spread = ds.image.astype(float).groupby(ids).std()
table = xr.Dataset({"mean": grey, "std": spread}).sel(id=largest)
table.to_dataframe()

# %% [markdown]
# `measure` returns the same values, with volumes and positions.

# %%
measured = ix.measure(ds.segmentation, ds.image, ids=largest).sel(segment=largest)
np.testing.assert_allclose(measured["mean"], table["mean"])
np.testing.assert_allclose(measured["volume"] / 1e9, volume.sel(id=largest))
measured.imagery.to_dataframe()[["volume", "centroid_x", "centroid_y", "centroid_z", "mean", "std"]]

# %% [markdown]
# ## A plot of the areas, in the coordinates of the tissue

# %%
colors = ix.palette(largest, "colorblind")
fig, (left, right) = plt.subplots(1, 2, figsize=(9, 3.8), layout="constrained", width_ratios=[1, 1.1])
picture = ix.overlay(ds.image, ds.segmentation, ids=largest, colors=colors, alpha=0.5)
picture.isel(z=[0]).imagery.plot(left, scale_bar=True)
for i in largest:
    where = ds.segmentation.isel(z=0) == i
    if where.any():
        y, x = (float(where[d].where(where).mean()) / 1000 for d in ("y", "x"))
        left.annotate(str(i)[-4:], (x, y), color="white", ha="center", va="center", fontsize=8, fontweight="bold")
    right.plot(areas.z / 1000, areas.sel(id=i), "o-", color=np.array(colors[int(i)]) / 255, label=f"…{str(i)[-4:]}")
right.set(xlabel="z (µm)", ylabel="area (µm²)", ylim=(0, None))
right.locator_params(axis="x", nbins=4)
right.spines[["top", "right"]].set_visible(False)
right.legend(title="cell", frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
