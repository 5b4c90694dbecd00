from __future__ import annotations

import os
import time
import warnings
from datetime import UTC, date, datetime, timedelta, timezone

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st

import imageryxr as ix
from imageryxr.sources.cave.timestamp import Instant, instant_of

T = datetime(2023, 11, 16, 2, 0, 0, 250_000, tzinfo=UTC)
MICROS = 1_700_100_000_250_000


@pytest.mark.parametrize(
    "value",
    [
        T,
        T.astimezone(timezone(timedelta(hours=-5))),
        pd.Timestamp(T),
        "2023-11-16T02:00:00.250Z",
        "2023-11-16T02:00:00.25+00:00",
        "2023-11-15 21:00:00.250-05:00",
        " 2023-11-16T02:00:00.250Z ",
        1_700_100_000.25,
        np.float64(1_700_100_000.25),
        np.array(1_700_100_000.25),
    ],
)
def test_every_kind_of_timestamp_is_accepted(value):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert instant_of(value) == Instant(MICROS)


@pytest.mark.parametrize(
    "value",
    [
        T.replace(tzinfo=None),
        "2023-11-16T02:00:00.250",
        np.datetime64("2023-11-16T02:00:00.250"),
        np.datetime64("2023-11-16T02:00:00.250000999", "ns"),
        np.array(["2023-11-16T02:00:00.250"], "datetime64[ns]").reshape(()),
        xr.DataArray(np.datetime64("2023-11-16T02:00:00.250", "ns")),
        pd.Timestamp(T.replace(tzinfo=None)),
    ],
)
@pytest.mark.parametrize("zone", ["UTC", "America/New_York"])
def test_a_naive_time_is_utc_with_a_warning(value, zone, monkeypatch):
    monkeypatch.setenv("TZ", zone)
    time.tzset()
    try:
        with pytest.warns(
            ix.errors.NaiveTimestampWarning,
            match="no time zone and is interpreted as UTC; write 2023-11-16T02:00:00.25",
        ):
            assert instant_of(value) == Instant(MICROS)
    finally:
        monkeypatch.undo()
        time.tzset()
    assert os.environ.get("TZ") != "America/New_York"


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("yesterday", "ISO 8601"),
        ("", "ISO 8601"),
        ("1700100000", "ISO 8601|no instant"),
        (date(2024, 1, 1), "2024-01-01T00:00:00Z"),
        (float("nan"), "not seconds since 1970"),
        (float("inf"), "not seconds since 1970"),
        (-5, "not seconds since 1970"),
        (1_700_100_000_250, "milliseconds: divide by 1000$"),
        (1_700_100_000_250_000, "microseconds: divide by 1000000$"),
        (np.int64(1_700_100_000_250_000_000), "nanoseconds: divide by 1000000000$"),
        (10**400, "not seconds since 1970$"),
        (1e300, "not seconds since 1970$"),
        (np.float32(1_700_100_000.25), "float32, whose precision is worse than a minute"),
        (np.array([1_700_100_000.25]), "not an instant"),
        (True, "not an instant"),
        (np.datetime64("NaT", "ns"), "NaT"),
        (pd.NaT, "not an instant"),
        ([1], "not an instant"),
        (b"2024", "not an instant"),
    ],
)
def test_invalid_timestamps_are_errors(value, message):
    with pytest.raises(ix.errors.TimestampError, match=message) as caught:
        instant_of(value)
    assert isinstance(caught.value, ValueError)


@given(st.datetimes(min_value=datetime(1970, 1, 2), max_value=datetime(2200, 1, 1), timezones=st.just(UTC)))
def test_microseconds_survive_conversion(when):
    instant = instant_of(when)
    assert datetime.fromisoformat(instant.iso) == when
    assert instant_of(instant.iso) == instant
    # PyChunkedGraph parses a timestamp this way.
    assert datetime.fromtimestamp(float(instant.seconds), UTC) == when
    assert instant.after(0.25).micros - instant.micros == 250_000
