"""Pictures: overlays, outlines, thumbnails, plots and figures."""
