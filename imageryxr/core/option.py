"""Declarations of options, from which the command line makes its flags, their help and their names in messages."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Option:
    """The declaration of an option of the command line, beside the name and the type of the value."""

    help: str
    """What the option sets, in one or two sentences."""
    default: Any = None
    """The value without the option."""
    flag: str = ""
    """The flag without dashes, with underscores, if it differs from the name of the value."""
    python: tuple[str, ...] = ()
    """Parameters of Python's functions that the option sets, if their names differ from that of the value."""
    needs: str = ""
    """The flags, with their values, without which the option has no effect; one of them is enough."""
    settings: dict[str, Any] = field(default_factory=dict)
    """Further arguments of `typer.Option`."""
