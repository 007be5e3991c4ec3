"""The server's page in a browser: images in, answers out, filters, the table, and all of it by keyboard alone."""

from __future__ import annotations

import csv
import os
import threading
import time
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from shutil import which

import numpy as np
import pytest

pytest.importorskip("fastapi")
pytest.importorskip("prometheus_client")
pytest.importorskip("playwright")

import uvicorn
from playwright.sync_api import sync_playwright

from petriscope import api
from petriscope.ship.server.opening import Known, open_model
from petriscope.ship.server.running import Server
from petriscope.ship.server.web import create_app
from serving import blobs, png

CHROMIUM = os.environ.get("CHROMIUM") or which("chromium") or which("chromium-browser") or which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine: apt-get install chromium")


@contextmanager
def served(run_folder, token=""):
    """The address of a server in a thread."""
    with served_model(open_model(str(run_folder), "cpu"), token) as url:
        yield url


@contextmanager
def served_model(model, token=""):
    gate = create_app([model], token=token)
    config = uvicorn.Config(gate, port=0, log_config=None, access_log=False, lifespan="on")
    server = Server(config, gate)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            time.sleep(0.01)
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/"
    finally:
        server.should_exit = True
        thread.join()


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as play:
        started = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture
def page(browser):
    """A page that fails the test if its script does, or if it breaks its policy."""
    opened = browser.new_page(viewport={"width": 390, "height": 844})
    wrong: list[str] = []
    opened.on("pageerror", lambda error: wrong.append(str(error)))
    opened.on("console", lambda said: wrong.append(said.text) if "Content Security" in said.text else None)
    own = ("http://127.0.0.1", "blob:", "data:")
    opened.on("request", lambda asked: None if asked.url.startswith(own) else wrong.append(asked.url))
    yield opened
    opened.close()
    assert not wrong


def images(folder, count=6):
    """Files of two classes, one that is unlike them, and one that is no image."""
    pixels = [*blobs(count, 7)[0], np.random.default_rng(1).integers(0, 256, (16, 16, 3), dtype=np.uint8)]
    paths = [folder / f"cell-{place}.png" for place in range(len(pixels))]
    for path, each in zip(paths, pixels, strict=True):
        path.write_bytes(png(each))
    (folder / "=broken.png").write_bytes(b"nothing")
    (folder / "notes.txt").write_bytes(b"no image")
    return [*paths, folder / "=broken.png", folder / "notes.txt"]


def put_in(page, files):
    page.set_input_files("#files", files)
    page.wait_for_selector(".card")
    page.wait_for_selector("#stop", state="hidden")


def names(page):
    return page.locator(".card .name").all_inner_texts()


def test_answers_with_the_most_urgent_first_and_a_table_like_that_of_predict(page, run_folder, tmp_path):
    files = images(tmp_path)
    with served(run_folder) as url:
        page.goto(url)
        page.wait_for_selector("#drop")
        page.select_option("#max-error", "0.05")
        page.select_option("#coverage", "0.9")
        put_in(page, files)
        summary = page.locator("#summary").inner_text()
        assert "8 of 8 images done" in summary and "1 not sure; 1 out of distribution; 1 cannot be read" in summary
        assert "1 files that are no images were left out, such as notes.txt" in summary
        assert names(page)[:2] == ["=broken.png", "cell-6.png"]
        assert page.locator(".card").nth(1).locator(".why").first.inner_text().startswith("out of distribution")
        assert "not tested" in page.locator("#guarantee").inner_text()

        page.select_option("#show", "look")
        assert names(page) == ["=broken.png", "cell-6.png"]
        page.select_option("#show", "answered")
        assert len(names(page)) == 6
        page.fill("#search", "CELL-3")
        assert names(page) == ["cell-3.png"]
        page.fill("#search", "nowhere")
        assert "No image fits the filter" in page.locator("#cards").inner_text()
        page.fill("#search", "")

        page.locator(".card button").first.click()
        page.wait_for_selector(".card button[aria-pressed=true]")
        with page.expect_download() as started:
            page.click("#csv")
        table = Path(started.value.path()).read_text(encoding="utf-8")
        assert page.evaluate_handle("document.documentElement.scrollWidth").json_value() == 390, "nothing is cut off"

    api.predict(run_folder, files[:-2], out=tmp_path / "out.csv", device="cpu", max_error=0.05, set_coverage=0.9)
    mine = list(csv.DictReader(table.splitlines()))
    theirs = {Path(row["image"]).name: row for row in csv.DictReader((tmp_path / "out.csv").read_text().splitlines())}
    assert list(mine[0]) == list(next(iter(theirs.values())))
    assert mine[0]["image"] == "'=broken.png", "no cell that a spreadsheet computes"
    for row in mine[1:]:
        other = theirs[row["image"]]
        assert [row[name] for name in ("predicted", "answer", "why", "set")] == [
            other[name] for name in ("predicted", "answer", "why", "set")
        ]
        assert float(row["p_1"]) == pytest.approx(float(other["p_1"]), abs=1e-5)


def test_everything_works_by_keyboard(page, run_folder, tmp_path):
    files, choosers = images(tmp_path, 2)[:2], []
    page.on("filechooser", lambda chooser: choosers.append(chooser))
    with served(run_folder) as url:
        page.goto(url)
        page.wait_for_selector("#drop")

        def focused():
            return page.evaluate_handle("document.activeElement.id || document.activeElement.textContent").json_value()

        page.keyboard.press("Tab")
        assert focused() == "Skip to the results"
        for expected in ("model", "max-error", "coverage", "choose"):
            page.keyboard.press("Tab")
            assert focused() == expected
        page.keyboard.press("Enter")
        while not choosers:
            page.wait_for_timeout(20)
        choosers[0].set_files(files)
        page.wait_for_selector(".card")
        page.wait_for_selector("#stop", state="hidden")
        for expected in ("choose-folder", "show", "class", "search", "csv", "clear", "Where did it look?"):
            page.keyboard.press("Tab")
            assert focused() == expected
        page.keyboard.press("Enter")
        page.wait_for_selector(".card button[aria-pressed=true]")
        assert focused() == "Where did it look?"
        unnamed = page.locator("button:not([aria-label])").all()
        assert all(each.text_content() for each in unnamed)
        for control in page.locator("select, input:not([hidden])").all():
            if name := control.get_attribute("id"):
                assert page.locator(f"label[for={name}]").count() == 1 or name in ("files", "folder"), name


def test_answers_are_asked_for_again_when_guarantees_are_withdrawn(page, run_folder, tmp_path, monkeypatch):
    monkeypatch.setattr("petriscope.ship.server.watch.PAUSE", 0.3)
    files = [tmp_path / f"{place}.png" for place in range(40)]
    for path, each in zip(files, blobs(40, 7, light=25)[0], strict=True):
        path.write_bytes(png(each))
    with served(run_folder) as url:
        page.goto(url)
        page.wait_for_selector("#drop")
        page.select_option("#max-error", "0.05")
        put_in(page, files)
        page.wait_for_selector("#guarantee.warn")
        page.wait_for_selector("#summary:has-text('0 answered, 40 not sure')")
        assert "GUARANTEES WITHDRAWN" in page.locator("#guarantee").inner_text()
        page.check("#anyway")
        page.wait_for_selector(".card .why:has-text('without guarantee: these images')")
        page.select_option("#max-error", "")
        page.wait_for_selector("#guarantee.warn:has-text('Nothing is guaranteed')")


def test_a_token_is_asked_for(page, run_folder):
    with served(run_folder, token="secret") as url:
        page.goto(url)
        page.fill("#token", "wrong")
        page.keyboard.press("Enter")
        page.wait_for_selector("#about:has-text('token'), #summary:has-text('The token is wrong')")
        assert page.locator("#drop").is_hidden()
        page.fill("#token", "secret")
        page.keyboard.press("Enter")
        page.wait_for_selector("#drop")


def test_what_is_assumed_is_shown_and_images_that_contradict_it_are_to_look_at(page, run_folder, tmp_path, monkeypatch):
    model = open_model(str(run_folder), "cpu", Known(prior="0=0.9,1=0.1"))
    predict = model.predict

    def contradicted(names, images, rules):  # as by a model of more classes
        found = predict(names, images, rules)
        return [replace(each, row=each.row.model_copy(update={"outside": 0.9})) for each in found]

    monkeypatch.setattr(model, "predict", contradicted)
    with served_model(model) as url:
        page.goto(url)
        page.wait_for_selector("#facts:has-text('For all images it is assumed: 0 0.9; 1 0.1.')")
        put_in(page, images(tmp_path, 2)[:2])
        assert "2 answered, 0 not sure; 2 look like classes that do not occur" in page.locator("#summary").inner_text()
        page.select_option("#show", "look")
        assert len(names(page)) == 2
        assert "looks like a class that does not occur (90 %)" in page.locator(".card").first.inner_text()


def test_menus_without_a_choice_are_not_shown(page, run_folder):
    model = open_model(str(run_folder), "cpu")
    for rates, levels in (((0.01,), (0.9,)), ((0.01,), ()), ((), ())):
        model.max_errors, model.coverages = rates, levels
        with served_model(model) as url:
            page.goto(url)
            page.wait_for_selector("#drop")
            shown = page.locator("#options select:visible").evaluate_all("all => all.map(each => each.id)")
            assert shown == ["model", *["max-error"] * len(rates), *["coverage"] * len(levels)]


def test_images_are_cleared_and_a_folder_is_chosen(page, run_folder, tmp_path):
    with served(run_folder) as url:
        page.goto(url)
        page.wait_for_selector("#drop")
        put_in(page, images(tmp_path, 1)[:1])
        page.click("#clear")
        assert page.locator(".card").count() == 0
        page.set_input_files("#folder", tmp_path)
        page.wait_for_selector(".card")
        page.wait_for_selector("#stop", state="hidden")
        assert len(names(page)) == 3 and names(page)[0].endswith("/=broken.png")
