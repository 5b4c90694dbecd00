"""Every error and warning that imageryxr raises, in one tree.

::

    ImageryError
    ├── BoxError (ValueError)                  an inverted, empty or malformed box or point
    │   └── OutOfVolumeError                   a box wholly outside its volume
    ├── GridError (ValueError)                 coordinates that are not a regular grid
    │   └── GridMismatchError                  arrays that do not lie on one grid
    ├── UnitError (ValueError)                 a unit that is not a known unit of length
    ├── MipError (KeyError)                    a level that does not exist or is a placeholder
    ├── LayerError (TypeError)                 a segmentation given as image, floats given as ids, …
    ├── OptionError (ValueError)               an invalid value of an argument
    ├── ColorError (ValueError)                an invalid colour or palette
    ├── SegmentError (KeyError)                a required id that does not exist
    │   ├── StaleRootError                     a root id that is not current at the timestamp of its layer
    │   └── IdError                            a value that is not an id, such as a float
    ├── SourceError (ValueError)               a source with an invalid address or metadata
    │   ├── AddressError                       an unknown scheme or a malformed address
    │   ├── SourceNotFoundError (FileNotFoundError)
    │   ├── NoVolumeError                      a source of meshes, skeletons, annotations or segment properties
    │   └── ChoiceError                        several channels or times, of which none was selected
    ├── TimestampError (ValueError)            an invalid timestamp, or one before the first of a graph or in the future
    ├── LinkError (ValueError)                 a Neuroglancer link or state that is invalid or not allowed
    │   └── LinkServerError (ConnectionError)  a state that could not be fetched from its server
    ├── AuthError (PermissionError)            a missing, invalid or insufficient token
    │   ├── MissingTokenError                  no token was found
    │   ├── InvalidTokenError                  the server rejected the token
    │   └── ForbiddenError                     the owner of the token lacks permission
    │       └── TermsError                     the owner of the token has not accepted the terms of service
    ├── ServerError (ConnectionError)          a server that did not respond, or whose response was invalid
    ├── CodecError (ImportError)               an encoding whose decoder is not installed
    ├── ChunkReadError (OSError)               a chunk that could not be read
    │   └── MissingChunkError (FileNotFoundError)
    └── TargetError (OSError)                  an export target that cannot be written
        ├── TargetExistsError (FileExistsError)
        ├── ManifestError                      an invalid manifest of an export
        └── ScratchError                       a scratch folder that cannot be used

Each error is also a subclass of the builtin exception for its kind.
"""

from __future__ import annotations

import os
import re
import sys
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

# Longer messages contain a long text of the caller.
_MOST_LETTERS = 1800


def format_value(value: object, length: int = 100) -> str:
    """Return the repr of a value in one line for a message, cut to a length and without passwords of URLs."""
    try:
        text = f"<{type(value).__name__}>" if hasattr(value, "dims") else repr(value)[: 4 * length]
    except Exception:  # integers of thousands of digits; deeply nested lists; a repr that fails
        text = f"a {type(value).__name__} that is too long to show"
    text = re.sub(r"//[^/\s@]+@", "//", re.sub(r"\s*\n\s*", " ", text))
    return text if len(text) <= length else text[:length] + "…"


@dataclass(frozen=True, slots=True)
class Param:
    """A parameter in a message, with its value if the message states one."""

    name: str
    value: Any = None
    has_value: bool = False
    text: str | None = None
    """The value as the message shows it; None for its repr."""

    def __str__(self) -> str:
        if not self.has_value:
            return self.name
        shown = "…" if self.value is ... else format_value(self.value, 1000)
        return f"{self.name}={shown if self.text is None else self.text}"


@dataclass(frozen=True, slots=True)
class Wording:
    """A phrase that differs between Python and the command line."""

    python: str
    command: str

    def __str__(self) -> str:
        return self.python


Part = str | Param | Wording


class Message(str):
    """The text of an error or warning in Python's wording, with its parts, which are joined without separators."""

    parts: tuple[Part, ...]

    def __new__(cls, *parts: Part) -> Message:
        """Join the parts in Python's wording."""
        message = super().__new__(cls, "".join(map(str, parts)))
        message.parts = tuple(parts)
        return message

    def __reduce__(self) -> tuple[Any, ...]:
        return (Message, self.parts)


def join_messages(separator: str, items: Iterable[str]) -> Message:
    """Return strings or messages joined with a separator."""
    parts = [part for item in items for part in (separator, item)]
    return Message(*parts[1:])


def param(name: str, *value: Any, text: str | None = None) -> Param:
    """Return a parameter for a message: ``name``, or ``name=value``.

    Parameters
    ----------
    name : str
        Name of the parameter in Python.
    *value : object
        Its value, at most one; ``...`` stands for any value. Without it the message contains only the name.
    text : str, optional
        The value as the message shows it, instead of the value's repr.
    """
    return Param(name, value[0] if value else None, bool(value) or text is not None, text)


def _shorten(text: str) -> str:
    """Return a message without the middle of a very long value; its ends state the fault and the advice."""
    return text if len(text) <= _MOST_LETTERS else f"{text[:1000]}…{text[-700:]}"


class ImageryError(Exception):
    """Base class of all errors that imageryxr raises.

    Parameters
    ----------
    *parts : str, Param, Wording or Message
        The message, or its parts, which are joined without separators. A `Param` names a parameter of the caller, and
        each front end renders it in its own terms: ``overwrite=True`` or ``--overwrite``.
    """

    def __init__(self, *parts: Part) -> None:
        is_text = len(parts) == 1 and isinstance(parts[0], str)
        shown = tuple(_shorten(part) if type(part) is str else part for part in parts)
        super().__init__(*(shown if is_text or not parts else (Message(*shown),)))

    @property
    def message(self) -> str:
        """The message; a `Message` if it has parts that front ends render differently."""
        return self.args[0] if self.args else ""

    def __str__(self) -> str:
        # KeyError would return the repr of its argument, with quotes and escaped newlines.
        return str(self.args[0]) if self.args else ""

    def __reduce__(self) -> tuple[Any, ...]:
        # distributed cannot recreate subclasses of both ValueError and OSError without this.
        return (_recreate, (type(self), self.args), self.__dict__)


def _recreate(kind: type[ImageryError], args: tuple[Any, ...]) -> ImageryError:
    """Return an error without its fields, which pickle sets afterwards."""
    builtin: Any = kind
    while builtin.__module__ != "builtins":
        builtin = builtin.__base__  # leads to the builtin that defines the memory layout, whose __new__ is required
    error: ImageryError = builtin.__new__(kind)
    error.args = args
    return error


class BoxError(ImageryError, ValueError):
    """A box or point that is inverted, empty or malformed."""


class OutOfVolumeError(BoxError):
    """A box that lies entirely outside its volume."""


class GridError(ImageryError, ValueError):
    """Coordinates that do not form a regular, ascending grid in nanometres."""


class GridMismatchError(GridError):
    """Arrays that are not on the same grid but must be."""


class UnitError(ImageryError, ValueError):
    """A unit that is not a known unit of length."""


class MipError(ImageryError, KeyError):
    """A level that does not exist or is only a placeholder."""


class LayerError(ImageryError, TypeError):
    """An array or layer of the wrong kind: floats as ids, a segmentation as image."""


class OptionError(ImageryError, ValueError):
    """An invalid value of an argument."""


class ColorError(ImageryError, ValueError):
    """An invalid colour or palette."""


class SegmentError(ImageryError, KeyError):
    """A required segment id that does not exist."""


class StaleRootError(SegmentError):
    """A root id that is not current at the timestamp of its layer."""

    def __init__(self, message: str, successors: dict[int, list[int]] | None = None) -> None:
        super().__init__(message)
        self.successors = successors or {}
        """The ids that cover the same object at that timestamp, for each stale id."""


class IdError(SegmentError, LayerError, OptionError, ColorError):
    """A value that is not a segment id, such as a float, in an argument, an array or the keys of colours."""


class SourceError(ImageryError, ValueError):
    """A source with an invalid address or invalid metadata."""


class AddressError(SourceError):
    """An address with an unknown scheme, or a malformed address."""


class SourceNotFoundError(SourceError, FileNotFoundError):
    """A source that does not exist at its address."""


class NoVolumeError(SourceError):
    """A source that is not a volume: meshes, skeletons, annotations or segment properties."""


class ChoiceError(SourceError):
    """A source with several channels or times of which none was selected, or a selected one that does not exist.

    Parameters
    ----------
    message : str
        The message of the error.
    what : {"channel", "time"}
        The keyword that selects one.
    count : int
        The number of channels or times; 0 to ``count - 1`` can be selected.
    """

    def __init__(self, message: str, what: Literal["channel", "time"], count: int) -> None:
        super().__init__(message)
        self.what = what
        self.count = count


class TimestampError(ImageryError, ValueError):
    """An invalid timestamp, or one at which the segmentation has no state."""


class LinkError(ImageryError, ValueError):
    """A Neuroglancer link or state that is invalid, or whose content is not allowed."""


class LinkServerError(LinkError, ConnectionError):
    """A Neuroglancer state that could not be fetched from its server."""


class AuthError(ImageryError, PermissionError):
    """A missing, invalid or insufficient token."""


class MissingTokenError(AuthError):
    """No token was found, but the server requires one."""


class InvalidTokenError(AuthError):
    """A token that the server rejected as unknown."""


class ForbiddenError(AuthError):
    """A token whose owner has no permission to read the requested data."""


class TermsError(ForbiddenError):
    """Terms of service that the owner of the token has not accepted."""


class ServerError(ImageryError, ConnectionError):
    """A server that did not respond, or whose response was invalid."""


class CodecError(ImageryError, ImportError):
    """An encoding whose decoder is not installed."""


class ChunkReadError(ImageryError, OSError):
    """A chunk that could not be read; it is never replaced by the fill value."""


class MissingChunkError(ChunkReadError, FileNotFoundError):
    """A chunk that the store does not have."""


class TargetError(ImageryError, OSError):
    """An export target that cannot be written.

    Parameters
    ----------
    message : str
        The message of the error.
    full : bool, default False
        Whether the disk is full or a quota is exhausted; retries cannot succeed until space is freed.
    taken : bool, default False
        Whether another process has taken over the target; retries cannot succeed.
    """

    def __init__(self, *message: Any, full: bool = False, taken: bool = False) -> None:
        super().__init__(*message)
        self.full = full
        self.taken = taken


class TargetExistsError(TargetError, FileExistsError):
    """An export target that exists although ``overwrite`` is False."""


class ManifestError(TargetError):
    """An invalid manifest of an export; ``overwrite=True`` starts the export again."""


class ScratchError(TargetError):
    """A scratch folder that cannot be used; the target itself may be fine.

    Parameters
    ----------
    message : str
        The message of the error.
    folder : str
        The scratch folder.
    reason : str
        The reason why it cannot be used.
    full : bool
        Whether its disk is full.
    worker : str, optional
        The address of the cluster worker to which the folder belongs; the folder of another worker may be usable.
    """

    def __init__(self, message: str, *, folder: str, reason: str, full: bool, worker: str | None = None) -> None:
        super().__init__(message, full=full)
        self.folder = folder
        self.reason = reason
        self.worker = worker


class ImageryWarning(UserWarning):
    """Base class of all warnings that imageryxr issues."""


class MissingChunkWarning(ImageryWarning):
    """Missing chunks were replaced by the fill value."""


class MissingIdsWarning(ImageryWarning):
    """Requested ids do not occur in the data."""


class NaiveTimestampWarning(ImageryWarning):
    """A timestamp without a time zone was interpreted as UTC."""


class ClockWarning(ImageryWarning):
    """The clocks of this machine and of a server disagree."""


class CacheWarning(ImageryWarning):
    """The disk cache cannot be written to."""


class LinkWarning(ImageryWarning):
    """Parts of a Neuroglancer link were ignored."""


def warn(message: str, category: type[ImageryWarning] = ImageryWarning) -> None:
    """Issue a warning whose location is the innermost line outside of imageryxr."""
    package = os.path.dirname(__file__) + os.sep
    level, frame = 2, sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(package):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, category, stacklevel=level)
