"""Runs and packages behind the server: the rows of `petriscope predict`, guarantees that are withdrawn, overlays, masks, and a
process that is told to stop."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import contextmanager
from http.client import HTTPResponse
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
from petriscope.ship.server.limits import Limits
from petriscope.ship.server.opening import Known, open_model, open_models
from petriscope.ship.server.running import Connection, Server, run
from petriscope.ship.server.trial import try_out
from petriscope.ship.server.web import create_app
from petriscope.trust.abstention import UNCLAIMED
from petriscope.trust.two_sample import joined
from petriscope.trust.verdict import WITHDRAWN
from serving import NOISE, Told, blobs, form, no_trial, png, serving


@pytest.fixture
def of_run(run_folder):
    return open_model(str(run_folder), "cpu")


@pytest.fixture
def packed(run_folder):
    """A package of the run, made once for all tests."""
    pytest.importorskip("onnxscript")
    folder = run_folder.parent / "packages" / "blobs"
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
    assert found["guarantee"]["state"] == "not tested" and found["notes"][0].startswith("answers need ")
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


def test_a_package_is_run_once_for_an_image(packed, monkeypatch):
    monkeypatch.setattr("petriscope.ship.server.watch.PAUSE", 0.0)
    model = open_model(str(packed))
    expected = model.traits(blobs(24, 7)[0])
    monkeypatch.setattr(model, "traits", None)

    async def ask():
        async with serving(model) as (client, gate):
            await client.post("/predict", files=form(*map(png, blobs(24, 7)[0])))
            lane = gate.lanes["blobs"]
            for _ in range(200):
                if lane.state().test.n == 24:
                    return list(lane.watch.recent.values())
                await asyncio.sleep(0.05)
            raise AssertionError("never compared")

    found = joined(asyncio.run(ask()))  # in the order in which they were decoded
    seen, expected = (each.take(np.lexsort(each.appearance.T)) for each in (found, expected))
    assert np.array_equal(seen.appearance, expected.appearance) and np.array_equal(seen.predicted, expected.predicted)


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
    with pytest.raises(PetriscopeError, match="the self-test failed: a file was decoded to other pixels"):
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
    assert not described["overlays"] and described["unshown"].startswith("it is a package")
    assert refused.status_code == 422 and "cannot show where it looks: it is a package" in refused.json()["error"]


KNOWN = {"prior": {"prior": "0=0.95,1=0.05"}, "scale": {"scale": 1.25}}


@pytest.mark.parametrize("known", KNOWN)
@pytest.mark.parametrize("source", ["run_folder", "packed"])
def test_what_is_known_of_classes_and_scale_holds_for_all_requests(source, known, request, run_folder, capsys):
    path, asked = request.getfixturevalue(source), KNOWN[known]
    model = open_model(str(path), "cpu", Known(**asked))
    assert f"note: {path.name}: " in capsys.readouterr().err
    try_out(model, 2)
    contents = list(map(png, blobs(6, 7)[0]))
    table = api.predict(run_folder, contents, device="cpu", max_error=0.05, set_coverage=0.9, **asked)

    async def ask():
        async with serving(model) as (client, _):
            answer = await client.post("/predict", files=form(*contents), params=ASKED)
            return answer.json(), (await client.get("/models")).json()["models"][0]

    found, described = asyncio.run(ask())
    assert described["assumed"] == table["assumed"][0] and described["assumed"]
    for row, (_, expected) in zip(found["rows"], table.iterrows(), strict=True):
        assert [row[name] for name in ("answer", "why", "set", "assumed")] == [
            expected[name] for name in ("answer", "why", "set", "assumed")
        ]
        assert row["probabilities"]["1"] == pytest.approx(expected["p_1"], abs=1e-5)
        assert ("outside" in row) == (known == "prior")


def test_what_is_known_is_refused_where_it_does_not_fit(run_folder):
    with pytest.raises(RequestError, match="cannot estimate the scale of images before they come in"):
        open_model(str(run_folder), "cpu", Known(scale="estimated"))
    with pytest.raises(RequestError, match="classes: the model has no class 'x'"):
        open_models([str(run_folder)], "cpu", Known(classes=["0,x"]))


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
    colors = np.array(mask.getpalette()[: 3 * len(served.classes)], np.uint8).reshape(-1, 3)
    assert served.colors == tuple("#" + color.tobytes().hex() for color in colors)
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


@contextmanager
def listening(model, limits=None):
    """A server of a model on a socket, in a thread of this process: its address, and the lane of the model."""
    gate = create_app([model], limits, attempt=no_trial)
    server = Server(uvicorn.Config(gate, port=0, http=Connection, log_config=None, lifespan="on"), gate)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            time.sleep(0.01)
        yield server.servers[0].sockets[0].getsockname(), gate.lanes[model.name]
    finally:
        server.should_exit = True
        thread.join()


def test_a_connection_without_a_request_is_closed(monkeypatch):
    monkeypatch.setattr("petriscope.ship.server.running.KEEP_ALIVE", 0.3)
    with listening(Told()) as (address, _):
        with socket.create_connection(address) as silent, socket.create_connection(address) as trickling:
            trickling.sendall(b"GET / HTTP/1.1\r\n")
            for each in (silent, trickling):
                each.settimeout(10)
                assert each.recv(100) == b""
        with httpx.Client(base_url=f"http://127.0.0.1:{address[1]}") as client:
            assert [client.get("/health/live").status_code for _ in range(3)] == [200] * 3


def post(address, path, *contents):
    """A client that has sent a whole request, and has not read the answer."""
    body = b"".join(
        b'--x\r\nContent-Disposition: form-data; name="file"; filename="%d.png"\r\n\r\n%s\r\n' % each
        for each in enumerate(contents)
    )
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/form-data; boundary=x\r\n"
    client = socket.create_connection(address)
    client.sendall(f"{head}Content-Length: {len(body) + 7}\r\n\r\n".encode() + body + b"--x--\r\n")
    return client


def until(condition):
    """Wait until a condition holds."""
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def test_images_whose_clients_have_left_make_room_and_are_not_predicted():
    model, small, large = Told(), NOISE, png(np.zeros((300, 300, 3), np.uint8))  # decoded by the loop, and by the pool

    with listening(model, Limits(queue=6, batch=2)) as (address, lane):

        def answered():
            found = lane.counters.requests.collect()[0].samples
            return sum(each.value for each in found if each.name.endswith("_total"))

        model.go.clear()
        honest = [post(address, "/predict", small, large)]
        assert model.begun.wait(10)
        until(lambda: lane.pending == 2)
        others = [post(address, "/predict", content) for content in (small, large, small, large)]
        until(lambda: lane.pending == 6)
        with post(address, "/predict", small) as refused:
            assert refused.recv(12) == b"HTTP/1.1 429"
        for client in others:
            client.close()
        until(lambda: lane.pending == 2)
        for place in range(60):
            post(address, "/predict", *([small] if place % 2 else [large, small, b"nothing"])).close()
        until(lambda: answered() == 65)
        assert lane.pending == 2
        honest.append(post(address, "/predict", small, large))
        until(lambda: lane.pending == 4)
        model.go.set()
        answers = []
        for client in honest:
            answers.append(HTTPResponse(client))
            answers[-1].begin()
            answers[-1] = answers[-1].status, [row["file"] for row in json.loads(answers[-1].read())["rows"]]
            client.close()
        text = httpx.get(f"http://127.0.0.1:{address[1]}/metrics").text
    assert answers == [(200, ["0.png", "1.png"])] * 2
    assert sum(model.batches) == 4, "nothing else was predicted"
    assert 'petriscope_images_total{model="told",result="answered"} 4.0' in text
    dropped = re.search(r'petriscope_images_dropped_total{model="told",why="client left"} ([0-9.]+)', text)
    assert dropped and float(dropped[1]) >= 4


def test_a_client_that_left_before_its_request_was_read_is_not_decoded_for():
    class Counting(Told):
        decoded = 0

        def decode(self, name, content):
            Counting.decoded += 1
            return super().decode(name, content)

    model, go = Counting(), threading.Event()
    with listening(model) as (address, lane):
        until(lambda: lane.ready)
        lane.loop.call_soon_threadsafe(go.wait, 20)  # as a busy server, which finds many requests at a time
        for _ in range(20):
            post(address, "/predict", NOISE).close()
        go.set()
        answer = httpx.post(f"http://127.0.0.1:{address[1]}/predict", files=form(NOISE), timeout=30)
    assert answer.status_code == 200
    assert (Counting.decoded, model.batches) == (1, [1])


def test_an_overlay_whose_client_has_left_is_not_made():
    class Slow(Told):
        looked = 0

        def overlay(self, image):
            Slow.looked += 1
            return image.pixels

    model = Slow()
    with listening(model) as (address, lane):
        model.go.clear()
        until(lambda: lane.ready)
        predicting = post(address, "/predict", NOISE)
        assert model.begun.wait(10)
        clients = [post(address, "/overlay", NOISE) for _ in range(3)]
        until(lambda: lane.calls == 3)
        for client in clients[1:]:
            client.close()
        until(lambda: lane.calls == 1)
        model.go.set()
        for client in (predicting, clients[0]):
            assert client.recv(12) == b"HTTP/1.1 200"
            client.close()
    assert Slow.looked == 1


def test_a_port_that_is_taken_is_a_sentence():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
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
        sys,
        "argv",
        ["petriscope", "serve", "a", "b", "--port", "1", "--body-mib", "2", "--batch", "4", "--prior", "0=1,1=2"],
    )
    with pytest.raises(SystemExit):
        cli.main()
    ((models, host, port, token, device, limits, *known),) = asked
    assert known == [None, ["0=1,1=2"], None]
    assert (models, host, port, token, device) == (["a", "b"], "127.0.0.1", 1, "t", "auto")
    assert (limits.body_bytes, limits.batch) == (2 << 20, 4)
