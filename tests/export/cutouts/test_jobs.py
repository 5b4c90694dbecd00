"""Exports of cutouts: Zarr with one chunk per cutout, pictures, pages, and their resumption."""

from __future__ import annotations

import errno
import json
import os
import queue
import shutil
import signal
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from html.parser import HTMLParser
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import dask
import numpy as np
import pytest
import xarray as xr
from PIL import Image

import imageryxr as ix
from imageryxr.errors import LayerError, MissingIdsWarning, OptionError, TargetError, TargetExistsError
from imageryxr.export.cutouts import writers
from imageryxr.export.report import report_progress_to
from tests.support import counted_source
from tests.support.cutouts import CENTERS, IDS, boxes, pictures


@pytest.fixture
def stop_after(monkeypatch):
    """Return a function that makes writers raise an error after some cutouts."""

    def limit(count):
        written = []
        for kind in (writers.PictureWriter, writers.ZarrWriter):
            original = kind.write

            def write(self, rows, block, original=original):
                if len(written) >= count:
                    raise KeyboardInterrupt
                written.extend(rows)
                original(self, rows, block)

            monkeypatch.setattr(kind, "write", write)

    return limit


def test_a_zarr_of_cutouts_has_one_chunk_for_each_and_the_columns_of_the_table(tmp_path):
    ds = boxes()
    report = ix.export(ds, tmp_path / "boxes.zarr")
    assert report.complete
    found = xr.open_zarr(tmp_path / "boxes.zarr")
    xr.testing.assert_equal(found.compute(), ds.compute())
    assert found.segmentation.dtype == np.uint64
    assert found.image.dtype == np.uint8
    assert found.id.values.tolist() == IDS.tolist()
    assert found.segmentation.data.chunksize == (1, 3, 12, 16)
    assert found.image.attrs["layer_type"] == "image"
    again = ix.export(ds, tmp_path / "boxes.zarr")
    assert (again.regions, again.skipped) == (0, 12)
    assert os.listdir(tmp_path) == ["boxes.zarr"]


def test_an_export_reads_each_chunk_once(tmp_path):
    counted_source.READS.clear()
    ix.export(boxes().segmentation, tmp_path / "boxes.zarr")
    assert set(counted_source.READS.values()) == {1}


@pytest.mark.parametrize("target", ["boxes.zarr", "gallery/{cutout:05d}.png", "gallery.html"])
def test_an_interrupted_export_continues_and_equals_an_uninterrupted_one(tmp_path, target, stop_after, monkeypatch):
    array = boxes(4).segmentation if target.endswith("zarr") else pictures(4)
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    whole.mkdir(), broken.mkdir()
    ix.export(array, whole / target)
    stop_after(9)
    with pytest.raises(KeyboardInterrupt):
        ix.export(array, broken / target, workers=1)
    monkeypatch.undo()
    final = broken / target
    assert target.endswith("png") or not final.exists()
    report = ix.export(array, broken / target)
    assert report.skipped == 16
    assert report.regions + report.skipped == 24
    for file in sorted(p for p in whole.rglob("*") if p.is_file() and ".imageryxr" not in p.parts):
        assert (broken / file.relative_to(whole)).read_bytes() == file.read_bytes()
    assert not list(broken.glob(".*partial"))


def test_pictures_are_named_by_columns_and_show_the_slice_through_the_centre(tmp_path):
    array = pictures()
    ix.export(array, tmp_path / "gallery" / "{id}_{kind}.png")
    for i, id_ in enumerate(IDS.tolist()):
        with Image.open(tmp_path / "gallery" / f"{id_}_{'abcabc'[i]}.png") as picture:
            np.testing.assert_array_equal(np.asarray(picture), array.values[i, 1])
    os.unlink(tmp_path / "gallery" / "7_a.png")
    report = ix.export(array, tmp_path / "gallery" / "{id}_{kind}.png")
    assert (report.regions, report.skipped) == (1, 5)


def test_files_of_other_programs_are_not_replaced_without_overwrite(tmp_path):
    array = pictures()
    for target, name in (("g/{cutout}.png", "g/2.png"), ("page.html", "page.html"), ("b.zarr", "b.zarr")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("mine")
        with pytest.raises(TargetExistsError, match="give overwrite=True"):
            ix.export(array, tmp_path / target)
        assert (tmp_path / name).read_text() == "mine"
        ix.export(array, tmp_path / target, overwrite=True)
        assert (tmp_path / name).is_dir() or (tmp_path / name).read_bytes() != b"mine"


class _Page(HTMLParser):
    def __init__(self):
        super().__init__()
        self.figures, self.options, self.addresses = [], [], []

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.addresses += [v for k, v in attrs.items() if k in ("src", "href")]
        if tag == "figure":
            self.figures.append(attrs["title"])

    def handle_data(self, data):
        if data in ("id", "kind", "cutout", "center_x"):
            self.options.append(data)


def test_a_page_contains_all_pictures_and_escapes_the_table(tmp_path):
    array = pictures().assign_coords(note=("cutout", ["</script><b>", '"', "'", "&", "<", "plain"]))
    ix.export(array, tmp_path / "gallery.html")
    text = (tmp_path / "gallery.html").read_text()
    page = _Page()
    page.feed(text)
    assert len(page.figures) == 6
    assert "</script><b>" in page.figures[0]
    assert "<b>" not in text
    assert page.addresses == []
    assert {"id", "kind", "cutout", "center_x"} <= set(page.options)


def test_a_label_that_is_not_a_column_is_an_error_before_any_picture_is_drawn(tmp_path):
    counted_source.READS.clear()
    with pytest.raises(OptionError, match="labels='knd' is not a column"):
        ix.export(pictures(), tmp_path / "gallery.html", labels="knd")
    with pytest.raises(OptionError, match=r"give the name of one: "):
        ix.export(pictures(), tmp_path / "gallery.html", labels=["id", "kind"])
    assert not counted_source.READS
    assert list(tmp_path.iterdir()) == []


def test_captions_of_missing_values_are_empty(tmp_path):
    kinds = np.array(["a", None, "b", None, "a", None], object)
    ix.export(pictures().assign_coords(kind=("cutout", kinds)), tmp_path / "gallery.html", labels="kind")
    text = (tmp_path / "gallery.html").read_text()
    assert "None" not in text
    assert text.count("<figcaption></figcaption>") == 3


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
# A script that scrolls to the end until only the last pictures are loaded, and then posts what the page shows.
PROBE = """<script>
addEventListener("load", () => { setInterval(() => {
  scrollTo(0, document.body.scrollHeight);
  const images = [...document.querySelectorAll("img")], last = images.at(-1);
  if (last.naturalWidth && !images[0].src) fetch("/shown", {method: "POST", body: JSON.stringify({
    width: last.naturalWidth, order: images.map(i => +i.dataset.row), sorted: document.body.dataset.sorted})});
}, 50) });
</script>"""


@contextmanager
def serving_page(text):
    """Serve a page; yield its URL and a queue of the data that its script posts."""
    sent = queue.Queue()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.answer(text.encode())

        def do_POST(self):
            sent.put(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.answer(b"")

        def answer(self, body):
            self.send_response(200)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/gallery.html", sent
        finally:
            server.shutdown()


@pytest.mark.filterwarnings("ignore:size=.*is larger than the volume")
@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")
def test_a_browser_sorts_the_page_exactly_and_loads_pictures_when_they_are_scrolled_into_view(tmp_path):
    table = {"x": np.full(120, 60), "y": np.full(120, 90), "z": np.full(120, 320)}
    ids = np.uint64(2**64 - 1) - np.random.default_rng(0).permutation(120).astype(np.uint64)
    cut = ix.cutouts(counted_source.array_in_memory("image"), {**table, "id": ids}, (64, 64))
    ix.export(ix.to_rgba(cut), tmp_path / "gallery.html")
    text = (tmp_path / "gallery.html").read_text().replace("</body>", PROBE + "</body>")
    with serving_page(text) as (address, sent):
        browser = subprocess.Popen(
            [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--window-size=800,600", "--no-first-run",
             "--remote-debugging-port=0", f"--user-data-dir={tmp_path / 'profile'}", f"{address}#sort=id"],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        try:
            shown = sent.get(timeout=120)
        finally:
            os.killpg(browser.pid, signal.SIGKILL)
            browser.wait()
    assert shown["sorted"] == "id"
    assert shown["order"] == np.argsort(ids, kind="stable").tolist()
    assert shown["width"] == 64


def test_a_plan_counts_the_chunks_that_an_export_reads(tmp_path):
    cut = boxes().segmentation
    counted_source.READS.clear()
    plan = ix.plan_export(cut, tmp_path / "boxes.zarr")
    assert not counted_source.READS
    cut.compute()
    assert plan.requests == sum(counted_source.READS.values())
    assert plan.cutouts == 6
    assert plan.bytes_to_write == cut.nbytes
    assert plan.bytes_to_read >= plan.requests
    drawn = ix.plan_export(pictures(), tmp_path / "gallery.html")
    assert drawn.requests == 2 * plan.requests
    assert "6 cutouts; reads" in repr(drawn)


def test_a_montage_shows_the_central_slice_of_each_cutout_labelled_by_a_column():
    sheet = ix.montage(pictures(), columns=4, spacing=2)
    assert sheet.size == (4 * 16 + 3 * 2, 2 * 12 + 2)
    np.testing.assert_array_equal(np.asarray(sheet)[:12, :16], pictures().values[0, 1, ..., :3])
    table = {"x": CENTERS[:, 0], "y": CENTERS[:, 1], "z": CENTERS[:, 2], "id": IDS % 10}
    large = ix.to_rgba(ix.cutouts(counted_source.array_in_memory("image"), table, (40, 40)))
    assert ix.montage(large, columns=3, labels="id", label_size=10).size == (140, 90)
    with pytest.raises(OptionError, match="is not a column of the tiles; give"):
        ix.montage(pictures(), labels="colour")


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("ftp://host/boxes.zarr", "cannot be written to"),
        ("boxes.tif", "is not a format of cutouts"),
        ("gallery.png", "is not a format of cutouts"),
        ("gallery/{name}.png", "has the unknown field {name}; the table has"),
        ("gallery/{kind}.png", "gives two cutouts the name"),
    ],
)
def test_unsupported_targets_and_patterns_of_cutouts_are_errors(tmp_path, target, message):
    with pytest.raises(OptionError, match=message):
        ix.export(pictures(), target if "://" in target else tmp_path / target)


@pytest.mark.parametrize("target", ["boxes.zarr", "g/{cutout}.png", "gallery.html"])
def test_a_folder_that_cannot_be_written_is_an_imagery_error(target):
    array = boxes().segmentation if target.endswith("zarr") else pictures()
    with pytest.raises(TargetError, match="could not write /dev/null/"):
        ix.export(array, f"/dev/null/{target}")


def test_a_full_disk_leaves_no_incomplete_file_and_the_error_does_not_call_the_target_untouched(tmp_path, monkeypatch):
    target = tmp_path / "g" / "{cutout}.png"
    ix.export(pictures(), target)
    write = Path.write_bytes

    def write_part(path, data):
        if not data.startswith(b"\x89PNG"):
            return write(path, data)
        write(path, data[:20])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", write_part)
    with pytest.raises(TargetError, match="disk is full") as caught:
        ix.export(255 - pictures(), target, overwrite=True)
    assert "untouched" not in str(caught.value)  # the previous pictures are deleted first
    assert not [file for folder in tmp_path.rglob("new-*") for file in folder.iterdir()]


@pytest.mark.parametrize("target", ["boxes.zarr", "g/{cutout}.png", "gallery.html"])
def test_a_selection_without_cutouts_is_an_error(tmp_path, target):
    with pytest.raises(LayerError, match="has no cutouts to write"):
        ix.export(pictures().isel(cutout=[]), tmp_path / target)


def test_a_segmentation_or_a_dataset_as_pictures_is_an_error(tmp_path):
    with pytest.raises(LayerError, match="draw it first with overlay"):
        ix.export(boxes().segmentation, tmp_path / "gallery.html")
    with pytest.raises(LayerError, match="a Dataset with the variables"):
        ix.export(boxes(), tmp_path / "gallery.html")
    with pytest.raises(OptionError, match="memory=… is not an option of cutouts"):
        ix.export(pictures(), tmp_path / "gallery.html", memory="4 GB")


def test_a_name_in_the_table_cannot_leave_the_folder(tmp_path):
    array = pictures().assign_coords(kind=("cutout", ["../x", *"bcdef"]))
    with pytest.raises(OptionError, match="cannot be part of a file name"):
        ix.export(array, tmp_path / "gallery" / "{kind}.png")


def test_the_progress_bar_counts_the_cutouts_that_are_written(tmp_path, capsys):
    seen = []
    with report_progress_to(seen.append):
        ix.export(boxes(), tmp_path / "boxes.zarr", progress=True)
    assert "12/12" in capsys.readouterr().err.rsplit("\r", 1)[1]
    assert seen[-1] == 1


@pytest.mark.fast_forms(1)
@pytest.mark.parametrize("resume", [True, False])
def test_an_interrupted_overwrite_has_removed_all_previous_pictures(tmp_path, stop_after, monkeypatch, resume):
    target = tmp_path / "gallery" / "{cutout}.png"
    ix.export(pictures(4).isel(y=slice(0, 4)), target)
    stop_after(9)
    with pytest.raises(KeyboardInterrupt):
        ix.export(pictures(4), target, overwrite=True, workers=1)
    monkeypatch.undo()
    report = ix.export(pictures(4), target, resume=resume)
    assert report.regions + report.skipped == 24
    assert (report.skipped > 0) == resume
    for i, plane in enumerate(pictures(4).isel(z=1).values):
        with Image.open(tmp_path / "gallery" / f"{i}.png") as picture:
            np.testing.assert_array_equal(np.asarray(picture), plane)


def picture_without_some_ids():
    """Return a picture of 24 cutouts, two of which do not contain their requested id."""
    ds = boxes(4)
    own = ds.segmentation.values[:, 1, 6, 8].copy()
    own[[3, 17]] = 2**64 - 2
    ds = ds.assign_coords(own=("cutout", own))
    return ix.overlay(ds.image, ds.segmentation, ids="own", colors="red")


@pytest.mark.parametrize("client", ["threads", pytest.param("processes", marks=pytest.mark.slow)])
def test_cutouts_without_their_ids_are_reported_once(tmp_path, client):
    with pytest.warns(MissingIdsWarning, match="2 of 24 cutouts do not contain their own, e.g. cutout 3: ") as caught:
        ix.export(picture_without_some_ids(), tmp_path / "{cutout}.png", client=client, workers=2, progress=False)
    assert len([w for w in caught if issubclass(w.category, MissingIdsWarning)]) == 1
    assert not [name for name in os.environ if name.startswith("IMAGERYXR_CUTOUT_IDS")]


def test_two_concurrent_exports_each_report_their_missing_ids(tmp_path, monkeypatch):
    both, first_ended = threading.Barrier(2), threading.Event()
    original, writing = writers.PictureWriter.write, []

    def write(self, rows, block):
        is_second = "second" in str(self.data)
        if is_second not in writing:
            writing.append(is_second)
            both.wait(60)
        if is_second:
            assert first_ended.wait(60)
        original(self, rows, block)

    def run(name):
        ix.export(picture_without_some_ids(), tmp_path / name / "{cutout}.png", workers=1, progress=False)

    def run_both():
        with ThreadPoolExecutor(2) as pool:
            runs = [pool.submit(run, name) for name in ("first", "second")]
            runs[0].result()
            first_ended.set()
            runs[1].result()

    monkeypatch.setattr(writers.PictureWriter, "write", write)
    with pytest.warns(MissingIdsWarning) as caught:
        run_both()
    assert dask.config.get("scheduler", None) is None
    texts = [str(w.message) for w in caught if issubclass(w.category, MissingIdsWarning)]
    assert [text.split(",")[0] for text in texts] == 2 * ["2 of 24 cutouts do not contain their own"]


def test_a_resumed_export_reports_the_cutouts_of_its_run(tmp_path, monkeypatch):
    drawn, original, written = picture_without_some_ids(), writers.PictureWriter.write, []

    def write(self, rows, block):
        if written:
            raise KeyboardInterrupt
        written.extend(rows)
        original(self, rows, block)

    with monkeypatch.context() as patch:
        patch.setattr(writers.PictureWriter, "write", write)
        with pytest.raises(KeyboardInterrupt):
            ix.export(drawn, tmp_path / "{cutout}.png", progress=False, workers=1)
    with pytest.warns(MissingIdsWarning, match="of [0-9]+ cutouts do not contain .* written by an earlier run"):
        ix.export(drawn, tmp_path / "{cutout}.png", progress=False)
