"""The kinds of marks that the kernel draws. They are not in the kernel's module, because importing it loads numba."""

from __future__ import annotations

ELLIPSE, RING, CROSS, DIAGONAL_CROSS, SQUARE, TRIANGLE, SEGMENT, POLYGON = range(8)
#: Number of parameters of a mark: centre (x, y), half the size of its bounding box, and the parameters of its kind.
COLUMNS = 22
#: Largest number of vertices of a polygon, which is the section of a box.
MOST_VERTICES = 6
