"""Validation of codec metadata of Zarr arrays, and conversion to the form of zarr-python and numcodecs.

Most codecs need no options to decode, and some writers add options that other libraries reject (``nthreads``). For
these codecs the options are replaced with valid ones, so that only the name of a codec matters.
"""

from __future__ import annotations

import json
from importlib.util import find_spec
from typing import Any

from imageryxr.core.lazy_import import import_package
from imageryxr.core.validate import as_counts, as_list, as_object, as_text, to_whole
from imageryxr.errors import CodecError, SourceError, format_value
from imageryxr.sources.base import clean_message

# Options for decoding, in the form of numcodecs.
_OPTIONS_V2: dict[str, dict[str, Any]] = {
    "blosc": {"cname": "lz4", "clevel": 5, "shuffle": 1, "blocksize": 0},
    "zlib": {"level": 1}, "gzip": {"level": 1}, "bz2": {"level": 1}, "zstd": {"level": 0}, "lz4": {"acceleration": 1},
}  # fmt: skip
# Options for decoding, in the form of Zarr 3.
_OPTIONS_V3: dict[str, dict[str, Any]] = {
    "blosc": {"cname": "lz4", "clevel": 5, "shuffle": "noshuffle", "typesize": 1, "blocksize": 0},
    "gzip": {"level": 1},
    "zstd": {"level": 0, "checksum": False},
    "crc32c": {},
}
# The package of a codec by the prefix of its name, and a module that shows whether the package is installed.
_PACKAGES = {
    "imagecodecs_": ("imagecodecs", "imagecodecs"),
    "pcodec": ("pcodec", "pcodec"),
    "zfpy": ("zfpy", "zfpy"),
    "msgpack2": ("msgpack", "msgpack"),
    "crc32c": ("google-crc32c", "google_crc32c"),
}
_NAMESPACE = "numcodecs."
BOUNDED = "imageryxr_bounded"
"""Name of the codec that replaces compressors in checked metadata; see `bounded_codecs`."""


def codec_v2(value: Any, what: str) -> dict[str, Any]:
    """Return a compressor or filter of a ``.zarray`` in the form of numcodecs."""
    given = as_object(value, what)
    name = as_text(given.get("id"), f"{what}, its id")
    _check_codec_name(name, what)
    return {**_OPTIONS_V2.get(name, given), "id": name}


def codecs_v3(value: Any, what: str, shape: tuple[int, ...], depth: int = 0) -> list[dict[str, Any]]:
    """Return the codecs of a ``zarr.json`` in the form of zarr-python.

    `what` is the source and the member, for messages. `shape` is the shape of the chunks that the codecs encode, and
    `depth` the number of nested shards around them.
    """
    out: list[dict[str, Any]] = []
    for number, entry in enumerate(as_list(value, what, 32)):
        where = f"{what}, number {number}"
        given = {"name": entry} if isinstance(entry, str) else as_object(entry, where)
        name = as_text(given.get("name"), f"{where}, its name")
        _check_codec_name(name, where)
        options = as_object(given.get("configuration") or {}, f"{where}, its configuration")
        codec = _codec_v3(name, options, where, shape, depth)
        if name == "transpose":
            shape = tuple(shape[i] for i in codec["configuration"]["order"])
        out.append(codec)
    return out


def _codec_v3(name: str, options: dict[str, Any], what: str, shape: tuple[int, ...], depth: int) -> dict[str, Any]:
    if name in ("bytes", "endian"):
        endian = as_text(options.get("endian") or "little", f"{what}, its endian", ("little", "big"))
        return {"name": "bytes", "configuration": {"endian": endian}}
    if name == "transpose":
        return {"name": name, "configuration": {"order": _order(options.get("order"), what, len(shape))}}
    if name == "sharding_indexed":
        return {"name": name, "configuration": _sharding(options, what, shape, depth)}
    bare = name.removeprefix(_NAMESPACE)
    chosen = _OPTIONS_V2.get(bare) if bare != name else _OPTIONS_V3.get(name)
    if chosen is not None and name == "blosc":
        size = to_whole(options.get("typesize"))
        chosen = {**chosen, "typesize": size if size is not None and 0 < size < 256 else 1}
    return {"name": name, "configuration": options if chosen is None else chosen}


def _order(value: Any, what: str, count: int) -> list[int]:
    if value in ("C", "F"):  # an early form of the specification
        return list(range(count))[:: 1 if value == "C" else -1]
    order = as_list(value, f"{what}, its order", 32)
    if any(to_whole(n) is None for n in order) or sorted(order) != list(range(count)):
        raise SourceError(f"{what} has the order {format_value(value)}; it must hold each of 0 to {count - 1} once")
    return order


def _sharding(options: dict[str, Any], what: str, shape: tuple[int, ...], depth: int) -> dict[str, Any]:
    if depth > 3:
        raise SourceError(f"{what}: shards are nested too deeply; at most 4 levels are supported")
    inner = as_counts(options.get("chunk_shape"), f"{what}, its chunk_shape", count=len(shape))
    if any(n % m for n, m in zip(shape, inner, strict=True)):
        raise SourceError(f"{what} has shards of {shape}, which are not a multiple of its chunks of {inner}")
    chunks = 1
    for n, m in zip(shape, inner, strict=True):
        chunks *= n // m
    if chunks > 2**26:
        raise SourceError(f"{what} has {chunks:,} chunks in a shard; the limit is {2**26:,}")
    index = options.get("index_codecs")
    default = [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "crc32c"}]
    place = as_text(options.get("index_location") or "end", f"{what}, its index_location", ("start", "end"))
    return {
        "chunk_shape": list(inner),
        "codecs": codecs_v3(options.get("codecs"), f"{what}, its codecs", inner, depth + 1),
        "index_codecs": codecs_v3(index or default, f"{what}, its index_codecs", (*shape, 2), depth + 1),
        "index_location": place,
    }


def _check_codec_name(name: str, what: str) -> None:
    if name.removeprefix(_NAMESPACE) == BOUNDED:  # a file must not set its own limit
        raise CodecError(f"{what} is {name!r}, a name that imageryxr reserves; convert the array to another codec")
    # Unpickling runs code from the file.
    if name.removeprefix(_NAMESPACE) == "pickle":
        raise CodecError(
            f"{what} is 'pickle', which would run code from the file, so it is not supported; if you trust the file, "
            "copy the array with zarr-python to another codec"
        )


def codec_names(document: dict[str, Any]) -> list[str]:
    """Return the names of all codecs in the metadata of an array, including those within shards."""
    if document["zarr_format"] == 2:
        return [c["id"] for c in (document["compressor"], *(document["filters"] or [])) if c]
    return _codec_names_v3(document["codecs"])


def _codec_names_v3(codecs: list[dict[str, Any]]) -> list[str]:
    names = []
    for codec in codecs:
        names.append(codec["name"])
        if codec["name"] == "sharding_indexed":
            names += _codec_names_v3(codec["configuration"]["codecs"]) + _codec_names_v3(
                codec["configuration"]["index_codecs"]
            )
    return names


def register_codecs(text: str) -> None:
    """Register the codecs of imagecodecs with numcodecs, if the metadata name one and the package is installed."""
    if '"imagecodecs_' in text and find_spec("imagecodecs") is not None:
        from imagecodecs import numcodecs  # type: ignore[import-not-found,import-untyped,unused-ignore]

        numcodecs.register_codecs(verbose=False)


def codec_error(name: str, text: str, error: Exception) -> CodecError:
    """Return the error for an array that zarr-python cannot decode; its message names the codec and its package."""
    document = json.loads(text)
    for codec in codec_names(document):
        if _is_registered(codec, document["zarr_format"]):
            continue
        start = next((s for s in _PACKAGES if codec.removeprefix(_NAMESPACE).startswith(s)), None)
        package, module = _PACKAGES[start] if start else ("", "")
        if package and find_spec(module) is None:
            advice = f"run pip install {package}"
        else:
            advice = "import the package that registers it with numcodecs or zarr before opening, or convert the array"
        return CodecError(f"{name} is stored with the codec {codec!r}, which is not registered here; {advice}")
    codecs = ", ".join(codec_names(document)) or "no codec"
    return CodecError(f"{name} is stored with {codecs}, which zarr-python cannot set up: {clean_message(error)}")


def _is_registered(codec: str, version: int) -> bool:
    try:
        if version == 2:
            import_package("numcodecs")
            from numcodecs.registry import get_codec

            get_codec({"id": codec})
        else:
            import_package("zarr")
            from zarr.registry import get_codec_class

            get_codec_class(codec)
    except TypeError:  # the codec is registered, but requires options
        return True
    except Exception:
        return False
    return True
