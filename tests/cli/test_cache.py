"""The command ``imageryxr cache``."""

from __future__ import annotations

import json

import pytest

from imageryxr.sources.fetch.disk_cache import VARIABLE, DiskCache
from imageryxr.sources.fetch.disk_entry import entry_name
from imageryxr.sources.fetch.memory_cache import Stored
from imageryxr.sources.fetch.validators import Validator
from tests.support.command_line import run


@pytest.fixture
def folder(tmp_path):
    cache = DiskCache(str(tmp_path / "cache"))
    for number in range(3):
        cache.put(entry_name(number), Stored(bytes(5000), validator=Validator('"1"')), 1 << 20)
    return tmp_path / "cache"


def test_info_prints_the_size_and_clear_keeps_other_files(folder, monkeypatch):
    (folder / "notes.txt").write_text("mine")
    monkeypatch.setenv(VARIABLE, str(folder))
    assert "contains 3 entries, 0.0 MB; the oldest was used at 20" in run("cache", "info").stdout
    assert "contained 3 entries, 0.0 MB, which were removed" in run("cache", "clear").stdout
    assert "contains 0 entries" in run("cache", "info").stdout
    assert (folder / "notes.txt").read_text() == "mine"


def test_the_folder_is_an_option_and_the_output_may_be_json(folder):
    found = json.loads(run("cache", "info", "--folder", folder, "--json").stdout)
    assert (found["folder"], found["entries"], found["size"]) == (str(folder), 3, 24576)


@pytest.mark.parametrize("name", ["none", "pictures"])
def test_a_folder_without_a_cache_is_not_changed(tmp_path, name):
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "a.png").write_bytes(b"mine")
    for command in ("info", "clear"):
        assert "contains no cache of imageryxr" in run("cache", command, "--folder", tmp_path / name).stdout
    assert [path.name for path in tmp_path.rglob("*")] == ["pictures", "a.png"]
