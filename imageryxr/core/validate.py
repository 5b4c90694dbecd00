"""Checks of arguments that several packages share."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def suggest_names(name: str, names: Iterable[str]) -> str:
    """Return a hint with the known names most similar to an unknown one, or an empty string."""
    by_fold = {known.casefold(): known for known in names}
    close = difflib.get_close_matches(name.casefold(), by_fold, n=3)
    return f" (did you mean {' or '.join(repr(by_fold[match]) for match in close)}?)" if close else ""
