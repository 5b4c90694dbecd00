"""Lookup of tokens, errors of denied requests, and secrecy of tokens."""

from __future__ import annotations

import copy
import json
import logging
import os
import pickle
import subprocess
import traceback

import cloudpickle
import numpy as np
import pytest

import imageryxr as ix
from imageryxr.core.bbox import IndexBox
from imageryxr.sources.fetch.auth import Token, find_token
from imageryxr.sources.resolve import resolve_source
from tests.support.cave import BOX, HASTY, NOW, PART, utc, voxels
from tests.support.cave_server import DATASTACK, FORBIDDEN, MERGE, NO_TERMS, TABLE, TOKEN
from tests.support.processes import python
from tests.support.source_suite import serving

OTHER = "abcdefabcdefabcdefabcdefabcdefab"
SECRETS = (TOKEN, OTHER, FORBIDDEN, NO_TERMS)


@pytest.fixture
def home(tmp_path, monkeypatch):
    """Return a home folder with an empty folder of secrets, and clear the environment."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("CAVE_TOKEN", raising=False)
    monkeypatch.delenv("CLOUD_VOLUME_DIR", raising=False)
    folder = tmp_path / ".cloudvolume" / "secrets"
    folder.mkdir(parents=True)
    return folder


def write_token(folder, token, name="cave-secret.json"):
    (folder / name).write_text(json.dumps({"token": token}))


def seg_of(cave, **options):
    return ix.open_segmentation(cave.table, timestamp=utc(NOW), bbox=BOX, connection=HASTY, **options)


# ---------------------------------------------------------------------------------------------------------
# lookup of tokens


class Client:
    def __init__(self, token):
        self.auth = type("Auth", (), {"token": token})


def test_tokens_are_found_in_order_of_precedence(home, monkeypatch):
    assert find_token("host:1") is None
    names = ["chunkedgraph-secret.json", "cave-secret.json", "host:1-cave-secret.json"]
    for number, name in enumerate(names):
        write_token(home, f"{number}" * 32, name)
        assert find_token("host:1").headers == {"Authorization": "Bearer " + f"{number}" * 32}
        assert find_token("host:1").origin == str(home / name)
    assert find_token("other").headers == {"Authorization": "Bearer " + "1" * 32}
    monkeypatch.setenv("CAVE_TOKEN", "3" * 32)
    assert find_token("host:1").headers["Authorization"].endswith("3" * 32)
    assert find_token("host:1", client=Client("4" * 32)).headers["Authorization"].endswith("4" * 32)
    assert find_token("host:1", client=Client(None)).origin == "CAVE_TOKEN"
    given = find_token("host:1", given="5" * 32, client=Client("4" * 32))
    assert given.headers["Authorization"].endswith("5" * 32)
    assert given.origin == "token="


def test_the_folder_of_cloudvolume_is_searched(home, monkeypatch, tmp_path):
    monkeypatch.setenv("CLOUD_VOLUME_DIR", str(tmp_path / "elsewhere"))
    (tmp_path / "elsewhere" / "secrets").mkdir(parents=True)
    write_token(home, TOKEN)
    write_token(tmp_path / "elsewhere" / "secrets", OTHER)
    assert find_token("h").headers["Authorization"].endswith(OTHER)
    # caveclient ignores that variable and writes its files in the home directory
    for path in (tmp_path / "elsewhere" / "secrets").iterdir():
        path.unlink()
    assert find_token("h").headers["Authorization"].endswith(TOKEN)


@pytest.mark.parametrize("way", ["argument", "variable", "file", "host's file"])
def test_a_token_from_each_place_opens_a_layer(cave, home, monkeypatch, way):
    options = {}
    if way == "argument":
        options = {"token": TOKEN}
        monkeypatch.setenv("CAVE_TOKEN", OTHER)
    elif way == "variable":
        monkeypatch.setenv("CAVE_TOKEN", TOKEN)
        write_token(home, OTHER)
    elif way == "file":
        write_token(home, TOKEN)
    else:
        write_token(home, OTHER)
        write_token(home, TOKEN, f"127.0.0.1:{cave.server_port}-cave-secret.json")
    np.testing.assert_array_equal(seg_of(cave, **options).values, cave.truth(NOW, PART))
    tree = ix.open_datastack(DATASTACK, server_address=cave.url, bbox=BOX, timestamp=utc(NOW), **options)
    np.testing.assert_array_equal(tree["segmentation/segmentation"].values, cave.truth(NOW, PART))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not JSON"),
        ('{"key": "x"}', "contains no token"),
        ("[1]", "contains no token"),
        ('{"token": "a b"}', "is not valid"),
    ],
)
def test_invalid_token_files_are_errors(cave, home, text, message):
    (home / "cave-secret.json").write_text(text)
    with pytest.raises(ix.errors.AuthError, match=message) as caught:
        seg_of(cave)
    assert "cave-secret.json" in str(caught.value)


@pytest.mark.parametrize("token", ["", "  ", "two words", "line\nbreak", "ümlaut", 17])
def test_invalid_tokens_are_errors(cave, token):
    with pytest.raises(ix.errors.InvalidTokenError, match="the token from token= is not valid") as caught:
        seg_of(cave, token=token)
    assert not str(token).strip() or str(token) not in str(caught.value)


# ---------------------------------------------------------------------------------------------------------
# denied requests


CASES = {
    "missing": (None, ix.errors.MissingTokenError, ["none was found", "token=…", "CAVE_TOKEN", "-cave-secret.json", "/settings/tokens"]),
    "wrong": (OTHER, ix.errors.InvalidTokenError, ["rejected the token from token=", "/settings/tokens"]),
    "forbidden": (FORBIDDEN, ix.errors.ForbiddenError, ["no permission to read", "missing permission: view", "request it"]),
    "terms": (NO_TERMS, ix.errors.TermsError, ["has not accepted the terms of service", "/auth/tos/1"]),
}  # fmt: skip


WAYS = {
    "table": lambda cave, token, seg: seg_of(cave, token=token),
    "datastack": lambda cave, token, seg: ix.open_datastack(DATASTACK, server_address=cave.url, token=token),
    "reading": lambda cave, token, seg: seg.compute(scheduler="synchronous"),
    "ids": lambda cave, token, seg: ix.open_segmentation(seg_source(seg), ids=[cave.graph.merged]),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("way", WAYS)
def test_each_denied_request_names_a_remedy(cave, home, monkeypatch, case, way, caplog):
    import webbrowser

    monkeypatch.setattr(webbrowser, "open", lambda *a, **k: pytest.fail("a browser was opened"))
    token, error, words = CASES[case]
    seg = None
    if way in ("reading", "ids"):
        # the token is valid while the layer is opened, and rejected afterwards
        token = token or OTHER
        error, words = CASES["wrong" if case == "missing" else case][1:]
        with monkeypatch.context() as before:
            before.setitem(cave.tokens, token, "ok")
            seg = seg_of(cave, token=token)
    with caplog.at_level(logging.DEBUG), pytest.raises(error) as caught:
        WAYS[way](cave, token, seg)
    assert isinstance(caught.value, PermissionError)
    for word in words:
        assert word in str(caught.value)
    output = "".join(traceback.format_exception(caught.value)) + caplog.text
    assert not any(secret in output for secret in SECRETS)


def test_an_exception_of_a_client_is_a_server_error(cave, home):
    class Info:
        def get_datastack_info(self):
            raise OSError(f"401 Client Error: Unknown token {TOKEN}")

    client = Client(TOKEN)
    client.datastack_name, client.server_address, client.info = DATASTACK, cave.url, Info()
    with pytest.raises(
        ix.errors.ServerError, match="the Client returned no info.*OSError: 401 Client Error.*create a new client"
    ) as caught:
        ix.open_datastack(client)
    assert TOKEN not in "".join(traceback.format_exception(caught.value))
    client.info.get_datastack_info = lambda: None
    with pytest.raises(ix.errors.ServerError, match="its info is a NoneType"):
        ix.open_datastack(client)


def seg_source(seg):
    """Return the source of an array."""
    from imageryxr.graph.to_dask import expr_of

    expr = expr_of(seg.data)[0]
    while not hasattr(expr, "source"):
        expr = expr.inputs[0]
    return expr.source


def test_middleauth_images_receive_the_token(cave, home):
    cave.secret_data = True
    url = f"precomputed://middleauth+{cave.url}/data/em"
    np.testing.assert_array_equal(ix.open_image(url, token=TOKEN, bbox=BOX).values, cave.tissue.em[PART])
    for case in ("missing", "wrong", "forbidden", "terms"):
        token, error, words = CASES[case]
        with pytest.raises(error) as caught:
            ix.open_image(url, token=token)
        assert words[0] in str(caught.value)


def test_only_requests_to_the_graph_carry_the_token(cave, home):
    ix.open_image(cave.image, token=TOKEN, bbox=BOX).compute()
    seg_of(cave, token=TOKEN).compute()
    for line in cave.log:
        assert (line.token is not None) == line.path.startswith("/segmentation")
    # the server redirects the request to its login page
    cave.log.clear()
    cave.fault("/segmentation/table", "login")
    with pytest.raises(ix.errors.InvalidTokenError, match="login page"):
        seg_of(cave, token=TOKEN)


def test_a_redirect_to_another_server_carries_no_token(cave, home):
    with serving(cave.folder) as other:
        cave.fault("/segmentation/table", "status", status=302, headers={"Location": f"{other.url}/em/info"})
        # the redirect leads to the info of another kind of layer
        with pytest.raises(ix.errors.SourceError, match="it has no 'graph'"):
            seg_of(cave, token=TOKEN)
        other.needs = f"Bearer {TOKEN}"
        with pytest.raises(ix.errors.InvalidTokenError, match="HTTP 401"):
            seg_of(cave, token=TOKEN)
        assert other.requested == ["/em/info", "/em/info"]


# ---------------------------------------------------------------------------------------------------------
# tokens are never shown or stored


def visible_text_of(array):
    """Return all texts that show an array, its graph or its source to a user."""
    graph = dict(array.__dask_graph__()) if array.__dask_graph__() is not None else {}
    texts = [repr(array), str(array.attrs), array._repr_html_(), repr(graph), repr(array.data), repr(array.data.dask)]
    source = seg_source(array)
    texts += [repr(source), str(source), repr(source.graph), repr(source.graph.token), str(vars(source)), source.name]
    return " ".join(texts)


def test_no_repr_or_message_shows_a_token(cave, home, caplog, capfd):
    write_token(home, OTHER)
    with caplog.at_level(logging.DEBUG):
        seg = seg_of(cave, token=TOKEN)
        picture = ix.overlay(ix.open_image(cave.image, bbox=BOX), seg)
        tree = ix.open_datastack(DATASTACK, server_address=cave.url, token=TOKEN)
        picture.compute()
    shown = visible_text_of(seg) + repr(tree) + tree._repr_html_() + repr(picture) + str(picture.attrs) + caplog.text
    shown += "".join(capfd.readouterr())
    assert not any(secret in shown for secret in SECRETS)


@pytest.mark.parametrize(("place", "status"), [("info", 500), ("roots_binary", 500), ("roots_binary", 403)])
def test_no_traceback_shows_a_token(cave, place, status):
    """IPython's verbose tracebacks, rich and error trackers show the local variables of every frame."""
    seg = seg_of(cave, token=TOKEN)
    cave.fault(place, "status", status=status)
    todo = {"info": lambda: seg_of(cave, token=Token(TOKEN, "token=")), "roots_binary": seg.compute}
    with pytest.raises((ConnectionError, OSError)) as caught:
        todo[place]()
    shown, error = [], caught.value
    while error is not None:
        frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
        ours = [f for f in frames if f"{os.sep}imageryxr{os.sep}" in f.f_code.co_filename]
        shown += [(f.f_code.co_name, name, repr(v)) for f in ours for name, v in list(f.f_locals.items())]
        error = error.__cause__ or error.__context__
    assert len(shown) > 20
    assert not [line for line in shown if TOKEN in line[2]]


def test_no_exported_file_contains_a_token(cave, tmp_path):
    em = ix.open_image(cave.image, bbox=BOX)
    seg = seg_of(cave, token=TOKEN)
    ix.export(ix.overlay(em, seg), tmp_path / "z{z}.png")
    ix.export(ix.overlay(em, seg), tmp_path / "a.ome.zarr")
    ix.export(seg, tmp_path / "ids.ome.zarr")
    ix.to_pil(ix.overlay(em, seg).isel(z=[0])).save(tmp_path / "a.png")
    seg.isel(z=0).to_dataset(name="s").to_zarr(tmp_path / "x.zarr", consolidated=False)
    files = [p for p in tmp_path.rglob("*") if p.is_file()]
    assert len(files) > 8
    assert not any(TOKEN.encode() in p.read_bytes() for p in files)


def test_a_stored_token_is_not_pickled(cave, home, monkeypatch):
    write_token(home, TOKEN)
    seg = seg_of(cave)
    monkeypatch.setenv("CAVE_TOKEN", TOKEN)
    for array in (seg, seg_of(cave)):
        for dump in (pickle.dumps, cloudpickle.dumps):
            for thing in (seg_source(array), array.data.dask, array, ix.overlay(None, array)):
                assert TOKEN.encode() not in dump(thing)
    given = pickle.dumps(seg_source(seg_of(cave, token=TOKEN)))
    assert given.count(TOKEN.encode()) == 1
    assert TOKEN not in repr(pickle.loads(given).graph.token)
    assert "token=" in repr(copy.deepcopy(pickle.loads(given).graph.token))


@pytest.mark.slow
def test_the_token_of_a_client_is_not_pickled(cave, home):
    from caveclient import CAVEclient

    client = CAVEclient(DATASTACK, server_address=cave.url, auth_token=TOKEN, write_server_cache=False)
    tree = ix.open_datastack(client, timestamp=utc(NOW), bbox=BOX)
    seg = tree["segmentation/segmentation"]
    blob = pickle.dumps(seg_source(seg))
    assert TOKEN.encode() not in blob
    assert TOKEN.encode() not in cloudpickle.dumps(tree)
    again = pickle.loads(blob)  # this process still has the client's token
    assert again == seg_source(seg)
    box = IndexBox((0, 0, 0), (3, 40, 40))
    np.testing.assert_array_equal(again.read(0, box), cave.truth(NOW, box.slices()))
    (home / "source").write_bytes(blob)
    code = "import pickle, sys; s = pickle.load(open(sys.argv[1], 'rb')); s.read(0, s.levels[0].grid.box)"
    process = python("-c", code, home / "source", stderr=subprocess.PIPE)
    _, errors = process.communicate()
    assert process.returncode == 1
    assert "MissingTokenError" in errors
    assert "on every worker" in errors


def test_workers_find_their_own_token(cave, home):
    write_token(home, TOKEN)
    seg = seg_of(cave)
    code = (
        "import pickle, sys, numpy as np; s = pickle.load(open(sys.argv[1], 'rb'));"
        "print(int(s.read(0, s.levels[0].grid.box).sum() % 2**61), s.graph.token)"
    )
    (home / "source").write_bytes(pickle.dumps(seg_source(seg)))
    process = python("-c", code, home / "source", stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    printed, errors = process.communicate()
    assert process.returncode == 0, errors
    total, token_text = printed.split(" ", 1)
    assert int(total) == int(cave.truth(NOW).sum() % 2**61)
    assert token_text.strip() == f"<token from {home / 'cave-secret.json'}>"


def test_sources_with_different_tokens_are_equal(cave):
    from dask.base import tokenize

    cave.tokens[OTHER] = "ok"
    one, two = (resolve_source(cave.table, None, token=t, timestamp=utc(MERGE)) for t in (TOKEN, OTHER))
    cave.tokens.pop(OTHER)
    assert one == two
    assert tokenize(one) == tokenize(two)
    assert hash(one) == hash(two)
    assert not isinstance(one.graph.token, str)
    assert isinstance(one.graph.token, Token)


def test_an_auth_error_of_a_worker_reaches_the_caller(cave):
    stale = ix.errors.StaleRootError("x", {1: [2]})
    again = pickle.loads(pickle.dumps(stale))
    assert (str(again), again.successors) == ("x", {1: [2]})
    with pytest.raises(ix.errors.SourceNotFoundError) as caught:
        ix.open_segmentation(cave.table.replace(TABLE, "none"), token=TOKEN, connection=HASTY)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)
    assert voxels((0, 0, 0), (1, 1, 1)).size_nm == (10, 10, 10)
