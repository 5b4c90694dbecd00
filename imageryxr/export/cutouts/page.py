"""A page of cutouts: one HTML file that contains all pictures and loads each when it is scrolled into view."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from imageryxr.core.annotation_values import column_texts, is_missing
from imageryxr.export.store.local import replaced_file

_STYLE = """
body { font: 14px system-ui, sans-serif; margin: 0; background: #fff; color: #222 }
header { position: sticky; top: 0; background: #fffd; padding: 8px 12px; border-bottom: 1px solid #ddd; z-index: 1 }
main { display: grid; gap: 8px; padding: 12px;
  grid-template-columns: repeat(auto-fill, minmax(max(var(--width), min(var(--caption), 100%)), 1fr)) }
figure { margin: 0; text-align: center; overflow-wrap: anywhere }
img { width: var(--width); height: var(--height); background: #eee; image-rendering: pixelated }
figcaption { font-size: 12px; color: #555 }
.color { white-space: nowrap; margin-left: 12px }
.color i { display: inline-block; width: 10px; height: 10px; margin-right: 4px; border: 1px solid #8888 }
@media (prefers-color-scheme: dark) { body, header { background: #111; color: #ddd } figcaption { color: #aaa } }
"""

_SCRIPT = """
const table = JSON.parse(document.getElementById("table").textContent);
const main = document.querySelector("main"), column = document.getElementById("column");
const figures = [...main.children];
const picture = i => `data:image/${document.body.dataset.kind};base64,` + document.getElementById("p" + i).textContent;
const observer = new IntersectionObserver(entries => {
  for (const entry of entries) {
    const image = entry.target, i = image.dataset.row;
    if (entry.isIntersecting && !image.src) image.src = picture(i);
    if (!entry.isIntersecting && image.src) image.removeAttribute("src");
  }
}, { rootMargin: "800px" });
figures.forEach(figure => observer.observe(figure.querySelector("img")));
function sort() {
  const ranks = table[column.value], sign = document.getElementById("descending").checked ? -1 : 1;
  const order = figures.map((_, i) => i).sort((a, b) => sign * (ranks[a] - ranks[b]) || a - b);
  main.append(...order.map(i => figures[i]));
  document.body.dataset.sorted = column.value;
}
column.addEventListener("change", sort);
document.getElementById("descending").addEventListener("change", sort);
const wanted = new URLSearchParams(location.hash.slice(1)).get("sort");
if (wanted in table) { column.value = wanted; sort(); }
"""


def write_page(
    path: Path,
    pictures: Iterable[bytes],
    columns: Mapping[str, npt.NDArray[Any]],
    labels: Sequence[str],
    *,
    title: str,
    token: str,
    colors: Mapping[str, tuple[int, int, int]],
) -> int:
    """Write the page of pictures atomically and return its size in bytes.

    Parameters
    ----------
    path : Path
        The HTML file.
    pictures : iterable of bytes
        The PNG or JPEG file of each cutout, of equal sizes.
    columns : mapping of arrays of shape (n,)
        The columns of the table, by which the page can be sorted.
    labels : sequence of str
        Text below each picture.
    title : str
        Title of the page.
    token : str
        Identifies the export, in the head of the page.
    colors : mapping of str to (r, g, b)
        The legend of the pictures.
    """
    from PIL import Image

    remaining = iter(pictures)
    head = next(remaining)
    with Image.open(io.BytesIO(head)) as first:
        width, height = first.size
        kind = str(first.format).lower()
    scale = max(1, round(128 / width))
    ranks = {name: _ranks(values) for name, values in columns.items()}
    texts = {name: column_texts(values) for name, values in columns.items()}
    options = "".join(f"<option>{escape(name)}</option>" for name in ranks)
    size = f"--width: {scale * width}px; --height: {scale * height}px; --caption: {max(map(len, labels))}ch"
    legend = "".join(
        f'<span class="color"><i style="background: rgb{color}"></i>{escape(name)}</span>'
        for name, color in colors.items()
    )
    with replaced_file(path) as beside, beside.open("w", encoding="utf-8") as file:
        file.write(
            f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
            f'<meta name="imageryxr-cutouts" content="{token}"><title>{escape(title)}</title>'
            f'<style>{_STYLE}</style></head>\n<body style="{size}" data-kind="{kind}"><header>{escape(title)}: '
            f'{len(labels):,} cutouts. <label>Sort by <select id="column">{options}</select></label> '
            f'<label><input type="checkbox" id="descending"> descending</label>{legend}</header>\n<main>\n'
        )
        for row, label in enumerate(labels):
            tip = "\n".join(f"{name}: {values[row]}" for name, values in texts.items())
            file.write(
                f'<figure title="{escape(tip)}"><img data-row="{row}" alt="{escape(label)}">'
                f"<figcaption>{escape(label)}</figcaption></figure>\n"
            )
        file.write("</main>\n")
        # Scripts of an unknown type are neither run nor decoded, so pictures out of view cost little memory.
        for row, picture in enumerate(chain([head], remaining)):
            text = base64.b64encode(picture).decode()
            file.write(f'<script type="text/plain" id="p{row}">{text}</script>\n')
        table = json.dumps(ranks).replace("<", "\\u003c")
        file.write(f'<script type="application/json" id="table">{table}</script>\n')
        file.write(f"<script>{_SCRIPT}</script></body></html>\n")
    return path.stat().st_size


def _ranks(values: npt.NDArray[Any]) -> list[int]:
    """Return the position of each value in ascending order; equal values have equal ranks, and missing ones are last.

    Numbers in JavaScript are floats, which cannot represent ids beyond 2**53, so Python sorts.
    """
    array = np.asarray(values)
    absent = is_missing(array) | (array != array)
    if array.dtype.kind == "O":
        array = np.array([str(v) for v in array])
    ranks = np.unique(array, return_inverse=True)[1].ravel()
    ranks[absent] = len(array)
    found: list[int] = ranks.tolist()
    return found
