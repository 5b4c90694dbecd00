"""Scanners of links, shaders and messages take linear time on adversarial text."""

from __future__ import annotations

import contextlib
import json
import random
import re
import time

import pytest

import imageryxr as ix
from imageryxr.errors import AddressError
from imageryxr.neuroglancer.fetch import load_state
from imageryxr.neuroglancer.shaders import displayed_invlerp, image_options
from imageryxr.neuroglancer.state import parse_state
from imageryxr.neuroglancer.state_json import url_safe_to_json
from imageryxr.sources.address import parse_address
from imageryxr.sources.base import clean_message
from tests.support.slow import slow_except

SIZE = 400_000
SECONDS = 30  # a quadratic scanner takes many minutes

SHADERS = {
    "calls that never close": "emitGrayscale(",
    "calls that are no statements": "emitGrayscale()",
    "calls with blanks": "emitGrayscale(a)" + " " * 60,
    "colours that never close": "emitRGB(vec3(",
    "colours with blanks": "emitRGB" + " " * 60 + "(vec3(a)",
    "comments that never end": "/* ",
    "strings that never end": "'\\",
    "controls that never close": "#uicontrol invlerp a(",
    "ranges that never close": "#uicontrol invlerp a(range=[",
    "sliders on one line": "#uicontrol float black ",
    "sliders on many lines": "#uicontrol float brightness\n",
    "definitions that never end": "emitGrayscale(v);float v =",
    "one word": "a",
    "brackets": ")",
    "blanks": "#\n",
    "numbers": "1.0-",
}
QUOTED = {"escapes": "'\\", "escaped quotes": "'\\\"'", "pairs": "'\\'", "both": "\"'\\", "backslashes": "\\"}
MESSAGES = ("https://", "https://a", "https://a?", "//a", "(https://a?b'")


def repeat(text):
    return text * (SIZE // len(text))


@pytest.fixture(autouse=True)
def time_limit():
    start = time.monotonic()
    yield
    assert time.monotonic() - start < SECONDS


@pytest.mark.fast_forms(5)
@pytest.mark.parametrize("end", slow_except(["", ");", ");\nvoid main() { emitGrayscale(a()); }"], ""))
@pytest.mark.parametrize("case", SHADERS)
def test_a_shader_is_scanned_in_linear_time(case, end):
    shader = repeat(SHADERS[case]) + end
    image_options({"shader": shader, "shaderControls": {"a": {"range": [1, 2]}, "black": 0.1}}, "layer")
    displayed_invlerp(shader)


@pytest.mark.fast_forms(2)
@pytest.mark.parametrize("case", QUOTED)
def test_a_quoted_link_is_scanned_in_linear_time(case):
    text = "{" + repeat(QUOTED[case])
    url_safe_to_json(text)
    with pytest.raises(ix.errors.LinkError):
        load_state("https://site/#!" + text)


@pytest.mark.parametrize("text", MESSAGES)
def test_a_message_is_scanned_in_linear_time(text):
    clean_message(repeat(text))


@pytest.mark.parametrize("wrapping", ["[](", "![a](", "<", '"', "(", "#!", "https://a#!", "https://a?json_url="])
def test_text_around_a_link_is_scanned_in_linear_time(wrapping):
    with pytest.raises(ix.errors.LinkError):
        load_state("https://site/" + repeat(wrapping))


def test_equal_long_names_are_made_unique():
    state = {"layers": [{"type": "image", "name": "a" * 5000, "source": "precomputed://gs://b/x"}] * 500}
    assert len({layer.name for layer in parse_state(state).layers}) == 500
    named = [{"type": "image", "name": n, "source": "precomputed://gs://b/x"} for n in ("a", "a", "b", "a", "a′")]
    assert [layer.name for layer in parse_state({"layers": named}).layers] == ["a", "a′", "b", "a′′", "a′′′"]


def test_the_queries_of_urls_go_into_no_message():
    text = "see https://u:p@h/x?sig=S3CRET, 'https://a?b=S3CRET' (https://a/(b)?q=S3CRET),(https://c?S3CRET) why?no"
    assert clean_message(text) == "see https://h/x 'https://a' (https://a/(b)),(https://c) why?no"


TOKENS = (
    *("emitGrayscale(", "emitRGB(vec3(", "(", ")", ");", "))", "));", ";", ",", "a", "a()", "normalized()", "1.0-", "1-"),
    *("\n", " ", "//", "/*", "*/", "float a =", "float a=a();", "toNormalized(getDataValue())", "+brightness"),
)  # fmt: skip


def emitted_expression(code):
    """Return the expression that a shader emits, found with reference patterns that take quadratic time."""
    code = re.sub(r"//[^\n]*|/\*.*?\*/", "", code, flags=re.DOTALL)
    found = re.findall(r"emitGrayscale\s*\((.*?)\)\s*;", code, re.DOTALL)
    found = found or re.findall(r"emitRGB\s*\(\s*vec3\s*\(([^,]*)\)\s*\)\s*;", code)
    value = re.sub(r"\s", "", found[-1]) if found else ""
    if re.fullmatch(r"[A-Za-z_]\w*", value):
        made = re.findall(rf"\bfloat\s+{value}\s*=([^;]*);", code)
        value = re.sub(r"\s", "", made[0]) if len(made) == 1 and len(found) == 1 else value
    return value


def test_the_linear_scanner_equals_its_reference_patterns():
    from imageryxr.neuroglancer import shaders

    rng = random.Random(1)
    found = set()
    for _ in range(5000):
        code = "".join(rng.choice(TOKENS) for _ in range(rng.randrange(16)))
        shown = shaders._grey_expression(shaders.strip_comments(code))
        assert shown == emitted_expression(code), code
        found.add(shown)
    assert len(found) > 50


def test_reading_url_safe_text_equals_its_reference_pattern():
    rng = random.Random(2)
    for _ in range(5000):
        text = "".join(rng.choice("'\"\\_&a") for _ in range(rng.randrange(12)))
        parts = re.findall(r"'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\"|[^'\"]+|['\"]", text, re.DOTALL)
        wanted = ""
        for part in parts:
            if part[0] == "'" and len(part) > 1:
                inner = re.sub(r"\\'", "'", part[1:-1])
                wanted += '"' + re.sub(r'(?<!\\)((?:\\\\)*)"', r"\1\\" + '"', inner) + '"'
            else:
                wanted += part if part[0] == '"' else re.sub("[&_]", ",", part)
        assert url_safe_to_json(text) == wanted


def test_strings_in_a_shader_hide_comments_as_in_the_viewer():
    shader = '#uicontrol invlerp c(range=[20, 200])\nvoid main() { emitGrayscale(c()); } // "\n'
    assert image_options({"shader": shader}, "layer")["contrast"] == (20, 200)
    assert image_options({"shader": shader.replace("void", '"//" void')}, "layer")["contrast"] == (20, 200)
    assert json.dumps(image_options({"shader": "/* " + shader}, "layer")["contrast"]) == "[20.0, 200.0]"


@pytest.mark.parametrize("begin", ["x:/", "s3://b/x:/", "https://a.example/:/"])
def test_an_address_of_many_colons_is_scanned_in_linear_time(begin):
    address = begin + ":" * 300_000
    began = time.monotonic()
    with contextlib.suppress(AddressError):
        parse_address(address)
    assert time.monotonic() - began < 5


@pytest.mark.parametrize("place", ["x:/a:b@c", "https://a.example/:/b:/u:p@c", "gs://b/s3://u:p@h/x", "x://a:/u:p@c"])
def test_a_password_inside_a_path_is_found(place):
    with pytest.raises(AddressError, match="second address with a password|unknown scheme"):
        parse_address(place)
