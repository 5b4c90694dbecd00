"""Instants: conversion of all supported kinds of timestamps to microseconds in UTC."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Any

import numpy as np

from imageryxr.core.validate import to_number
from imageryxr.errors import Message, NaiveTimestampWarning, TimestampError, param, warn

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_SECOND = 1_000_000

# Seconds from 1970 to the year 5138; a larger number is taken for milliseconds or smaller units.
_TOO_LATE = 100_000_000_000
_SMALLER = {"milliseconds": 1e3, "microseconds": 1e6, "nanoseconds": 1e9}


@dataclass(frozen=True, order=True, slots=True)
class Instant:
    """A point in time as integer microseconds since 1970, so that rounding cannot differ between workers."""

    micros: int

    @classmethod
    def now(cls) -> Instant:
        """Return the current time of this machine's clock."""
        return _from_datetime(datetime.now(UTC))

    @property
    def iso(self) -> str:
        """The instant in ISO 8601 and UTC, as in attributes."""
        return (_EPOCH + timedelta(microseconds=self.micros)).isoformat()

    @property
    def seconds(self) -> str:
        """Seconds since 1970 in decimal notation, as in requests."""
        whole, rest = divmod(self.micros, _SECOND)
        return f"{whole}.{rest:06d}"

    def after(self, seconds: float) -> Instant:
        """Return the instant that is later by a number of seconds."""
        return Instant(self.micros + round(seconds * _SECOND))

    def __str__(self) -> str:
        return self.iso


def instant_of(value: Any, *, naive_is_utc: bool = False) -> Instant:
    """Return the instant of a timestamp, or raise `TimestampError`.

    `value` is a datetime, a string in ISO 8601, seconds since 1970, or an array of these without dimensions. A time
    without a zone is interpreted as UTC, with a `NaiveTimestampWarning` unless `naive_is_utc`, as in responses of
    CAVE's services.
    """
    if hasattr(value, "dtype") and getattr(value, "shape", None) == ():
        value = np.asarray(value)[()]  # an element of a DataArray is an array without dimensions
    if isinstance(value, str):
        value = _from_text(value)
    if isinstance(value, np.datetime64):
        value = _from_numpy(value)
    if isinstance(value, datetime) and value == value:  # pandas.NaT is a datetime that does not equal itself
        if value.tzinfo is None or value.utcoffset() is None:
            if not naive_is_utc:
                _warn_naive(value)
            value = value.replace(tzinfo=UTC)
        return _from_datetime(value)
    if to_number(value) is not None or (isinstance(value, int | float) and not isinstance(value, bool)):
        return _from_epoch(value)
    hint = f", e.g. {datetime(value.year, value.month, value.day).isoformat()}Z" if type(value) is date else ""
    raise TimestampError(
        *(
            param("timestamp", value),
            f" ({type(value).__name__}) is not an instant{hint}; give a datetime with a time ",
        ),
        "zone, a string such as '2024-05-01T12:00:00Z', or seconds since 1970",
    )


def _from_text(text: str) -> datetime:
    try:
        return datetime.fromisoformat(text.strip())
    except ValueError:
        raise TimestampError(
            param("timestamp", text),
            " is not a time in ISO 8601; write e.g. '2024-05-01T12:00:00Z' or ",
            "'2024-05-01T12:00:00.250+00:00'",
        ) from None


def _from_numpy(value: np.datetime64) -> datetime:
    if np.isnat(value):
        raise TimestampError(
            param("timestamp", text="NaT"),
            " is not a time; give a time, or leave ",
            param("timestamp"),
            " out for the current one",
        )
    # Round down, so that the state contains no edit after the instant.
    found = value.astype("datetime64[us]").item()
    if not isinstance(found, datetime):
        raise TimestampError(param("timestamp", value), " lies outside the years 1 to 9999")
    return found


def _from_epoch(value: Any) -> Instant:
    if isinstance(value, np.floating) and value.dtype.itemsize < 8:
        raise TimestampError(
            param("timestamp", value),
            f" is a {value.dtype}, whose precision is worse than a minute; give float64",
        )
    seconds = to_number(value)
    if seconds is None or not 0 <= seconds < _TOO_LATE:
        unit = seconds and next((u for u, n in _SMALLER.items() if _TOO_LATE <= seconds < _TOO_LATE * n), None)
        hint = f"; it looks like {unit}: divide by {_SMALLER[unit]:.0f}" if unit else ""
        raise TimestampError(param("timestamp", value), f" is not seconds since 1970{hint}")
    return Instant(seconds * _SECOND if isinstance(seconds, int) else round(seconds * _SECOND))


def _from_datetime(value: datetime) -> Instant:
    return Instant((value - _EPOCH) // timedelta(microseconds=1))


def _warn_naive(value: datetime) -> None:
    warn(
        Message(
            param("timestamp", text=f"{value.isoformat()}"),
            f" has no time zone and is interpreted as UTC; write {value.isoformat()}Z, or give a datetime ",
            "with tzinfo",
        ),
        NaiveTimestampWarning,
    )
