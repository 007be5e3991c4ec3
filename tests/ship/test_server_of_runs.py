"""Runs and packages behind the server: the rows of `petriscope predict`, guarantees that are withdrawn, overlays, masks, and a
process that is told to stop."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from io import BytesIO

import numpy as np
import pytest

pytest.importorskip("fastapi")
pytest.importorskip("prometheus_client")

import httpx
import uvicorn
from PIL import Image

from petriscope import api, cli
from petriscope.core.errors import PetriscopeError, RequestError
from petriscope.ship.server import start
from petriscope.ship.server.opening import open_model, open_models
from petriscope.ship.server.running import Connection, Server, run
from petriscope.ship.server.trial import try_out
from petriscope.ship.server.web import create_app
from petriscope.trust.abstention import UNCLAIMED
from petriscope.trust.verdict import WITHDRAWN
from serving import Told, blobs, form, no_trial, png, serving, train_on_blobs


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    return tmp_path_factory.mktemp("served")


@pytest.fixture
def run_folder(tiny_recipe, kept):
    """A run of two classes, trained once for all tests."""
    return kept / "blobs" if (kept / "blobs").exists() else train_on_blobs(tiny_recipe, kept)


@pytest.fixture
def of_run(run_folder):
    return open_model(str(run_folder), "cpu")


@pytest.fixture
def packed(run_folder, kept):
    """A package of the run, made once for all tests."""
    pytest.importorskip("onnxscript")
    folder = kept / "packages" / "blobs"
    return folder if folder.exists() else api.export(run_folder, folder, quiet=True).folder


@pytest.fixture(params=["of_run", "packed"])
def model(request):
    """The run behind the server, and its package, which answers alike."""
    found = request.getfixturevalue(request.param)
    return open_model(str(found)) if request.param == "packed" else found


ASKED = {"max_error": 0.05, "coverage": 0.9}


def test_rows_are_those_of_predict(model, run_folder):
    images = list(blobs(12, 7)[0])
    images.append(np.random.default_rng(1).integers(0, 256, images[0].shape, dtype=np.uint8))
    contents = [*map(png, images), b"nothing"]
    table = api.predict(run_folder, contents, device="cpu", max_error=0.05, set_coverage=0.9)

    async def ask():
        async with serving(model) as (client, _):
            return (await client.post("/predict", files=form(*contents), params=ASKED)).json()

    found = asyncio.run(ask())
    assert found["guarantee"]["state"] == "not tested" and found["notes"][0].startswith("answers need a confidence of")
    for row, (_, expected) in zip(found["rows"], table.iterrows(), strict=True):
        if isinstance(expected["error"], str):
            assert row["error"].split(" cannot")[1] == expected["error"].split(" cannot")[1]
            continue
        assert [row[name] for name in ("predicted", "answer", "why", "set")] == [
            expected[name] for name in ("predicted", "answer", "why", "set")
        ]
        assert row["confidence"] == pytest.approx(expected["confidence"], abs=1e-5)
        assert row["probabilities"]["1"] == pytest.approx(expected["p_1"], abs=1e-5)
    assert found["rows"][12]["ood"] > 1 and found["rows"][12]["why"].startswith("out of distribution")


def test_guarantees_are_withdrawn_after_images_unlike_val_and_come_back(model, monkeypatch, capfd):
    monkeypatch.setattr("petriscope.ship.server.watch.PAUSE", 0.0)
    monkeypatch.setattr("petriscope.ship.server.watch.MOST", 40)
    here, there = (list(map(png, blobs(40, 7, light)[0])) for light in (0, 25))

    async def ask():
        async with serving(model) as (client, _):

            async def predict(contents, **more):
                return (await client.post("/predict", files=form(*contents), params={**ASKED, **more})).json()

            async def compared():
                for _ in range(600):
                    (found,) = (await client.get("/models")).json()["models"]
                    if found["guarantee"]["since"] == 0 and found["guarantee"]["compared"] >= 40:
                        return found["guarantee"]
                    await asyncio.sleep(0.05)
                raise AssertionError("never compared")

            few = await predict(there[:2])
            await predict(here)
            like = await compared()
            before = await predict(there)
            unlike = await compared()
            after, all_the_same = await predict(there), await predict(there, without_guarantee=True)
            metrics = (await client.get("/metrics")).text
            plain = (await client.post("/predict", files=form(*there))).json()
            await predict(here)
            return few, like, before, unlike, after, all_the_same, metrics, plain, await compared()

    few, like, before, unlike, after, all_the_same, metrics, plain, again = asyncio.run(ask())
    assert few["guarantee"]["state"] == "not tested"
    assert like["state"] == "not withdrawn" == again["state"] and like["p"] > like["level"]
    assert before["guarantee"]["state"] == "not withdrawn"
    assert unlike["state"] == after["guarantee"]["state"] == "withdrawn"
    assert unlike["sentences"][0].startswith("GUARANTEES WITHDRAWN: these images are not like those")
    assert all(row["answer"] == "not sure" and row["why"].startswith(WITHDRAWN) for row in after["rows"])
    assert after["notes"] == [] and {row["set"] for row in after["rows"]} <= {"0; 1", "1; 0"}
    answered = [row for row in all_the_same["rows"] if row["answer"] != "not sure"]
    assert answered and all(row["why"] == UNCLAIMED for row in answered)
    assert "guarantee" not in plain and any(row["answer"] != "not sure" for row in plain["rows"])
    assert 'petriscope_guarantees_withdrawn{model="blobs"} 1.0' in metrics
    said = capfd.readouterr().err
    assert said.count('"guarantees withdrawn"') == said.count('"guarantees hold again"') == 1


def test_one_image_sent_many_times_is_one_image(model, monkeypatch):
    monkeypatch.setattr("petriscope.ship.server.watch.PAUSE", 0.0)
    there = png(blobs(1, 7, light=25)[0][0])

    async def ask():
        async with serving(model) as (client, gate):
            for _ in range(4):
                await client.post("/predict", files=form(*[there] * 10))
            await asyncio.sleep(0.3)
            return len(gate.lanes["blobs"].watch.recent), gate.lanes["blobs"].state().test

    count, test = asyncio.run(ask())
    assert count == 1 and test.not_tested == "1 image is too few; 20 are needed"


def test_models_of_one_name_are_refused(run_folder):
    with pytest.raises(RequestError, match="two models are called blobs"):
        open_models([str(run_folder), str(run_folder / "model.safetensors")])


def test_a_model_is_tried_before_it_serves(model, monkeypatch):
    try_out(model, 4)
    monkeypatch.setattr(type(model), "decode", lambda self, name, content: model_of_zeros(self))
    with pytest.raises(PetriscopeError, match="the self-test failed: a PNG file was decoded to other pixels"):
        try_out(model, 4)


def model_of_zeros(model):
    from petriscope.inference.decoding import DecodedFile

    zeros = np.zeros(model.shape, np.uint8)
    return DecodedFile(zeros, zeros, zeros.shape[:2])


def test_a_model_that_fails_its_trial_is_not_ready():
    def fail(served, batch):
        raise PetriscopeError("the self-test failed: so it does")

    async def ask():
        gate = create_app([Told()], attempt=fail)
        client = httpx.AsyncClient(transport=httpx.ASGITransport(gate), base_url="http://server")
        async with gate.app.router.lifespan_context(gate.app), client:
            while "being tried" in (answer := await client.get("/health/ready")).text:
                pass
            return answer, await client.get("/health/live"), await client.post("/predict", files=form(b"x"))

    ready, live, refused = asyncio.run(ask())
    assert ready.status_code == refused.status_code == 503 and live.status_code == 200
    assert "told cannot be used: the self-test failed: so it does" in ready.json()["error"]


def test_where_the_model_looked(of_run):
    image = blobs(1, 7)[0][0]

    async def ask():
        async with serving(of_run) as (client, _):
            both = [await client.post("/overlay", files=form(png(image)), params={"plain": plain}) for plain in (0, 1)]
            return [np.asarray(Image.open(BytesIO(each.content))) for each in both]

    looked, plain = asyncio.run(ask())
    assert np.array_equal(plain, image)
    assert looked.shape == (224, 224, 3)


def test_a_package_cannot_show_where_it_looks(packed):
    async def ask():
        async with serving(open_model(str(packed))) as (client, _):
            refused = await client.post("/overlay", files=form(png(blobs(1, 7)[0][0])))
            return refused, (await client.get("/models")).json()["models"][0]

    refused, described = asyncio.run(ask())
    assert not described["overlays"]
    assert refused.status_code == 422 and "cannot show where it looks" in refused.json()["error"]


def test_a_package_is_verified_before_it_serves(packed, tmp_path):
    changed = shutil.copytree(packed, tmp_path / "changed")
    (changed / "more.txt").write_text("")
    with pytest.raises(PetriscopeError, match=r"1 added \(more.txt\)"):
        open_model(str(changed))


def test_masks_have_the_size_of_the_image_and_its_classes(tiny_recipe, tmp_path):
    from petriscope.core.recipe import load_recipe

    recipe = load_recipe(
        "synthetic-terrain/unet",
        [
            *("data.source=synthetic-terrain:24", "data.size=32", "training.epochs=1", "evaluation.stress=off"),
            *("training.device=cpu", "training.precision=fp32", "evaluation.bootstrap=100"),
        ],
    )
    folder = api.train(recipe, tmp_path / "terrain", quiet=True).folder
    served = open_model(str(folder), "cpu")
    try_out(served, 2)
    content = png(np.random.default_rng(0).integers(0, 256, (40, 56, 3), dtype=np.uint8))

    async def ask():
        async with serving(served) as (client, _):
            predicted = await client.post("/predict", files=form(content))
            refused = await client.post("/predict", files=form(content), params={"max_error": 0.1})
            return predicted.json(), refused, await client.post("/overlay", files=form(content))

    found, refused, overlaid = asyncio.run(ask())
    (row,) = found["rows"]
    mask = Image.open(BytesIO(base64.b64decode(row["mask"])))
    assert mask.size == (56, 40) and mask.mode == "P"
    assert np.asarray(mask).max() < len(served.classes) and sum(row["shares"].values()) == pytest.approx(1)
    assert refused.status_code == 422 and "this model predicts masks" in refused.json()["error"]
    assert Image.open(BytesIO(overlaid.content)).size == (32, 32)


@pytest.fixture
def process(run_folder):
    """A server in a process of its own: the address, and the process."""
    words = [sys.executable, "-m", "petriscope", "serve", str(run_folder), "--port", "0", "--device", "cpu"]
    environment = {**os.environ, "PETRISCOPE_TOKEN": "secret", "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(words, env=environment, stderr=subprocess.PIPE, text=True) as server:
        try:
            assert server.stderr is not None
            line = json.loads(server.stderr.readline())
            assert line["event"] == "listening"
            yield line["url"], server
        finally:
            server.kill()


def test_a_process_that_is_told_to_stop_answers_every_request_that_it_accepted(process):
    url, server = process
    content = png(blobs(1, 7)[0][0])
    headers = {"Authorization": "Bearer secret"}
    log = []
    reader = threading.Thread(target=lambda: log.extend(server.stderr))
    reader.start()
    with httpx.Client(base_url=url, headers=headers, timeout=30) as client:
        for _ in range(300):
            if client.get("/health/ready").status_code == 200:
                break
            time.sleep(0.1)
        assert client.post("/predict", files=form(content)).status_code == 200
        assert httpx.get(f"{url}models").status_code == 401
    outcomes: Counter[object] = Counter()

    until = time.monotonic() + 60

    def load():
        with httpx.Client(base_url=url, headers=headers, timeout=30) as client:
            while time.monotonic() < until:
                try:
                    outcomes[client.post("/predict", files=form(content)).status_code] += 1
                except httpx.ConnectError:
                    outcomes["refused"] += 1
                    return
                except (httpx.ReadError, httpx.RemoteProtocolError):
                    outcomes["closed"] += 1

    threads = [threading.Thread(target=load) for _ in range(4)]
    for thread in threads:
        thread.start()
    while outcomes[200] < 10 and time.monotonic() < until:
        time.sleep(0.01)
    server.send_signal(signal.SIGTERM)
    for thread in threads:
        thread.join()
    assert server.wait(30) == 0
    reader.join()
    # A connection is closed if the server never read its request; that can happen once per client, at the very end.
    assert outcomes.keys() <= {200, 503, "refused", "closed"} and outcomes["closed"] <= len(threads), outcomes
    assert outcomes[200] >= 10 and outcomes[503] > 0, outcomes
    lines = [json.loads(line) for line in log]
    seen = Counter(line["status"] for line in lines if line.get("path") == "/predict")
    assert (seen[200], seen[503]) == (outcomes[200] + 1, outcomes[503]), "all that the server saw came back"
    assert lines[-1]["event"] == "stopped"


def test_a_connection_without_a_request_is_closed(monkeypatch):
    monkeypatch.setattr("petriscope.ship.server.running.KEEP_ALIVE", 0.3)
    gate = create_app([Told()], attempt=no_trial)
    server = Server(uvicorn.Config(gate, port=0, http=Connection, log_config=None, lifespan="on"), gate)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            time.sleep(0.01)
        address = server.servers[0].sockets[0].getsockname()
        with socket.create_connection(address) as silent, socket.create_connection(address) as trickling:
            trickling.sendall(b"GET / HTTP/1.1\r\n")
            for each in (silent, trickling):
                each.settimeout(10)
                assert each.recv(100) == b""
        with httpx.Client(base_url=f"http://127.0.0.1:{address[1]}") as client:
            assert [client.get("/health/live").status_code for _ in range(3)] == [200] * 3
    finally:
        server.should_exit = True
        thread.join()


def test_a_port_that_is_taken_is_a_sentence(process):
    url, _ = process
    port = int(url.rstrip("/").rpartition(":")[2])
    with pytest.raises(PetriscopeError, match=f"cannot listen on 127.0.0.1, port {port}: .*choose another"):
        run(None, "127.0.0.1", port)


def test_a_missing_package_is_a_sentence(monkeypatch, run_folder):
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    with pytest.raises(RequestError, match=r"pip install 'petriscope\[serve\]' \(uvicorn is missing\)"):
        start.serve([str(run_folder)])


def test_an_open_address_without_a_token_is_warned_of(monkeypatch, run_folder, capsys):
    monkeypatch.setattr("petriscope.ship.server.running.run", lambda gate, host, port: None)
    start.serve([str(run_folder)], host="0.0.0.0", device="cpu")
    assert "anybody who can reach 0.0.0.0, port 8080" in capsys.readouterr().err
    start.serve([str(run_folder)], host="0.0.0.0", device="cpu", token="t")
    start.serve([str(run_folder)], device="cpu")
    assert capsys.readouterr().err == ""


def test_the_command_passes_its_options_on(monkeypatch):
    asked = []
    monkeypatch.setattr(api, "serve", lambda *args: asked.append(args))
    monkeypatch.setattr(cli, "_settle_process", lambda: None)
    monkeypatch.setenv("PETRISCOPE_TOKEN", "t")
    monkeypatch.setattr(
        sys, "argv", ["petriscope", "serve", "a", "b", "--port", "1", "--body-mib", "2", "--batch", "4"]
    )
    with pytest.raises(SystemExit):
        cli.main()
    ((models, host, port, token, device, limits),) = asked
    assert (models, host, port, token, device) == (["a", "b"], "127.0.0.1", 1, "t", "auto")
    assert (limits.body_bytes, limits.batch) == (2 << 20, 4)
