"""The row of each label's colour in a colour table."""

import numpy as np

from imageryxr.kernels.outline import paint


def find_rows(labels, table):
    """Return the row of `table` in whose colour each label is drawn, or -1 for a label that is not drawn.

    The labels are painted with the numbers of the rows in place of colours.
    """
    numbers = np.arange(1, len(table.rgba) + 1, dtype="<u4").view(np.uint8).reshape(len(table.rgba), 4)
    rows = paint(labels.reshape(1, 1, -1), None, table._replace(rgba=numbers), None)
    return rows.view("<u4").reshape(labels.shape).astype(np.int32) - 1
