"""What the server takes and gives: every status with its sentence, batches, deadlines, the token, the log, and counts."""

from __future__ import annotations

import asyncio
import json
import re
import threading

import numpy as np
import pytest

pytest.importorskip("fastapi")
pytest.importorskip("prometheus_client")

from hypothesis import example, given, settings
from hypothesis import strategies as st

from petriscope.core.errors import RequestError
from petriscope.ship.server.lane import CALLS
from petriscope.ship.server.limits import Limits
from serving import NOISE, SIDE, Told, form, png, serving


def ask(requests, model=None, limits=None, token="", local=False):
    """What a server in this process answers to each of some requests, (method, path, options of httpx)."""

    async def run():
        async with serving(model or Told(), limits, token, local) as (client, _):
            return [await client.request(method, path, **more) for method, path, more in requests]

    return asyncio.run(run())


def one(method, path, model=None, limits=None, token="", **more):
    return ask([(method, path, more)], model, limits, token)[0]


SMALL = Limits(file_bytes=2000, files=2, body_bytes=5000, pixels=400, held_bytes=10_000, queue=2)
FORM = {"Content-Type": "multipart/form-data; boundary=x"}


@pytest.mark.parametrize(
    "limit", [{"deadline": float("inf")}, {"deadline": float("nan")}, {"batch": 10**12}, {"files": 0}]
)
def test_a_limit_that_cannot_be_kept_is_refused(limit):
    with pytest.raises(RequestError, match=f"limit {next(iter(limit))} must be more than 0 and at most"):
        Limits(**limit)


async def chunks(size, of=500):
    for _ in range(0, size, of):
        yield b"\0" * of


REFUSED = {
    "form too large": ({"files": form(b"\0" * 1500, b"\0" * 6000)}, 413, "body_bytes", "larger than 5,000 bytes"),
    "file too large": ({"files": form(b"\0" * 2500)}, 413, "file_bytes", "image file is larger than 2,000 bytes"),
    "too many files": ({"files": form(b"a", b"b", b"c")}, 413, "files", "may have 2 images"),
    "unannounced": ({"content": chunks(9000), "headers": {"Content-Type": "image/png"}}, 413, "file_bytes", "2,000"),
    "unannounced form": ({"content": chunks(9000), "headers": FORM}, 422, None, "cannot be read"),
    "no form": ({"json": {"a": 1}}, 415, None, "'application/json'; send images as multipart/form-data"),
    "no content type": ({"content": b"x"}, 415, None, "the content type is missing"),
    "no image": ({"data": {"max_error": "0.1"}, "files": []}, 415, None, "x-www-form-urlencoded"),
    "empty body": ({"content": b"", "headers": {"Content-Type": "image/png"}}, 422, None, "there is no image"),
    "no boundary": ({"content": b"x", "headers": {"Content-Type": "multipart/form-data"}}, 422, None, "no boundary"),
    "cut form": ({"content": b"--x\r\nContent-D", "headers": FORM}, 422, None, "cut off"),
    "unreadable": ({"files": form(b"nothing")}, 422, None, "0.png cannot be read as an image: not an image"),
    "too many pixels": ({"files": form(png(np.zeros((21, 20, 3), np.uint8)))}, 422, None, "more than the 0.0004 mega"),
    "option out of range": ({"files": form(NOISE), "params": {"max_error": 2}}, 422, None, "max_error: .*less than 1"),
    "option that is nan": ({"files": form(NOISE), "params": {"coverage": "nan"}}, 422, None, "coverage: "),
    "unknown option": ({"files": form(NOISE), "params": {"max_eror": 0.1}}, 422, None, "max_eror: there is no such"),
    "unknown field": ({"files": form(NOISE), "data": {"x": "1"}}, 422, None, "x: there is no such option"),
    "unknown model": (
        {"files": form(NOISE), "params": {"model": "tod"}},
        422,
        None,
        "no model 'tod'; did you mean told",
    ),
    "option twice": (
        {"files": form(NOISE), "params": {"max_error": [0.1, 0.2]}},
        422,
        None,
        "max_error is given twice",
    ),
    "option twice in the form": (
        {"files": form(NOISE), "data": {"model": ["told", "tod"]}},
        422,
        None,
        "model is given twice",
    ),
    "option in query and form": (
        {"files": form(NOISE), "params": {"max_error": 0.1}, "data": {"max_error": "0.2"}},
        422,
        None,
        "max_error is given twice",
    ),
    "no guarantee": ({"files": form(NOISE), "params": {"without_guarantee": True}}, 422, None, "needs max_error"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_refusal_says_in_a_sentence_which_limit_or_option(name):
    more, status, limit, sentence = REFUSED[name]
    answer = one("POST", "/predict", limits=SMALL, **more)
    found = answer.json()
    assert answer.status_code == status, found
    assert re.search(sentence, found["error"]) and found.get("limit") == limit
    assert answer.headers["content-type"] == "application/json"


def test_unknown_paths_and_methods_are_sentences_too():
    answers = ask([("GET", "/nope", {}), ("GET", "/predict", {}), ("PUT", "/models", {})])
    assert [answer.status_code for answer in answers] == [404, 405, 405]
    assert all("see /docs" in answer.json()["error"] for answer in answers)


def test_images_come_as_a_form_or_as_bytes():
    several, single = ask(
        [
            ("POST", "/predict", {"files": form(NOISE, NOISE), "data": {"model": "told"}}),
            ("POST", "/predict", {"content": NOISE, "headers": {"Content-Type": "image/png"}}),
        ]
    )
    assert [row["file"] for row in several.json()["rows"]] == ["0.png", "1.png"]
    found = single.json()
    assert (found["model"], found["fingerprint"], found["rows"][0]["file"]) == ("told", "0" * 64, "image")
    assert "guarantee" not in found, "nothing was to be guaranteed"


def test_one_small_image_is_decoded_where_its_request_is_read_and_others_by_the_pool():
    class Named(Told):
        def decode(self, name, content):
            self.seen.append(threading.current_thread().name)
            return super().decode(name, content)

    model = Named()
    model.seen = []
    large = png(np.zeros((300, 300, 3), np.uint8))  # of few bytes
    answers = ask([("POST", "/predict", {"files": form(*each)}) for each in ([NOISE], [large], [NOISE, NOISE])], model)
    assert [answer.status_code for answer in answers] == [200] * 3
    first, *others = model.seen
    assert first == threading.current_thread().name
    assert len(others) == 3 and all(name.startswith("decoding") for name in others)


def test_what_cannot_be_read_has_an_error_and_the_others_their_rows():
    rows = one("POST", "/predict", files=form(NOISE, b"nothing", NOISE)).json()["rows"]
    assert [row["error"] is None for row in rows] == [True, False, True]
    assert rows[1].keys() == {"file", "error"}


@pytest.mark.parametrize("start", (b"ZISRAWFILE", b"\xda\xce\xbe\x0a", b"\x70\x00\x00\x00\x10\x00\x00\x00\x2a"))
def test_files_of_makers_are_not_taken(start):
    (row,) = one("POST", "/predict", files=form(start + bytes(200))).json()["rows"]
    assert "which this server does not take; send it as TIFF or PNG" in row["error"]


def test_requests_that_wait_share_a_batch():
    model = Told()

    async def run():
        async with serving(model, Limits(batch=8)) as (client, _):
            model.go.clear()
            first = asyncio.create_task(client.post("/predict", files=form(NOISE)))
            await asyncio.to_thread(model.begun.wait, 10)
            rest = [asyncio.create_task(client.post("/predict", files=form(NOISE))) for _ in range(10)]
            while model_waiting(client) < 10:
                await asyncio.sleep(0.01)
            model.go.set()
            answers = await asyncio.gather(first, *rest)
            metrics = (await client.get("/metrics")).text
            return answers, metrics

    def model_waiting(client):
        gate = client._transport.app
        return lane_of(gate).waiting.qsize()

    answers, metrics = asyncio.run(run())
    assert all(answer.status_code == 200 for answer in answers)
    assert model.batches == [1, 8, 2]
    assert 'petriscope_batch_size_bucket{le="8.0",model="told"} 3.0' in metrics


def lane_of(gate):
    """The lane of the only model of a server."""
    (lane,) = gate.lanes.values()
    return lane


def test_a_full_queue_is_429_and_says_when_to_come_back():
    model = Told()

    async def run():
        async with serving(model, Limits(queue=3, files=3)) as (client, _):
            model.go.clear()
            waiting = asyncio.create_task(client.post("/predict", files=form(NOISE, NOISE)))
            await asyncio.to_thread(model.begun.wait, 10)
            refused = await client.post("/predict", files=form(NOISE, NOISE))
            model.go.set()
            return refused, await waiting, await client.post("/predict", files=form(NOISE, NOISE, NOISE))

    refused, *answered = asyncio.run(run())
    assert refused.status_code == 429 and refused.headers["retry-after"] == "1"
    assert refused.json() == {
        "error": "2 images are waiting for told, and 3 may; try again later",
        "limit": "queue",
    }
    assert [answer.status_code for answer in answered] == [200, 200]


def test_the_deadline_holds_while_images_wait_and_frees_their_place():
    model = Told()

    async def run():
        async with serving(model, Limits(deadline=0.2, queue=2)) as (client, gate):
            model.go.clear()
            late = await client.post("/predict", files=form(NOISE, NOISE))
            model.go.set()
            while lane_of(gate).pending:
                await asyncio.sleep(0.01)
            return late, await client.post("/predict", files=form(NOISE))

    late, answered = asyncio.run(run())
    assert late.status_code == 503 and late.json()["limit"] == "deadline"
    assert "within 0.2 s" in late.json()["error"]
    assert answered.status_code == 200


def test_a_body_that_does_not_arrive_is_408():
    async def slow():
        yield NOISE[:10]
        await asyncio.sleep(3)
        yield NOISE[10:]

    answer = one("POST", "/predict", limits=Limits(deadline=0.2), content=slow(), headers={"Content-Type": "image/png"})
    assert answer.status_code == 408 and answer.json()["limit"] == "deadline"


def test_memory_for_bodies_is_bounded_over_all_requests_and_given_back():
    model = Told()
    limits = Limits(held_bytes=2 * len(NOISE))

    async def run():
        async with serving(model, limits) as (client, _):
            model.go.clear()
            waiting = asyncio.create_task(client.post("/predict", files=form(NOISE)))
            await asyncio.to_thread(model.begun.wait, 10)
            refused = await client.post("/predict", files=form(NOISE, NOISE))
            model.go.set()
            await waiting
            return refused, await client.post("/predict", files=form(NOISE, NOISE))

    refused, answered = asyncio.run(run())
    assert refused.status_code == 503 and refused.json()["limit"] == "held_bytes"
    assert answered.status_code == 200


def test_too_many_requests_at_a_time_are_503():
    model = Told()

    async def run():
        async with serving(model, Limits(requests=1)) as (client, _):
            model.go.clear()
            waiting = asyncio.create_task(client.post("/predict", files=form(NOISE)))
            await asyncio.to_thread(model.begun.wait, 10)
            refused, live = await client.get("/models"), await client.get("/health/live")
            model.go.set()
            return refused, live, await waiting

    refused, live, answered = asyncio.run(run())
    assert refused.status_code == 503 and refused.json()["limit"] == "requests"
    assert live.status_code == answered.status_code == 200


def test_a_token_is_asked_for_where_there_is_something_to_see():
    right = {"Authorization": "Bearer söcret".encode()}
    wrong = [{}, {"Authorization": "Bearer socret"}, {"Authorization": "söcret".encode()}]
    guarded = ("/models", "/metrics", "/openapi.json")
    requests = [("GET", path, {"headers": each}) for path in guarded for each in wrong]
    requests.append(("POST", "/predict", {"files": form(NOISE)}))
    for answer in ask(requests, token="söcret"):
        assert answer.status_code == 401 and answer.headers["www-authenticate"] == "Bearer"
        assert "Authorization: Bearer TOKEN" in answer.json()["error"]
    opened = [("GET", path, {}) for path in ("/", "/docs", "/health/live", "/health/ready")]
    opened += [("GET", path, {"headers": right}) for path in guarded]
    assert {answer.status_code for answer in ask(opened, token="söcret")} == {200}


def test_a_page_of_another_site_cannot_reach_a_local_server_by_its_own_name():
    here = [
        "localhost",
        "LOCALHOST:8080",
        "a.localhost",
        "localhost.",
        "127.0.0.1:8080",
        "[::1]:8080",
        "192.168.0.7",
        "",
    ]
    elsewhere = ["evil.example", "evil.example:8080", "localhost.evil.example", "127.0.0.1.evil.example", "[evil]:1"]
    for local in (True, False):
        requests = [
            ("GET", path, {"headers": {"Host": host}}) for path in ("/", "/models") for host in here + elsewhere
        ]
        answers = ask(requests, local=local)
        for (_, path, more), answer in zip(requests, answers, strict=True):
            refused = local and more["headers"]["Host"] in elsewhere
            assert answer.status_code == (403 if refused else 200), (path, more)
            assert not refused or "--token TOKEN" in answer.json()["error"]


def test_head_is_get_without_a_body():
    paths = ["/", "/docs", "/models", "/metrics", "/health/live", "/health/ready", "/openapi.json", "/predict"]
    heads = ask([("HEAD", path, {}) for path in paths])
    for head, get in zip(heads, ask([("GET", path, {}) for path in paths]), strict=True):
        assert (head.status_code, head.content) == (get.status_code, b"")
        assert head.headers["content-type"] == get.headers["content-type"]


def test_a_server_that_stops_refuses_new_requests_and_answers_the_others():
    model = Told()

    async def run():
        async with serving(model) as (client, gate):
            model.go.clear()
            waiting = asyncio.create_task(client.post("/predict", files=form(NOISE)))
            await asyncio.to_thread(model.begun.wait, 10)
            gate.stopping = True
            refused = await client.post("/predict", files=form(NOISE)), await client.get("/health/ready")
            model.go.set()
            return refused, await waiting

    refused, answered = asyncio.run(run())
    for each in refused:
        assert each.status_code == 503 and "stopping" in each.json()["error"]
        assert each.headers["connection"] == "close"
    assert answered.status_code == 200 and answered.headers["connection"] == "close"


def test_a_model_that_fails_is_no_fault_of_other_images(capfd):
    class Picky(Told):
        def predict(self, names, images, rules):
            if "1.png" in names:
                raise RuntimeError("secret-name.png")
            return super().predict(names, images, rules)

    answer = one("POST", "/predict", Picky(), files=form(NOISE, NOISE, NOISE))
    assert answer.status_code == 200
    assert [row["error"] is None for row in answer.json()["rows"]] == [True, False, True]
    alone = one("POST", "/predict", Told(fails=True), files=form(NOISE))
    assert alone.status_code == 500 and "the model failed" in alone.json()["error"]
    said = capfd.readouterr().err
    assert '"error": "RuntimeError"' in said and "secret" not in said and ".png" not in said


def test_whatever_fails_in_the_server_is_a_sentence_too(monkeypatch, capfd):
    def fail(self):
        raise RuntimeError("secret")

    monkeypatch.setattr("petriscope.ship.server.web._Server.describe", fail)
    answer = one("GET", "/models")
    assert answer.status_code == 500 and answer.json() == {"error": "the server failed; its log says where"}
    said = capfd.readouterr().err
    assert "secret" not in said and '"where": ' in said


def test_overlays_that_wait_are_bounded_and_do_not_outlive_their_deadline():
    class Slow(Told):
        looked = 0

        def overlay(self, image):
            self.begun.set()
            assert self.go.wait(30)
            Slow.looked += 1
            return image.pixels

    model = Slow()

    async def run():
        async with serving(model, Limits(deadline=4)) as (client, gate):
            model.go.clear()
            waiting = [asyncio.create_task(client.post("/overlay", files=form(NOISE))) for _ in range(CALLS)]
            while lane_of(gate).calls < CALLS and not waiting[0].done():
                await asyncio.sleep(0.01)
            answers = [await client.post("/overlay", files=form(NOISE)), *await asyncio.gather(*waiting)]
            model.go.set()
            while lane_of(gate).calls:
                await asyncio.sleep(0.01)
            return [answer.status_code for answer in answers]

    statuses = asyncio.run(run())
    assert statuses == [429, *[503] * CALLS]
    assert Slow.looked == 1, "the one that had begun"


def test_the_log_has_a_line_of_json_per_request_and_no_names(capfd):
    ask(
        [
            ("POST", "/predict", {"files": [("file", ("patient-7.png", NOISE))]}),
            ("GET", "/patient-8.png", {}),
            ("POST", "/predict", {"files": [("file", ("patient-9.png", b"nothing"))]}),
        ]
    )
    said = capfd.readouterr().err
    assert "patient" not in said
    lines = [json.loads(line) for line in said.splitlines()]
    requests = [line for line in lines if line["event"] == "request" and line["path"] != "/health/ready"]
    assert [(line["method"], line["path"], line["status"]) for line in requests] == [
        ("POST", "/predict", 200),
        ("GET", "other", 404),
        ("POST", "/predict", 422),
    ]
    first = requests[0]
    assert (first["model"], first["images"]) == ("told", 1) and first["bytes"] > len(NOISE) and first["ms"] >= 0


def test_what_is_counted():
    requests = [("POST", "/predict", {"files": form(NOISE, b"nothing")}), ("GET", "/metrics", {})]
    text = ask(requests)[-1].text
    assert 'petriscope_requests_total{path="/predict",status="200"} 1.0' in text
    assert 'petriscope_images_total{model="told",result="answered"} 1.0' in text
    assert 'petriscope_images_total{model="told",result="unreadable"} 1.0' in text
    assert 'petriscope_queue_length{model="told"} 0.0' in text
    assert 'petriscope_request_seconds_count{path="/predict"} 1.0' in text


def test_pages_load_nothing_from_elsewhere_and_their_policy_forbids_it():
    for answer in ask([("GET", "/", {}), ("GET", "/docs", {})]):
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy and "unsafe" not in policy and "sha256-" in policy
        assert not re.search(r"(src|href)=[\"']?(https?:)?//", answer.text)
        assert " style=" not in answer.text and not re.search(r"\son\w+=", answer.text)


def test_openapi_describes_options_and_answers():
    found = one("GET", "/openapi.json").json()
    post = found["paths"]["/predict"]["post"]
    assert {each["name"] for each in post["parameters"]} == {"max_error", "coverage", "without_guarantee", "model"}
    assert {"200", "401", "413", "415", "422", "429", "503"} <= post["responses"].keys()
    assert "multipart/form-data" in post["requestBody"]["content"]
    assert {"file", "answer", "why", "ood"} <= found["components"]["schemas"]["Row"]["properties"].keys()


HEADERS = st.sampled_from(
    [
        "image/png",
        "multipart/form-data",
        "multipart/form-data; boundary=x",
        "multipart/form-data; boundary=",
        "",
        "é",
        ";",
    ]
)
PIECES = st.sampled_from(
    [
        *(b"--x\r\n", b"--x--\r\n", b"\r\n", b"\r\n\r\n", b": ", b"-" * 90, b"\xff\x00"),
        *(b'Content-Disposition: form-data; name="file"; filename="a.png"', NOISE, NOISE[:40]),
        *(b'Content-Disposition: form-data; name="max_error"', b"0.01", b"max_error"),
    ]
)
VALUES = st.sampled_from(["", "0", "1", "-1", "nan", "inf", "0.5", "true", "é", "told", "1e-400", "9" * 400, "\0"])
QUERIES = st.dictionaries(st.sampled_from(["max_error", "coverage", "without_guarantee", "model", "x"]), VALUES)


def test_no_bad_input_is_a_fault_of_the_server():
    async def run():
        async with serving(Told(), SMALL) as (client, _):

            async def check(path, kind, body, query):
                content = b"".join(body)
                headers = {"Content-Type": kind.encode()} if kind else {}
                answer = await client.post(path, content=content, headers=headers, params=query)
                assert answer.status_code in (200, 413, 415, 422), (answer.status_code, answer.text)
                if answer.status_code != 200:
                    assert answer.json()["error"]

            loop = asyncio.get_running_loop()

            @settings(max_examples=300)
            @example("/predict", "image/png", [b"no image"], {"max_error": "0.5"})
            @given(st.sampled_from(["/predict", "/overlay"]), HEADERS, st.lists(PIECES, max_size=12), QUERIES)
            def fuzz(path, kind, body, query):
                asyncio.run_coroutine_threadsafe(check(path, kind, body, query), loop).result(30)

            await asyncio.to_thread(fuzz)

    asyncio.run(run())


def test_the_overlay_is_a_png_and_of_one_image():
    plain, looked, two = ask(
        [
            ("POST", "/overlay", {"files": form(NOISE), "params": {"plain": True}}),
            ("POST", "/overlay", {"files": form(NOISE)}),
            ("POST", "/overlay", {"files": form(NOISE, NOISE)}),
        ]
    )
    assert plain.headers["content-type"] == looked.headers["content-type"] == "image/png"
    assert looked.content.startswith(b"\x89PNG") and len(looked.content) > SIDE
    assert two.status_code == 413 and two.json()["limit"] == "files"
