"""``imageryxr info``: listed levels, notes about sparse and damaged levels, and exit codes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

import imageryxr as ix
from tests.support.command_line import run


def write(folder: Path, scales: list[tuple[str, tuple[int, int, int], bytes | None]], encoding: str = "raw") -> Path:
    """Write a layer. A scale is a key, a resolution, and the bytes of its only chunk, or None if the chunk is missing."""
    info = {"type": "image", "data_type": "uint8", "num_channels": 1, "scales": []}
    for key, resolution, stored in scales:
        info["scales"].append(
            {"key": key, "size": [8, 6, 4], "resolution": resolution, "chunk_sizes": [[8, 6, 4]], "encoding": encoding}
        )
        (folder / key).mkdir(parents=True)
        if stored is not None:
            (folder / key / "0-8_0-6_0-4").write_bytes(stored)
    (folder / "info").write_text(json.dumps(info))
    return folder


VOXELS = np.arange(192, dtype="uint8").tobytes()


def test_the_version_is_printed():
    done = run("--version")
    assert (done.returncode, done.stdout.strip()) == (0, f"imageryxr {ix.__version__}")


def test_a_complete_layer_is_listed_without_notes(tmp_path):
    done = run("info", write(tmp_path, [("a", (8, 8, 40), VOXELS), ("b", (16, 16, 40), VOXELS)]))
    assert done.returncode == 0, done.stderr
    assert "note:" not in done.stdout


def test_levels_listed_from_coarse_to_fine_are_reported(tmp_path):
    folder = write(tmp_path, [("a", (16, 16, 40), VOXELS), ("b", (8, 8, 40), VOXELS)])
    done = run("info", folder)
    assert done.returncode == 0, done.stderr
    assert "note: its levels are listed from coarse to fine" in done.stdout
    assert json.loads(run("info", "--json", folder).stdout)["coarse_first"] is True


def test_sparse_and_damaged_levels_are_marked(tmp_path):
    folder = write(tmp_path, [("a", (8, 8, 40), VOXELS), ("b", (16, 16, 40), None), ("c", (32, 32, 40), VOXELS[:-1])])
    done = run("info", folder)
    assert done.returncode == 1
    assert "raw, sparse" in done.stdout
    assert "raw, damaged" in done.stdout
    assert "note: mip 1 is sparse: the chunk in its middle is missing" in done.stdout
    assert "it holds 191 bytes instead of 192" in done.stdout
    levels = json.loads(run("info", "--json", folder).stdout)["levels"]
    assert [level["state"] for level in levels] == [None, "sparse", "damaged"]
    unread = run("info", "--no-read", folder)
    assert (unread.returncode, "note:" in unread.stdout) == (0, False)


def test_a_sparse_layer_exits_with_0(tmp_path):
    assert run("info", write(tmp_path, [("a", (8, 8, 40), None)])).returncode == 0


def test_a_layer_that_cannot_be_read_exits_with_1(tmp_path):
    done = run("info", write(tmp_path, [("a", (8, 8, 40), VOXELS)], encoding="zupf"))
    assert done.returncode == 1
    assert "mip 0 is unreadable" in done.stdout
    assert "stored as 'zupf'" in done.stdout
    for address in (tmp_path / "nothing", f"precomputed://{tmp_path}/nothing"):
        done = run("info", address)
        assert done.returncode == 1
        assert done.stderr.startswith("error: ")
        assert "Traceback" not in done.stderr


def test_a_layer_that_cannot_be_opened_does_not_hide_the_others(tmp_path):
    good = write(tmp_path / "good", [("a", (8, 8, 40), VOXELS)])
    state = {
        "dimensions": {"x": [8e-9, "m"], "y": [8e-9, "m"], "z": [4e-8, "m"]},
        "layers": [
            {"type": "image", "name": "gone", "source": f"precomputed://{tmp_path}/gone"},
            {"type": "image", "name": "em", "source": f"precomputed://{good}"},
            {"type": "annotation", "name": "notes", "source": f"precomputed://{tmp_path}/notes"},
        ],
    }
    file = tmp_path / "state.json"
    file.write_text(json.dumps(state))
    for link in (file, json.dumps(state)):
        done = run("info", link, "--allow-local")
        assert done.returncode == 1
        assert "'gone' cannot be opened: " in done.stdout
        assert "8 × 6 × 4" in done.stdout
        assert "'notes' is left out" in done.stdout
    layers = json.loads(run("info", "--json", "--allow-local", file).stdout)["layers"]
    assert [sorted(entry)[0] for entry in layers] == ["error", "attrs", "left_out"]
    state["layers"].pop(0)
    file.write_text(json.dumps(state))
    assert run("info", file, "--allow-local").returncode == 0


def test_a_link_reads_no_local_file_unless_allowed(tmp_path):
    good = write(tmp_path / "good", [("a", (8, 8, 40), VOXELS)])
    state = {"layers": [{"type": "image", "name": "em", "source": f"precomputed://{good}"}]}
    done = run("info", json.dumps(state))
    assert done.returncode == 1
    assert "8 × 6 × 4" not in done.stdout
    assert "--allow-local" in done.stdout


def test_info_prints_the_number_of_channels(tmp_path):
    from tests.support.encodings import values
    from tests.support.encodings import write as write_encoded

    write_encoded(tmp_path, values("uint8", 2), "raw", lambda part: part.tobytes())
    done = run("info", tmp_path)
    assert done.returncode == 0, done.stderr
    assert "2 channels" in done.stdout
