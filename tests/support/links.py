"""Neuroglancer states of the sample volume."""

from __future__ import annotations

import json

import imageryxr as ix

NEW = {
    "title": "two cells",
    "dimensions": {"x": [8e-9, "m"], "y": [8e-9, "m"], "z": [4e-8, "m"]},
    "position": [4600.5, 2560.5, 130.5],
    "crossSectionScale": 2,
    "projectionScale": 4096,
    "layers": [
        {
            "type": "image", "name": "em", "source": "IMAGE", "opacity": 0.7,
            "shader": "#uicontrol invlerp normalized(range=[10, 240])\nvoid main() {\n  emitGrayscale(normalized());\n}\n",
            "shaderControls": {"normalized": {"range": [60, 200]}},
        },
        {
            "type": "segmentation", "name": "cells", "source": {"url": "SEGMENTATION", "subsources": {"default": True}},
            "segments": ["18446744073709551615", "!7", 12], "segmentColors": {"12": "#ff8000", "99": "red"},
            "colorSeed": 77, "selectedAlpha": 0.6, "notSelectedAlpha": 0.1, "saturation": 0.8,
        },
        {"type": "mesh", "name": "notes", "source": "vtk://gs://bucket/notes.vtk"},
    ],
    "selectedLayer": {"layer": "cells", "visible": True},
    "layout": "xy",
}  # fmt: skip


OLD = {
    "layers": {
        "em": {"type": "image", "source": "IMAGE", "shader": "#uicontrol float black slider(min=0, max=1, default=0.2)\n#uicontrol float white slider(min=0, max=1, default=0.8)\nvoid main(){ emitGrayscale((toNormalized(getDataValue()) - black) / (white - black)); }"},
        "cells": {"type": "segmentation", "source": "SEGMENTATION", "segments": ["5"], "hiddenSegments": ["6"], "selectedAlpha": 0.3},
    },
    "navigation": {"pose": {"position": {"voxelSize": [8, 8, 40], "voxelCoordinates": [4600.5, 2560.5, 130.5]}}, "zoomFactor": 16},
}  # fmt: skip


def on_sample(state, sample):
    """Return a state whose layers are those of the sample volume."""
    text = json.dumps(state).replace('"IMAGE"', json.dumps(sample.image))
    return json.loads(text.replace('"SEGMENTATION"', json.dumps(sample.segmentation)))


def open_on_sample(state, sample, **options):
    return ix.open_neuroglancer(on_sample(state, sample), allow_local=True, **options)
