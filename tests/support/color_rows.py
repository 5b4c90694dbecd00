"""The row of each label's colour in a colour table."""

import numpy as np

from imageryxr.kernels.outline import paint


def find_rows(labels, table):
    """Return the row in `table` of each label, -1 for those that are not drawn: a fill with the numbers of the rows."""
    numbers = np.arange(1, len(table.rgba) + 1, dtype="<u4").view(np.uint8).reshape(len(table.rgba), 4)
    rows = paint(labels.reshape(1, 1, -1), None, table._replace(rgba=numbers), None)
    return rows.view("<u4").reshape(labels.shape).astype(np.int32) - 1
