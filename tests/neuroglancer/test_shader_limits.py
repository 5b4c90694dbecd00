"""Shaders of images are evaluated as Neuroglancer does.

The expected values follow from Neuroglancer's sliceview/volume/image_renderlayer.ts (emitGrayscale, emitRGB, …),
webgl/shader_lib.ts (toRaw, toNormalized), webgl/lerp.ts (computeInvlerp) and webgl/shader_ui_controls.ts (controls).
"""

from __future__ import annotations

import json
import time
import warnings

import neuroglancer
import numpy as np
import pytest

import imageryxr as ix
from imageryxr.neuroglancer.fetch import load_state
from imageryxr.neuroglancer.shader_limits import find_grey_limits
from imageryxr.neuroglancer.shaders import strip_comments

CAVE = """#uicontrol float black slider(min=0, max=1, default=0.2)
#uicontrol float white slider(min=0, max=1, default=0.8)
float rescale(float value) {
  return (value - black) / (white - black);
}
void main() {
  float val = toNormalized(getDataValue());
  if (val < black) {
    emitRGB(vec3(0,0,0));
  } else if (val > white) {
    emitRGB(vec3(1.0, 1.0, 1.0));
  } else {
    emitGrayscale(rescale(val));
  }
}
"""
INVLERP = "#uicontrol invlerp normalized(range=[51, 204])\n"
SLIDERS = """#uicontrol float brightness slider(min=-1, max=1)
#uicontrol float contrast slider(min=-3, max=3, step=0.01)
void main() {
  emitGrayscale((toNormalized(getDataValue()) + brightness) * exp(contrast));
}
"""
TINT = '#uicontrol vec3 tint color(default="white")\n' + INVLERP + "void main() { emitRGB(tint * normalized()); }"
SWITCH = (
    "#uicontrol bool invert checkbox(default=true)\n#uicontrol float gain slider(min=0, max=2, default=1)\n" + INVLERP
) + "void main() { float v = normalized(); if (invert) v = 1.0 - v; emitGrayscale(v * gain); }"
MODE = (
    '#uicontrol string_t mode select(options={"Grey": "grey", "Jet": "jet"})\n' + INVLERP
) + 'void main() { if (mode == "jet") emitRGB(colormapJet(normalized())); else emitGrayscale(normalized()); }'


def main(body, head=INVLERP):
    return f"{head}void main() {{ {body} }}"


def limits_of(shader, controls=None, dtype="uint8"):
    return find_grey_limits(strip_comments(shader), controls or {}, np.dtype(dtype))


@pytest.mark.parametrize(
    ("shader", "controls", "limits"),
    [
        ("", {}, (0, 255)),
        ("", {"normalized": {"range": [200, 20]}}, (200, 20)),
        ("", {"contrast": {"range": [20, 200]}}, (0, 255)),  # no such control
        ("", {"normalized": {"range": [-10, 300]}}, (0, 255)),  # not values of the type, so the viewer ignores them
        ("", {"normalized": {"range": ["20", "200"]}}, (20, 200)),
        (main("emitGrayscale(normalized());"), {"other": {"range": [1, 2]}}, (51, 204)),
        (main("emitGrayscale(normalized());"), {"normalized": {"window": [0, 9]}}, (51, 204)),
        (main("emitGrayscale(1.0 - normalized());", "#uicontrol invlerp normalized\n"), {}, (255, 0)),
        (main("emitGrayscale(1.0 - normalized());\n// emitGrayscale(normalized());\n"), {}, (204, 51)),
        (main("float a = normalized(); float b = a; emitGrayscale(b);"), {}, (51, 204)),
        (main("if (VOLUME_RENDERING) emitRGBA(vec4(1.)); else emitGrayscale(normalized());"), {}, (51, 204)),
        (main("emitRGB(vec3(normalized())); emitIntensity(1.0);"), {}, (51, 204)),
        (main("emitRGBA(vec4(normalized(), normalized(), normalized(), 1.0));"), {}, (51, 204)),
        (main("emitGrayscale(float(toRaw(getDataValue())) / 100.0);", ""), {}, (0, 100)),
        (main("float v = toNormalized(getDataValue()); v *= 0.5; emitGrayscale(v);", ""), {}, (0, 510)),
        ("float f(float x) { return 1.0 - x; }\n" + main("emitGrayscale(f(normalized()));"), {}, (204, 51)),
        ("#uicontrol invlerp a(range=[1, 2])\n" + main("float q = a(); emitGrayscale(normalized());"), {}, (51, 204)),
        (CAVE, {}, (51, 204)),
        (CAVE, {"black": 0.4, "white": 0.6}, (102, 153)),
        (CAVE, {"black": 7}, (51, 204)),  # outside of the slider
        (SLIDERS, {}, (0, 255)),
        (SLIDERS, {"brightness": -0.2}, (51, 306)),
        (TINT, {}, (51, 204)),
        (SWITCH, {}, (204, 51)),
        (SWITCH, {"invert": False, "gain": 2}, (51, 127.5)),
        (MODE, {}, (51, 204)),
        ("", {"normalized": {"range": [100, 101]}}, (100, 101)),
    ],
)
def test_limits_reproduce_what_a_shader_shows(shader, controls, limits):
    assert limits_of(shader, controls) == limits


@pytest.mark.parametrize(
    "shader",
    [
        main("float v = normalized(); v = v * v; emitGrayscale(v);"),
        main("emitGrayscale(pow(normalized(), 0.5));"),
        main("if (normalized() < 0.5) emitTransparent(); else emitGrayscale(normalized());"),
        main("if (normalized() < 0.5) discard; emitGrayscale(normalized());"),
        main("if (normalized() < 0.5) { emitRGB(vec3(1.0, 0.0, 0.0)); return; } emitGrayscale(normalized());"),
        main("emitRGBA(vec4(vec3(normalized()), normalized()));"),
        main("emitGrayscale(normalized() * 0.2);"),
        main("emitGrayscale(0.5);"),
        main("emitGrayscale(step(0.5, normalized()));"),
        main("emitRGB(colormapJet(normalized()));"),
        main("emitGrayscale(normalized() + toNormalized(getDataValue(1)));"),
        main("emitGrayscale(toNormalized(getInterpolatedDataValue()));"),
        main("for (int i = 0; i < 3; ++i) {} emitGrayscale(normalized());"),
        "#define normalized2 (1.0 - normalized())\n" + main("emitGrayscale(normalized2);"),
        '#uicontrol transferFunction f(controlPoints=[[0, "#000000", 0.0]])\nvoid main() { emitRGBA(f()); }',
        CAVE.replace("emitGrayscale(rescale(val))", "emitGrayscale(pow(rescale(val), 2.0))"),
        main("", ""),
        "float f(float x) { return f(x); }\n" + main("emitGrayscale(f(1.0));"),
    ],
)
def test_a_shader_that_no_limits_reproduce_has_none(shader):
    assert limits_of(shader) is None
    assert limits_of(TINT, {"tint": "#ff0000"}) is None
    assert limits_of(MODE, {"mode": "jet"}) is None


@pytest.mark.parametrize(
    ("dtype", "limits"),
    [("int8", (-128, 127)), ("int16", (-32768, 32767)), ("uint16", (0, 65535)), ("float32", (0, 1))],
)
def test_the_default_range_is_that_of_the_type(dtype, limits):
    assert limits_of("", dtype=dtype) == limits
    assert limits_of("", {"normalized": {"range": [3, 60]}}, dtype) == (3, 60)
    inverted = main("emitGrayscale(1.0 - normalized());", "#uicontrol invlerp normalized\n")
    assert limits_of(inverted, dtype=dtype) == limits[::-1]


def test_narrow_ranges_of_wide_types_are_found():
    shader = main("emitGrayscale((float(toRaw(getDataValue())) - 30000.0) / 20.0);", "")
    assert limits_of(shader, dtype="uint16") == (30000, 30020)
    assert limits_of(CAVE, {"black": 0.5, "white": 0.51}, "float32") == (0.5, 0.51)


def test_untrusted_shaders_are_evaluated_in_a_limited_time():
    deep = "float f0(float x) { return x; }\n" + "".join(
        f"float f{n}(float x) {{ return f{n - 1}(x) + f{n - 1}(x); }}\n" for n in range(1, 40)
    )
    hostile = [
        deep + main("emitGrayscale(f39(1.0));"),
        main(f"emitGrayscale({'(' * 5000}1.0{')' * 5000});"),
        main(f"emitGrayscale({'-' * 5000}1.0);"),
        main(f"emitGrayscale(1.0{'+1.0' * 4000});"),
        main("{" * 5000),
        main("emitGrayscale(pow(10.0, pow(10.0, 400.0)));"),
        main("emitGrayscale(1.0 / 0.0);"),
        main("emitGrayscale(log(-1.0));"),
        "#uicontrol " * 20000,
        "#uicontrol invlerp a(" * 20000,
        "/*" * 200000,
        main(f"emitGrayscale({'9' * 10000});"),
        main("int x = 10; " + "x = x * x; " * 1000 + "emitGrayscale(float(x));"),
    ]
    slow = main("float x = 1.0; " + "x = x + 1.0; " * 800 + "emitGrayscale(fract(normalized() * 9000.0) + x);")
    for shader in [*hostile, slow]:
        start = time.monotonic()
        assert limits_of(shader, dtype="uint16") is None
        assert time.monotonic() - start < 2


# --- in a link -----------------------------------------------------------------------------------------------------------


def open_layer(sample, **layer):
    state = {
        "dimensions": {"x": [8e-9, "m"], "y": [8e-9, "m"], "z": [4e-8, "m"]},
        "position": [4600.5, 2560.5, 130.5],
        "layers": [{"type": "image", "name": "em", "source": sample.image, **layer}],
    }
    return ix.open_neuroglancer(state, allow_local=True)


@pytest.mark.parametrize(
    ("layer", "limits"),
    [
        ({"shader": CAVE, "shaderControls": {"white": 0.6}}, (51, 153)),
        ({"shader": SWITCH}, (204, 51)),
        ({"shaderControls": {"contrast": {"range": [20, 200]}}}, None),
    ],
)
def test_a_picture_shows_the_grey_values_of_the_viewer(sample, layer, limits):
    with warnings.catch_warnings():
        warnings.simplefilter("error", ix.errors.LinkWarning)
        tree = open_layer(sample, **layer)
        again = ix.open_neuroglancer(ix.neuroglancer_link(tree, allow_local=True), allow_local=True)
    ds = tree.imagery.view(size=(64, 48))
    low, high = limits or (0, 255)
    wanted = 255 * np.clip((ds.em.values.astype(float) - low) / (high - low), 0, 1)
    assert np.abs(ds.imagery.overlay().values[..., 0] - wanted).max() <= 0.5 + 1e-6
    assert tree["em/image"].attrs.get("contrast_limits") == again["em/image"].attrs.get("contrast_limits") == limits


@pytest.mark.parametrize("shader", ["", CAVE, SLIDERS, TINT, SWITCH, MODE])
@pytest.mark.parametrize("limits", [(20, 200), (200, 20), (-10, 300), (10.5, 99.25)])
def test_changed_limits_are_written_so_that_the_viewer_shows_them(sample, shader, limits):
    tree = open_layer(sample, **({"shader": shader} if shader else {}))
    tree["em/image"].attrs["contrast_limits"] = limits
    state = load_state(ix.neuroglancer_link(tree, allow_local=True))
    assert [layer.name for layer in neuroglancer.ViewerState(state).layers] == ["em"]
    layer = json.loads(json.dumps(state["layers"][0]))
    shown = limits_of(layer.get("shader", ""), layer.get("shaderControls"))
    assert shown is not None
    assert np.allclose(shown, limits)
