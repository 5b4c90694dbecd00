"""Tables, views and queries of the CAVE deployment's materialization service.

The responses are Arrow streams like those of the real service: rows in random order, at most `MOST` rows, positions in
units of ``desired_resolution``, and root ids at the timestamp of the query.
"""

from __future__ import annotations

import copy
import json
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

MOST = 200_000
RESOLUTION = (5.0, 5.0, 10.0)
"""Nanometres per unit of the positions in the tables; the voxels of the tissue are 10 nm."""
JSON = {"Content-Type": "application/json"}


class Tables:
    """Tables of synapses, of cells and of notes that refer to cells, and views, at supervoxels of a tissue."""

    def __init__(self, tissue: Any, offset: tuple[int, int, int]) -> None:
        rng = np.random.default_rng(3)
        places = rng.integers(0, tissue.supervoxels.shape, (20_000, 3))
        chosen = places[tissue.supervoxels[tuple(places.T)] > 0][:600]
        self.frames: dict[str, pd.DataFrame] = {}
        self.references = {"cell_notes": "cells"}
        self.views = {"synapse_view": "synapses", "no_id_view": "synapses"}
        self.most = MOST

        def columns(prefix: str, rows: np.ndarray) -> dict[str, Any]:
            xyz = (rows[:, ::-1] + np.array(offset)) * np.array([2, 2, 1])  # voxels of 10 nm in units of 5, 5 and 10 nm
            supervoxels = tissue.supervoxels[tuple(rows.T)].astype(np.int64)
            return {
                **{f"{prefix}_position_{axis}": xyz[:, i] for i, axis in enumerate("xyz")},
                f"{prefix}_supervoxel_id": supervoxels,
                f"{prefix}_root_id": np.zeros(len(rows), np.int64),
            }

        def frame(count: int, **more: Any) -> pd.DataFrame:
            created = pd.to_datetime("2023-01-01") + pd.to_timedelta(np.arange(count), unit="s")
            return pd.DataFrame({"id": np.arange(1, count + 1) * 10, "created": created, "valid": True, **more})

        middle = {
            f"ctr_pt_position_{axis}": v
            for axis, v in zip("xyz", (chosen[:300, ::-1] + offset).T * [[2], [2], [1]], strict=True)
        }
        synapses = columns("pre_pt", chosen[:300]) | columns("post_pt", chosen[300:]) | middle
        self.frames["synapses"] = frame(300, **synapses, size=rng.integers(1, 1000, 300))
        cells = columns("pt", chosen[:40])
        corner = {f"bb_start_position_{axis}": pd.array([None] * 40, dtype="Int64") for axis in "xyz"}
        self.frames["cells"] = frame(40, **cells, **corner, volume=rng.normal(size=40))
        self.frames["cell_notes"] = frame(
            25, target_id=np.arange(25, 0, -1) * 10, cell_type=["exc", "inh", None, "glia", "exc"] * 5
        )
        self.frames["plain"] = frame(5, tag=list("abcde"))

    def copy(self) -> Tables:
        """Return an independent copy of the tables."""
        other = copy.copy(self)
        other.frames = {name: frame.copy() for name, frame in self.frames.items()}
        other.references, other.views = dict(self.references), dict(self.views)
        return other

    def answer(
        self, server: Any, request: Any, place: str, version: int, versions: dict[int, float]
    ) -> tuple[int, Any, dict]:
        """Answer a request below ``/materialize/api/vN/datastack/NAME/``."""
        if version not in versions:
            return 404, {"message": f"version {version} not found"}, JSON
        kind, _, rest = place.partition("/")
        name, _, what = rest.partition("/")
        if place == "tables":
            return 200, sorted(self.frames), JSON
        if place == "views":
            return 200, {view: {"description": ""} for view in self.views}, JSON
        if kind == "query":
            return self.query_join(server, json.loads(request.body), versions[version])
        if name not in (self.frames if kind == "table" else self.views):
            return 404, {"message": f"{name} not found"}, JSON
        if what == "metadata":
            sizes = {f"voxel_resolution_{axis}": r for axis, r in zip("xyz", RESOLUTION, strict=True)}
            return (
                200,
                {"table_name": name, "reference_table": self.references.get(name), "schema_type": "any", **sizes},
                JSON,
            )
        if what == "query":
            return self.query_table(server, name, json.loads(request.body), versions[version])
        return 404, {"message": "no such place"}, JSON

    def at(self, server: Any, name: str, when: float) -> pd.DataFrame:
        """Return the rows of a table or view with the root ids at a timestamp."""
        frame = self.frames[self.views.get(name, name)].copy()
        for column in [c for c in frame if c.endswith("root_id")]:
            supervoxels = frame[column.replace("root_id", "supervoxel_id")].to_numpy().astype(np.uint64)
            frame[column] = server.graph.roots(supervoxels, when).astype(np.int64)
        return frame.drop(columns="id") if name == "no_id_view" else frame

    def query_table(self, server: Any, name: str, data: dict, when: float) -> tuple[int, Any, dict]:
        return self._finish(self._filter_rows(self.at(server, name, when), name, data), data, [name])

    def query_join(self, server: Any, data: dict, when: float) -> tuple[int, Any, dict]:
        (first, left), (second, right) = data["tables"]
        a, b = (self._filter_rows(self.at(server, name, when), name, data) for name in (first, second))
        b = b.rename(columns={c: _column_in_join(c, a, data["suffix_map"][second]) for c in b})
        return self._finish(
            a.merge(b, left_on=left, right_on=_column_in_join(right, a, data["suffix_map"][second])),
            data,
            [first, second],
        )

    def query_live(self, server: Any, data: dict) -> tuple[int, Any, dict]:
        """Answer a query at a timestamp."""
        when = pd.Timestamp(data["timestamp"]).timestamp()
        if not data.get("join_tables"):
            return self.query_table(server, data["table"], data, when)
        ((first, left, second, right),) = data["join_tables"]
        data = {**data, "tables": [[first, left], [second, right]], "suffix_map": data["suffixes"]}
        return self.query_join(server, data, when)

    def _filter_rows(self, frame: pd.DataFrame, name: str, data: dict) -> pd.DataFrame:
        for key in ("filter_in_dict", "filter_less_dict", "filter_greater_equal_dict"):
            for column, value in data.get(key, {}).get(name, {}).items():
                held = frame[column]
                frame = frame[
                    held.isin(value) if key == "filter_in_dict" else held < value if "less" in key else held >= value
                ]
        for column, (lo, hi) in data.get("filter_spatial_dict", {}).get(name, {}).items():
            for i, axis in enumerate("xyz"):
                assert lo[i] < hi[i]
                held = frame[f"{column}_{axis}"]
                frame = frame[(held >= lo[i]) & (held <= hi[i])]
        return frame

    def _finish(self, frame: pd.DataFrame, data: dict, names: list[str]) -> tuple[int, Any, dict]:
        limit = min(self.most, data.get("limit", self.most))
        frame = frame.sample(frac=1, random_state=len(json.dumps(data))).iloc[data.get("offset", 0) :][:limit]
        unit = data.get("desired_resolution") or RESOLUTION
        for column in [c for c in frame if c[-2:] in ("_x", "_y", "_z") and "position" in c]:
            axis = "xyz".index(column[-1])
            frame[column] = frame[column] * (RESOLUTION[axis] / unit[axis])
        headers = {
            "Content-Type": "data.arrow",
            "dataframe_resolution": ", ".join(map(str, unit)),
            "column_names": "{}",
        }
        batch = pa.RecordBatch.from_pandas(frame.reset_index(drop=True))
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, batch.schema) as writer:
            writer.write_batch(batch)
        if len(frame) == limit:
            headers["Warning"] = f'201 - "Limited query to {limit} rows'
        return 200, sink.getvalue().to_pybytes(), headers


def _column_in_join(column: str, other: pd.DataFrame, suffix: str) -> str:
    """Return the name that the service gives to a column of the second of two joined tables."""
    if column[-2:] in ("_x", "_y", "_z") and "position" in column:
        return column[:-2] + suffix + column[-2:] if column in other else column
    return column + suffix if column in other else column
