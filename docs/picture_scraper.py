"""Show Pillow pictures in the gallery: an example whose last line is a picture shows it, as a notebook does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from PIL.Image import Image
from sphinx_gallery.scrapers import figure_rst


def save_picture(block: Any, block_vars: dict[str, Any], gallery_conf: dict[str, Any]) -> str:
    """Save the value of the block's last expression, if it is a picture, and return the reST that shows it."""
    picture = block_vars["example_globals"].get("___")
    if not isinstance(picture, Image) or picture is block_vars.get("last_picture"):
        return ""
    block_vars["last_picture"] = picture
    path = Path(next(block_vars["image_path_iterator"]))
    picture.save(path)
    return figure_rst([str(path)], gallery_conf["src_dir"])
