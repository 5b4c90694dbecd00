# %% [markdown]
# # A stack, exported by a cluster
#
# The workers of a dask cluster draw the same picture as a notebook, for all slices of a volume. `LocalCluster` stands
# in for yours: use `dask_jobqueue.SLURMCluster` or any other in its place. In a script, put the code that starts
# workers under `if __name__ == "__main__":`.

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
# Nothing is read yet. The picture is an expression of a few kilobytes, whatever the number of slices. A plan lists what
# an export would read and write.

# %%
picture = ix.overlay(ds.image, ds.segmentation, alpha=0.3, outline=ix.Outline(2, side="in", merge=False))
ix.plan_export(picture, folder / "stack/z{z:04d}.png")

# %% [markdown]
# `export` sends regions to the workers of the client, a few at a time. A worker reads the chunks of its region, draws
# it and writes it. If a worker dies, another one computes its regions; if the export stops, the same call continues.

# %%
with (
    LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address="127.0.0.1:0") as cluster,
    Client(cluster) as client,
):
    report = ix.export(picture, folder / "stack/z{z:04d}.png", client=client, progress=False)
report

# %% [markdown]
# The files equal the picture in the notebook, pixel for pixel.

# %%
slices = sorted((folder / "stack").glob("*.png"))
with Image.open(slices[8]) as written:
    np.testing.assert_array_equal(np.asarray(written), picture.isel(z=8).values)
ix.montage(picture.isel(z=slice(0, None, 4)), labels=True)
