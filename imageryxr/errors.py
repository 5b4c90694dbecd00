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
    │   └── StaleRootError                     a root id that is not current at the timestamp of its layer
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

Each error is also a subclass of the builtin exception for its kind. A message states what was given, why it is invalid
and what to write instead.
"""

from __future__ import annotations

import os
import sys
import warnings
from functools import partial
from typing import Any, Literal


class ImageryError(Exception):
    """Base class of all errors that imageryxr raises."""

    def __str__(self) -> str:
        # KeyError would return the repr of its argument, with quotes and escaped newlines.
        return str(self.args[0]) if self.args else ""

    def __reduce__(self) -> tuple[Any, ...]:
        # distributed cannot recreate subclasses of both ValueError and OSError without this.
        return (type(self), self.args)


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

    def __reduce__(self) -> tuple[Any, ...]:
        return (StaleRootError, (str(self), self.successors))


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
        super().__init__(message, what, count)  # exceptions are pickled with their arguments

    @property
    def what(self) -> Literal["channel", "time"]:
        """The keyword that selects one."""
        keyword: Literal["channel", "time"] = self.args[1]
        return keyword

    @property
    def count(self) -> int:
        """The number of channels or times."""
        return int(self.args[2])


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

    def __reduce__(self) -> tuple[Any, ...]:
        return (type(self), self.args, {"full": self.full, "taken": self.taken})


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

    def __reduce__(self) -> tuple[Any, ...]:
        make = partial(type(self), folder=self.folder, reason=self.reason, full=self.full, worker=self.worker)
        return (make, self.args)


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


class LinkWarning(ImageryWarning):
    """Parts of a Neuroglancer link were ignored."""


def warn(message: str, category: type[ImageryWarning] = ImageryWarning) -> None:
    """Issue a warning whose location is the innermost line outside of imageryxr."""
    package = os.path.dirname(__file__) + os.sep
    level, frame = 2, sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(package):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, category, stacklevel=level)
