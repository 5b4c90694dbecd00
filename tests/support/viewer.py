"""The colours in which Neuroglancer draws segments."""

from __future__ import annotations

import numpy as np


def viewer_rule(labels, look):
    """Return the RGBA colour of each label, computed one by one as in Neuroglancer's shader."""
    from neuroglancer.segment_colors import hex_string_from_segment_id

    out = np.zeros((*labels.shape, 4), np.uint8)
    for place in np.ndindex(labels.shape):
        i = int(labels[place])
        if i == 0:
            continue
        has = i in look.selected_ids or (not look.selected_ids and look.all_if_none_selected)
        alpha = look.selected_alpha if has else look.rest_alpha
        if i in look.colors:
            rgb, own = look.colors[i][:3], look.colors[i][3]
            alpha = own / 255 if own < 255 else alpha
        elif look.default_color is not None:
            rgb = look.default_color[:3]
        else:
            rgb = bytes.fromhex(hex_string_from_segment_id(look.color_seed, i)[1:])
        mixed = [255 * (1 - look.saturation) + c * look.saturation for c in rgb]
        if round(alpha * 255):
            out[place] = [*(int(c + 0.5) for c in mixed), int(alpha * 255 + 0.5)]
    return out
