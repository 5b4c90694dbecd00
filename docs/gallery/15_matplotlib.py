"""
Matplotlib axes in micrometres
==============================

``plot`` draws a slice into Matplotlib axes at its place in the tissue. Everything drawn afterwards has the same
coordinates. In SVG and PDF files, lines and text remain vector graphics.
"""

import matplotlib.pyplot as plt
import tissue

import imageryxr as ix

ds = ix.align(ix.open_image(tissue.IMAGE), ix.open_segmentation(tissue.SEGMENTATION)).isel(z=[30])
line = ix.Outline(1, side="in", merge=False)
picture = ix.overlay(ds.image, ds.segmentation, alpha=0.25, outline=line, contrast_limits=(70, 195))

figure, ax = plt.subplots(figsize=(6, 6), layout="constrained")
picture.imagery.plot(ax=ax)
text = {"color": "white", "fontsize": 12, "fontweight": "bold"}
arrow = {"arrowstyle": "->", "color": "white", "linewidth": 1.8}
ax.add_patch(plt.Rectangle((0.78, 0.62), 0.5, 0.75, fill=False, edgecolor="white", linestyle="--", linewidth=1.5))
ax.text(0.78, 0.6, "small profiles", va="bottom", **text)
ax.annotate("organelles", (1.98, 0.78), xytext=(1.15, 0.2), arrowprops=arrow, **text)
ax.annotate("", (1.88, 1.05), xytext=(1.36, 0.24), arrowprops=arrow)
