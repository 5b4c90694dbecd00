"""Responses to range requests are checked to contain the requested range."""

from __future__ import annotations

import gzip
import re

import pytest

import imageryxr as ix
from imageryxr.sources.fetch import client
from imageryxr.sources.fetch.byte_ranges import ByteRange
from tests.support.hostile import HostileServer, reply

HASTY = ix.Connection(timeout=10, retries=0)
WHOLE = bytes(range(100))
PARTS = [
    ByteRange(10, 20),
    ByteRange(0, 1),
    ByteRange(90),
    ByteRange(suffix=7),
    ByteRange(95, 120),
    ByteRange(suffix=300),
]


def answer_range(sock, head, **changes):
    """Respond to a range request correctly, except for the given changes."""
    first, last = re.search(r"Range: bytes=(\d*)-(\d*)", head).groups()
    if first:
        start, stop = int(first), min(int(last or 99), 99) + 1
    else:
        start, stop = max(0, 100 - int(last)), 100
    body = changes.pop("body", WHOLE[start:stop])
    given = changes.pop("given", f"bytes {start}-{stop - 1}/100")
    headers = {"Content_Range": given} if given is not None else {}
    return reply(sock, body, "206 Partial Content", **headers, **changes)


def request(part, answer):
    with HostileServer(answer) as server:
        return client.send_interruptible_request("GET", server.url + "/x", HASTY, part=part)


@pytest.mark.parametrize("part", PARTS)
def test_the_requested_range_is_returned(part):
    found = request(part, answer_range)
    assert (found.status, found.body) == (206, part.cut(WHOLE))
    if part.suffix is None and part.stop is not None and part.stop <= 100:
        unknown = f"bytes {part.start}-{part.stop - 1}/*"
        assert request(part, lambda sock, head: answer_range(sock, head, given=unknown)).body == part.cut(WHOLE)


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("encoding", ["", "identity", "gzip"])
def test_the_requested_range_is_taken_from_a_response_with_the_whole_file(part, encoding):
    body = gzip.compress(WHOLE) if encoding == "gzip" else WHOLE
    headers = {"Content_Encoding": encoding} if encoding else {}
    found = request(part, lambda sock, head: reply(sock, body, **headers))
    assert (found.status, found.body) == (206, part.cut(WHOLE))


WRONG = {
    "another range": {"given": "bytes 11-20/100", "body": WHOLE[11:21]},
    "the range before": {"given": "bytes 0-9/100", "body": WHOLE[:10]},
    "a longer range": {"given": "bytes 10-20/100", "body": WHOLE[10:21]},
    "a shorter range": {"given": "bytes 10-18/100", "body": WHOLE[10:19]},
    "a shorter range of a file of unknown size": {"given": "bytes 10-18/*", "body": WHOLE[10:19]},
    "too few bytes": {"body": WHOLE[10:19]},
    "too few bytes for a header that is right": {"given": "bytes 10-19/100", "body": b""},
    "another unit": {"given": "items 10-19/100"},
    "an end beyond the file": {"given": "bytes 10-19/15"},
    "a range that runs backwards": {"given": "bytes 19-10/100"},
    "no header": {"given": None},
    "an empty header": {"given": ""},
    "no range": {"given": "bytes */100"},
    "text": {"given": "bytes ten-19/100"},
    "negative numbers": {"given": "bytes -10-19/100"},
    "signs": {"given": "bytes +10-+19/+100"},
    "two ranges": {"given": "bytes 10-19/100, bytes 30-39/100"},
    "several parts": {"Content_Type": "multipart/byteranges; boundary=x"},
    "a part of what is compressed": {"Content_Encoding": "gzip"},
}


@pytest.mark.parametrize("name", WRONG)
def test_a_response_with_another_range_is_an_error(name):
    with pytest.raises(ix.errors.ServerError, match="returned|Content-Range|several ranges|limit"):
        request(ByteRange(10, 20), lambda sock, head: answer_range(sock, head, **WRONG[name]))


@pytest.mark.parametrize(
    ("part", "given", "body"),
    [
        (ByteRange(suffix=7), "bytes 92-98/100", WHOLE[92:99]),
        (ByteRange(suffix=7), "bytes 93-99/*", WHOLE[93:]),
        (ByteRange(suffix=7), "bytes 95-99/100", WHOLE[95:]),
        (ByteRange(90), "bytes 90-98/100", WHOLE[90:99]),
        (ByteRange(90), "bytes 91-99/100", WHOLE[91:]),
    ],
)
def test_a_response_with_another_end_of_a_file_is_an_error(part, given, body):
    with pytest.raises(ix.errors.ServerError, match="returned .* instead of"):
        request(part, lambda sock, head: answer_range(sock, head, given=given, body=body))


def test_a_range_instead_of_the_whole_file_is_an_error():
    answer = lambda sock, head: reply(sock, WHOLE[:10], "206 Partial Content", Content_Range="bytes 0-9/100")  # noqa: E731
    with pytest.raises(ix.errors.ServerError, match="returned only a part of the file"):
        request(None, answer)


@pytest.mark.parametrize("given", ["bytes */100", None])
def test_a_range_beyond_the_file_is_an_error(given):
    headers = {"Content_Range": given} if given else {}
    with pytest.raises(
        ix.errors.ServerError, match="100-109 were requested, but the file " + ("has 100" if given else "is shorter")
    ):
        request(ByteRange(100, 110), lambda sock, head: reply(sock, b"", "416 Range Not Satisfiable", **headers))


def test_a_wrong_answer_is_retried():
    answers = iter([WRONG["another range"], {}])
    with HostileServer(lambda sock, head: answer_range(sock, head, **next(answers))) as server:
        again = ix.Connection(timeout=10, retries=1, backoff=0)
        assert client.send_interruptible_request("GET", server.url, again, part=ByteRange(10, 20)).body == WHOLE[10:20]
