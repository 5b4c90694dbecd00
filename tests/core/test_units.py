"""Units of length, and the errors for unknown and missing units."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

import imageryxr as ix
from imageryxr.core.units import has_unit, length_in_nm
from imageryxr.errors import UnitError

# Nanometres per unit, by the definitions of the SI and of the international yard.
KNOWN = {
    1.0: ["nm", "nanometer", "nanometers", "nanometre", "nanometres", "Nanometer", "NANOMETERS", " nm "],
    1e3: ["um", "\u00b5m", "\u03bcm", "micron", "microns", "Micron", "micrometer", "micrometres", "Micrometre", "\u00b5"],
    1e6: ["mm", "millimeter", "millimetres"],
    1e7: ["cm", "centimeter", "centimetre"],
    1e8: ["dm", "decimeter"],
    1e9: ["m", "meter", "meters", "metre", "metres", "Meter"],
    1e12: ["km", "kilometer", "kilometres"],
    1e-3: ["pm", "picometer", "picometres"],
    1e-6: ["fm", "femtometer"],
    0.1: ["\u00c5", "\u212b", "A\u030a", "angstrom", "Angstroms", "\u00e5ngstr\u00f6m", "\u00c5ngstr\u00f6m", "Angstr\u00f6m"],
    2.54e7: ["inch", "inches", "in"],
    3.048e8: ["foot", "feet", "ft"],
    9.144e8: ["yard", "yards", "yd"],
    1.609344e12: ["mile", "miles"],
}  # fmt: skip


@pytest.mark.parametrize(("factor", "unit"), [(f, u) for f, units in KNOWN.items() for u in units])
def test_names_symbols_plurals_and_british_spellings_of_units_are_accepted(factor, unit):
    assert length_in_nm(unit) == factor


def test_every_unit_of_length_of_ome_ngff_is_known():
    # The list of https://ngff.openmicroscopy.org/0.5 for axes of the type "space".
    prefixes = "yocto zepto atto femto pico nano micro milli centi deci hecto kilo mega giga tera peta exa zetta yotta"
    exponents = [-24, -21, -18, -15, -12, -9, -6, -3, -2, -1, 2, 3, 6, 9, 12, 15, 18, 21, 24]
    for prefix, exponent in zip(prefixes.split(), exponents, strict=True):
        assert length_in_nm(f"{prefix}meter") == float(f"1e{exponent + 9}")
    parsec_in_m = 648000 / np.pi * 149597870700  # the definition of the IAU
    assert length_in_nm("parsec") == pytest.approx(parsec_in_m * 1e9, rel=1e-15)
    for unit in ("angstrom", "foot", "inch", "mile", "yard"):
        assert length_in_nm(unit) > 0


def test_the_unit_of_an_object_is_its_name():
    class Unit:
        def __str__(self):
            return "micrometer"

    assert length_in_nm(Unit()) == 1000.0
    assert length_in_nm(np.str_("nm")) == 1.0


@pytest.mark.parametrize(
    "unit",
    ["", " ", "pixel", "px", "voxel", "second", "s", "nM", "NM", "MM", "Mm", "Pm", "A", "Nm", "n m", "nms", "ums", "meterss", "microns per pixel",
     "nm^2", "degree", "null", None, True, 1, 4.0, b"nm", ["nm"], {}, "ö" * 500, "metremeter", "\x00", "\u00f6meter", "n\u00e4nometer", "\ud800"],
)  # fmt: skip
def test_an_unknown_unit_raises_with_a_list_of_known_units(unit):
    with pytest.raises(UnitError, match="not a known unit of length.*nm, nanometer, µm") as caught:
        length_in_nm(unit)
    assert len(str(caught.value)) < 400


def test_the_error_for_a_symbol_in_the_wrong_case_suggests_the_right_case():
    with pytest.raises(UnitError, match="'NM' is not .*did you mean 'nm'?"):
        length_in_nm("NM")


def test_blank_units_count_as_missing():
    assert [has_unit(u) for u in (None, "", "  ", "nm", 0)] == [False, False, False, True, True]


@pytest.mark.parametrize("which", ["image", "segmentation"])
def test_the_error_for_layers_that_do_not_overlap_suggests_missing_micrometres(sample, which):
    layers = {"image": ix.open_image(sample.image), "segmentation": ix.open_segmentation(sample.segmentation)}
    truth = ix.align(layers["image"], layers["segmentation"])
    given = layers[which].isel(z=slice(0, 8))
    given = given.assign_coords({d: (d, given[d].values / 1000) for d in "zyx"})
    given.attrs = {"layer_type": which}
    layers[which] = given
    message = rf"set {which}\[dim\].attrs\['units'\] = 'um' for dim in 'zyx'"
    with pytest.raises(ix.errors.GridMismatchError, match=message):
        ix.align(layers["image"], layers["segmentation"])
    box = ix.BBox.around((4600, 2560, 105), (8, 8, 2), resolution=(8, 8, 40))
    with pytest.raises(ix.errors.OutOfVolumeError, match=message):
        ix.align(layers["image"], layers["segmentation"], bbox=box)
    for dim in "zyx":
        given[dim].attrs["units"] = "um"
    found = ix.align(layers["image"], layers["segmentation"], bbox=box)
    xr.testing.assert_allclose(found, ix.crop(truth, box))


def test_the_error_for_distant_layers_does_not_suggest_units():
    first, second = (ix.Grid((2, 2, 2), (8, 8, 40), (x, 0, 0)) for x in (100, 300))
    image = xr.DataArray(np.zeros((2, 2, 2), np.uint8), dims=("z", "y", "x"), coords=first.coords())
    labels = xr.DataArray(np.zeros((2, 2, 2), np.uint64), dims=("z", "y", "x"), coords=second.coords())
    with pytest.raises(ix.errors.GridMismatchError, match="check that both show the same volume"):
        ix.align(image, labels)
