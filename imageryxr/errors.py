"""Every error and warning that imageryxr raises, in one tree.

::

    ImageryError
    ├── BoxError (ValueError)                  an inverted, empty or malformed box or point
    │   └── OutOfVolumeError                   a box wholly outside its volume
    ├── GridError (ValueError)                 coordinates that are no regular grid
    │   └── GridMismatchError                  arrays that do not lie on one grid
    ├── MipError (KeyError)                    a level that does not exist or is a placeholder
    ├── LayerError (TypeError)                 a segmentation given as image, floats given as ids, …
    ├── OptionError (ValueError)               an argument outside its closed set of values
    ├── ColorError (ValueError)                a colour or palette that cannot be read
    ├── SegmentError (KeyError)                an id that is not there where one is needed
    ├── SourceError (ValueError)               an unknown scheme, metadata that make no sense
    │   └── SourceNotFoundError (FileNotFoundError)
    ├── LinkError (ValueError)                 a Neuroglancer link or state that makes no sense, or may not be followed
    ├── AuthError (PermissionError)            a token missing, wrong or without the right
    ├── CodecError (ImportError)               an encoding whose package is not installed
    ├── ChunkReadError (OSError)               stored voxels that could not be read
    │   └── MissingChunkError (FileNotFoundError)
    └── TargetError (OSError)                  an export target that cannot be written
        └── TargetExistsError (FileExistsError)

Each error is also the builtin kind that a caller may already catch. Messages say what was given, why it
cannot be, and what to type instead.
"""

from __future__ import annotations


class ImageryError(Exception):
    """Root of every error that imageryxr raises on purpose."""

    def __str__(self) -> str:
        # KeyError would show the repr of its argument, with escaped newlines and quotes.
        return str(self.args[0]) if self.args else ""


class BoxError(ImageryError, ValueError):
    """A box or point that is inverted, empty or malformed."""


class OutOfVolumeError(BoxError):
    """A box that lies wholly outside its volume."""


class GridError(ImageryError, ValueError):
    """Coordinates that do not form a regular, ascending grid in nanometres."""


class GridMismatchError(GridError):
    """Arrays that should lie on one grid and do not."""


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


class SourceError(ImageryError, ValueError):
    """A source whose scheme or metadata cannot be understood."""


class SourceNotFoundError(SourceError, FileNotFoundError):
    """A source at whose address there is no volume."""


class LinkError(ImageryError, ValueError):
    """A Neuroglancer link or state that cannot be understood, or must not be followed as it is."""


class AuthError(ImageryError, PermissionError):
    """A token that is missing, wrong, or lacks the right."""


class CodecError(ImageryError, ImportError):
    """An encoding whose decoder is not installed."""


class ChunkReadError(ImageryError, OSError):
    """Stored voxels that could not be read: never turned into black."""


class MissingChunkError(ChunkReadError, FileNotFoundError):
    """A chunk that the store does not have."""


class TargetError(ImageryError, OSError):
    """An export target that cannot be written."""


class TargetExistsError(TargetError, FileExistsError):
    """An export target that exists, while ``overwrite`` is False."""


class ImageryWarning(UserWarning):
    """Root of every warning that imageryxr gives."""


class MissingChunkWarning(ImageryWarning):
    """Chunks that the store does not have were filled with background."""


class MissingIdsWarning(ImageryWarning):
    """Ids were asked for that are not in the data."""


class LinkWarning(ImageryWarning):
    """Parts of a Neuroglancer link were left out."""
