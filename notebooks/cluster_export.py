# %% [markdown]
# # A stack, exported by a cluster
#
# The same picture as in a notebook, for all slices of a volume, drawn by the workers of a dask cluster. `LocalCluster`
# stands in for yours: put `dask_jobqueue.SLURMCluster` or any other in its place. (In a script rather than a notebook,
# what starts workers stands under `if __name__ == "__main__":`.)

# %%
import tempfile
from pathlib import Path

import numpy as np
from dask.distributed import Client, LocalCluster
from PIL import Image

import imageryxr as ix

folder = Path(tempfile.mkdtemp())
sample = ix.sample(folder / "sample")
em, seg = ix.open_image(sample.image), ix.open_segmentation(sample.segmentation)
box = ix.BBox.around((4600, 2560, 130), (256, 256, 16), resolution=(8, 8, 40))
ds = ix.align(em, seg, bbox=box)

# %% [markdown]
# Nothing is read yet. What is drawn is a recipe of a few kilobytes, however many slices there are, and a plan says what
# an export of it would write.

# %%
picture = ix.overlay(ds.image, ds.segmentation, alpha=0.3, outline=ix.Outline(2, side="in", merge=False))
ix.plan_export(picture, folder / "stack/z{z:04d}.png")

# %% [markdown]
# Given a client, `export` sends regions to its workers, a few at a time: each reads the chunks that its region needs,
# draws and writes it. A worker that is lost costs its regions, and the same call again continues where it was stopped.

# %%
with (
    LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address="127.0.0.1:0") as cluster,
    Client(cluster) as client,
):
    report = ix.export(picture, folder / "stack/z{z:04d}.png", client=client, progress=False)
report

# %% [markdown]
# They draw what the notebook draws, to the pixel.

# %%
slices = sorted((folder / "stack").glob("*.png"))
with Image.open(slices[8]) as written:
    np.testing.assert_array_equal(np.asarray(written), picture.isel(z=8).values)
ix.montage(picture.isel(z=slice(0, None, 4)), labels=True)
