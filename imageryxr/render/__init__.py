"""Draw overlays, outlines, thumbnails, plots and figures."""
