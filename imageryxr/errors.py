"""Every error and warning that imageryxr raises, in one tree.

::

    ImageryError
    ├── BoxError (ValueError)                  an inverted, empty or malformed box or point
    │   └── OutOfVolumeError                   a box wholly outside its volume
    ├── GridError (ValueError)                 coordinates that are no regular grid
    │   └── GridMismatchError                  arrays that do not lie on one grid
    ├── UnitError (ValueError)                 a unit that is not a known unit of length
    ├── MipError (KeyError)                    a level that does not exist or is a placeholder
    ├── LayerError (TypeError)                 a segmentation given as image, floats given as ids, …
    ├── OptionError (ValueError)               an argument outside its closed set of values
    ├── ColorError (ValueError)                a colour or palette that cannot be read
    ├── SegmentError (KeyError)                an id that is not there where one is needed
    │   └── StaleRootError                     a root id that is not current at the instant of its layer
    ├── SourceError (ValueError)               metadata that make no sense
    │   ├── AddressError                       an unknown scheme, or an address of no place
    │   ├── SourceNotFoundError (FileNotFoundError)
    │   └── ChoiceError                        several channels or times, and none of them was chosen
    ├── TimestampError (ValueError)            a time that is none, or lies before a graph's first or in the future
    ├── LinkError (ValueError)                 a Neuroglancer link or state that makes no sense, or may not be followed
    │   └── LinkServerError (ConnectionError)  a state that its server did not give
    ├── AuthError (PermissionError)            a token missing, wrong or without the right
    │   ├── MissingTokenError                  no token was found
    │   ├── InvalidTokenError                  the server does not know the token
    │   └── ForbiddenError                     the token has not the right
    │       └── TermsError                     terms of service that its owner has not accepted
    ├── ServerError (ConnectionError)          a server that did not answer, or not sensibly
    ├── CodecError (ImportError)               an encoding whose package is not installed
    ├── ChunkReadError (OSError)               stored voxels that could not be read
    │   └── MissingChunkError (FileNotFoundError)
    └── TargetError (OSError)                  an export target that cannot be written
        ├── TargetExistsError (FileExistsError)
        ├── ManifestError                      an export's own bookkeeping that makes no sense
        └── ScratchError                       a scratch folder that cannot be used

Each error is also the builtin kind that a caller may already catch. Messages say what was given, why it
cannot be, and what to type instead.
"""

from __future__ import annotations

import os
import sys
import warnings
from functools import partial
from typing import Any, Literal


class ImageryError(Exception):
    """Root of every error that imageryxr raises on purpose."""

    def __str__(self) -> str:
        # KeyError would show the repr of its argument, with escaped newlines and quotes.
        return str(self.args[0]) if self.args else ""

    def __reduce__(self) -> tuple[Any, ...]:
        # Said here, since distributed's way to make exceptions anew fails for kin of both ValueError and OSError.
        return (type(self), self.args)


class BoxError(ImageryError, ValueError):
    """A box or point that is inverted, empty or malformed."""


class OutOfVolumeError(BoxError):
    """A box that lies wholly outside its volume."""


class GridError(ImageryError, ValueError):
    """Coordinates that do not form a regular, ascending grid in nanometres."""


class GridMismatchError(GridError):
    """Arrays that should lie on one grid and do not."""


class UnitError(ImageryError, ValueError):
    """A unit that is not a known unit of length."""


class MipError(ImageryError, KeyError):
    """A level that does not exist, or that is only a placeholder."""


class LayerError(ImageryError, TypeError):
    """An array or layer of the wrong kind: floats as ids, a segmentation as image."""


class OptionError(ImageryError, ValueError):
    """An argument outside the values that it may take."""


class ColorError(ImageryError, ValueError):
    """A colour or palette that cannot be read."""


class SegmentError(ImageryError, KeyError):
    """A segment id that is needed and is not there."""


class StaleRootError(SegmentError):
    """A root id that is not current at the instant of its layer."""

    def __init__(self, message: str, successors: dict[int, list[int]] | None = None) -> None:
        super().__init__(message)
        self.successors = successors or {}
        """The ids that cover the same object at that instant, for each stale id."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (StaleRootError, (str(self), self.successors))


class SourceError(ImageryError, ValueError):
    """A source whose scheme or metadata cannot be understood."""


class AddressError(SourceError):
    """An address of an unknown scheme, or of no place."""


class SourceNotFoundError(SourceError, FileNotFoundError):
    """A source at whose address there is no volume."""


class NoVolumeError(SourceError):
    """A source that holds something else than voxels: meshes, skeletons, annotations, properties of segments."""


class ChoiceError(SourceError):
    """A source of channels or times of which none was chosen, or one that it does not have.

    Parameters
    ----------
    message : str
        What is to be read.
    what : {"channel", "time"}
        The keyword with which to choose.
    count : int
        How many there are: 0 to ``count - 1`` may be chosen.
    """

    def __init__(self, message: str, what: Literal["channel", "time"], count: int) -> None:
        super().__init__(message, what, count)  # all of it, since an exception is pickled by its arguments

    @property
    def what(self) -> Literal["channel", "time"]:
        """The keyword with which to choose."""
        chosen: Literal["channel", "time"] = self.args[1]
        return chosen

    @property
    def count(self) -> int:
        """How many there are."""
        return int(self.args[2])


class TimestampError(ImageryError, ValueError):
    """A time that cannot be read, or at which the segmentation has no state."""


class LinkError(ImageryError, ValueError):
    """A Neuroglancer link or state that cannot be understood, or must not be followed as it is."""


class LinkServerError(LinkError, ConnectionError):
    """A state that its server did not give."""


class AuthError(ImageryError, PermissionError):
    """A token that is missing, wrong, or lacks the right."""


class MissingTokenError(AuthError):
    """No token was found, and the server asks for one."""


class InvalidTokenError(AuthError):
    """A token that the server does not know."""


class ForbiddenError(AuthError):
    """A token whose owner may not read what was asked for."""


class TermsError(ForbiddenError):
    """Terms of service that the owner of the token has not accepted."""


class ServerError(ImageryError, ConnectionError):
    """A server that did not answer, or whose answer makes no sense."""


class CodecError(ImageryError, ImportError):
    """An encoding whose decoder is not installed."""


class ChunkReadError(ImageryError, OSError):
    """Stored voxels that could not be read: never turned into black."""


class MissingChunkError(ChunkReadError, FileNotFoundError):
    """A chunk that the store does not have."""


class TargetError(ImageryError, OSError):
    """An export target that cannot be written.

    Parameters
    ----------
    message : str
        What is to be read.
    full : bool, default False
        Whether that is for want of room, on a disk or of a quota: until somebody makes some, no try can work.
    taken : bool, default False
        Whether it is another process's by now: no try can work any more.
    """

    def __init__(self, *message: Any, full: bool = False, taken: bool = False) -> None:
        super().__init__(*message)
        self.full = full
        self.taken = taken

    def __reduce__(self) -> tuple[Any, ...]:
        return (type(self), self.args, {"full": self.full, "taken": self.taken})


class TargetExistsError(TargetError, FileExistsError):
    """An export target that exists, while ``overwrite`` is False."""


class ManifestError(TargetError):
    """The manifest of an export that makes no sense; with ``overwrite=True`` the export begins anew."""


class ScratchError(TargetError):
    """A scratch folder that cannot be used; the target may be as it should.

    Parameters
    ----------
    message : str
        What is to be read.
    folder : str
        Which one.
    reason : str
        Why.
    full : bool
        Whether that is for want of room.
    worker : str, optional
        The address of the cluster's worker whose folder it is: that of another may do.
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
    """Root of every warning that imageryxr gives."""


class MissingChunkWarning(ImageryWarning):
    """Chunks that the store does not have were filled with background."""


class MissingIdsWarning(ImageryWarning):
    """Ids were asked for that are not in the data."""


class NaiveTimestampWarning(ImageryWarning):
    """A time without a time zone was taken as UTC."""


class ClockWarning(ImageryWarning):
    """Two clocks, of this machine and of a server, disagree."""


class LinkWarning(ImageryWarning):
    """Parts of a Neuroglancer link were left out."""


def warn(message: str, category: type[ImageryWarning] = ImageryWarning) -> None:
    """Give a warning that points at the line of the caller's which led here, however deep in imageryxr it was found."""
    package = os.path.dirname(__file__) + os.sep
    level, frame = 2, sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(package):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, category, stacklevel=level)
