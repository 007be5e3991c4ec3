"""A page in Chromium, from a file and without network: it answers as onnxruntime does in Python on the same files."""

import base64
import csv
import os
import shutil
from io import BytesIO, StringIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

import color_package
from petriscope.core.errors import RequestError
from petriscope.data.decode import decode_file
from petriscope.ship import page

pytest.importorskip("onnxruntime")
playwright = pytest.importorskip("playwright.sync_api")
RUNTIME = "ONNXRUNTIME_WEB"  # environment variable: the folder of the npm package, or one with node_modules


@pytest.fixture(scope="module")
def browser():
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("needs Chromium: apt-get install chromium")
    with playwright.sync_playwright() as started:
        running = started.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield running
        running.close()


@pytest.fixture(scope="module")
def runtime():
    given = os.environ.get(RUNTIME)
    try:
        return page.find_runtime(None if given is None else Path(given))
    except RequestError as error:
        pytest.skip(f"{error}; tests also look in the folder that the environment variable {RUNTIME} names")


@pytest.fixture(scope="module")
def opened(browser, runtime, tmp_path_factory):
    """A page of a package, opened and ready. All requests and complaints of the browser are collected, and there must be none."""
    troubles = []
    contexts = []

    def open_page(task: str = "classification", query: str = ""):
        folder = tmp_path_factory.mktemp("page")
        package = color_package.write_package(folder / "package", task)
        page.write_page(package, folder / "page.html", runtime)
        context = browser.new_context(offline=True, viewport={"width": 390, "height": 844})
        contexts.append(context)
        shown = context.new_page()
        shown.on("console", lambda said: troubles.append(said.text))
        shown.on("pageerror", lambda error: troubles.append(str(error)))
        shown.on("request", lambda asked: troubles.append(asked.url) if asked.url.startswith("http") else None)
        shown.goto(f"{(folder / 'page.html').as_uri()}{query}")
        playwright.expect(shown.locator("#status")).to_have_text("Ready.", timeout=60_000)
        return package, shown

    yield open_page
    for context in contexts:
        context.close()
    assert not troubles


def expected(package: Path, files: list[Path]) -> dict[str, np.ndarray]:
    """The outputs of the model in Python."""
    images = [decode_file(path, color_package.SIDE, "bilinear", "rgb") for path in files]
    return color_package.predict(package, np.stack(images))


def given_files(folder: Path) -> list[Path]:
    """Images in several formats, some larger than the model takes, and one turned by its EXIF tag."""
    exif = Image.Exif()
    exif[0x112] = 6
    large = Image.fromarray(color_package.images(3)[2]).resize((90, 70), Image.Resampling.BICUBIC)
    kinds = {
        "a.jpg": {"quality": 90},
        "b.webp": {"lossless": True},
        "c.bmp": {},
        "turned.jpg": {"exif": exif, "quality": 95},
    }
    for name, options in kinds.items():
        out = BytesIO()
        large.save(out, {"jpg": "JPEG"}.get(name.split(".")[1], name.split(".")[1].upper()), **options)
        (folder / name).write_bytes(out.getvalue())
    for number, image in enumerate(color_package.images(20)):
        (folder / f"{number:02d}.png").write_bytes(color_package.png(image))
    return sorted(folder.iterdir())


def give(shown, files: list[Path]) -> None:
    shown.set_input_files("#files", files)
    playwright.expect(shown.locator("#status")).to_contain_text(f"{len(files)} images done", timeout=60_000)


def table(shown) -> list[dict[str, str]]:
    with shown.expect_download() as started:
        shown.click("#csv")
    return list(csv.DictReader(StringIO(Path(started.value.path()).read_text())))


def test_classes(opened, tmp_path):
    package, shown = opened(query="?test")
    playwright.expect(shown.locator("#tested")).to_have_text("6 of 6 equal.", timeout=60_000)
    files = given_files(tmp_path)
    give(shown, files)
    wanted = expected(package, files)
    for chosen in (1, 2):
        shown.select_option("#rate", str(chosen))
        shown.select_option("#coverage", "1")
        rows = table(shown)
        assert [row["image"] for row in rows] == [path.name for path in files]
        assert [row["predicted"] for row in rows] == [color_package.CLASSES[k] for k in wanted["label"]]
        answers = wanted["answers"][:, chosen]
        assert [row["answer"] for row in rows] == ["not sure" if k < 0 else color_package.CLASSES[k] for k in answers]
        assert [row["why"].startswith("out of distribution") for row in rows] == (wanted["ood"] > 1).tolist()
        found = np.array([[float(row[f"p_{name}"]) for name in color_package.CLASSES] for row in rows])
        assert np.abs(found - wanted["probabilities"]).max() < 1e-5
        members = [{color_package.CLASSES[k] for k in np.flatnonzero(each)} for each in wanted["sets"][:, 1]]
        assert [set(row["set"].split("; ")) for row in rows] == members
    assert "A note on 10\u00a0%." in shown.inner_text("#claims") and page.CLAIM in shown.inner_text("#claims")
    assert shown.evaluate("document.documentElement.scrollWidth") == 390


def test_what_cannot_be_read_comes_first_and_is_told(opened, tmp_path):
    _, shown = opened()
    files = given_files(tmp_path)
    (tmp_path / "scan.tif").write_bytes(b"II*\0" + b"\0" * 60)
    give(shown, [*files, tmp_path / "scan.tif"])
    shown.select_option("#rate", "0")
    cards = shown.locator("#cards li")
    assert "TIFF files are not read by this page" in cards.first.inner_text()
    assert "out of distribution" in cards.nth(1).inner_text()
    assert "no confidence guarantees at most 0.5\u00a0% errors" in cards.last.inner_text()
    assert "0 answered" in shown.inner_text("#summary")
    shown.select_option("#rate", "")
    shown.select_option("#show", "unreadable")
    assert cards.count() == 1
    shown.select_option("#show", "all")
    shown.fill("#find", "TURNED")
    assert cards.count() == 1
    shown.fill("#find", "")
    shown.locator("#cards summary").first.focus()
    shown.keyboard.press("ArrowRight")
    shown.keyboard.press("Enter")
    playwright.expect(cards.nth(2).locator("table")).to_be_visible()
    shown.click("#clear")
    playwright.expect(shown.locator("#results")).to_be_hidden()


def test_guarantees_are_withdrawn_for_images_unlike_val(opened, tmp_path):
    _, shown = opened()
    like, unlike = color_package.images(80, seed=2), color_package.images(80, seed=3) * np.array([1, 0, 0], np.uint8)
    for folder, given in (("like", like), ("unlike", unlike)):
        (tmp_path / folder).mkdir()
        for number, image in enumerate(given):
            (tmp_path / folder / f"{number:02d}.png").write_bytes(color_package.png(image))
    shown.select_option("#rate", "2")
    give(shown, sorted((tmp_path / "like").iterdir()))
    playwright.expect(shown.locator("#claims")).to_contain_text("No difference to val was found. Compared: 80 images")
    assert not any(row["why"].startswith("guarantee withdrawn") for row in table(shown))
    shown.click("#clear")
    give(shown, sorted((tmp_path / "unlike").iterdir()))
    playwright.expect(shown.locator("#claims")).to_contain_text("GUARANTEES WITHDRAWN: these images are not like those")
    rows = table(shown)
    assert {row["answer"] for row in rows} == {"not sure"}
    assert all(row["why"].startswith("guarantee withdrawn: these images are not like those") for row in rows)
    shown.check("#anyway")
    rows = table(shown)
    assert {row["answer"] for row in rows} == {"red", "not sure"}
    assert all("without guarantee: these images" in row["why"] for row in rows)
    shown.select_option("#rate", "")
    playwright.expect(shown.locator("#claims")).to_be_hidden()
    assert {row["why"] for row in table(shown)} == {""}


def test_masks(opened, tmp_path):
    package, shown = opened("segmentation", "?test")
    playwright.expect(shown.locator("#tested")).to_have_text("6 of 6 equal.", timeout=60_000)
    files = given_files(tmp_path)
    give(shown, files)
    wanted = expected(package, files)
    classes, confidence = wanted["classes"], wanted["confidence"]
    rows = table(shown)
    assert list(rows[0]) == [
        "image",
        "mask",
        "confidence",
        "error",
        *(f"share_{name}" for name in color_package.CLASSES),
    ]
    found = np.array([[float(row[f"share_{name}"]) for name in color_package.CLASSES] for row in rows])
    assert np.abs(found - np.stack([(classes == k).mean((1, 2)) for k in range(3)], 1)).max() < 1e-9
    assert np.abs([float(row["confidence"]) for row in rows] - confidence.mean((1, 2))).max() < 1e-5
    assert shown.locator("#cards canvas").count() == len(files)


def test_labels(opened, tmp_path):
    package, shown = opened("multilabel", "?test")
    playwright.expect(shown.locator("#tested")).to_have_text("6 of 6 equal.", timeout=60_000)
    assert shown.locator("#coverage").count() == 0
    files = given_files(tmp_path)
    give(shown, files)
    wanted, classes = expected(package, files), color_package.CLASSES
    inside = wanted["ood"] <= 1
    for chosen in ("", "1", "2"):
        shown.select_option("#rate", chosen)
        rows = table(shown)
        assert [row["image"] for row in rows] == [path.name for path in files]
        answers = np.where(inside[:, None], wanted["labels"], -1) if chosen == "" else wanted["answers"][:, int(chosen)]
        for k, name in enumerate(classes):
            words = [{1: "present", 0: "absent", -1: "not sure"}[answer] for answer in answers[:, k].tolist()]
            assert [row[f"answer_{name}"] for row in rows] == words
            assert np.abs([float(row[f"p_{name}"]) for row in rows] - wanted["probabilities"][:, k]).max() < 1e-5
        assert [row["open"] == "" for row in rows] == (answers >= 0).all(1).tolist()
        assert f"all labels of {(answers >= 0).all(1).sum()} answered" in shown.inner_text("#summary")
    assert (answers >= 0).any() and (answers[inside] < 0).any() and not inside.all()
    row = next(each for each in rows if each["labels"] not in ("none", "not sure"))
    shown.fill("#find", row["image"])
    cells = shown.locator("#cards li").first.locator("tr").all_inner_texts()
    for name in classes:
        assert any(
            name in text and row[f"answer_{name}"] in text and f"{float(row[f'p_{name}']):.4f}" in text
            for text in cells
        )
    shown.fill("#find", "")
    shown.select_option("#show", f"={classes[0]}")
    assert shown.locator("#cards li").count() == min(60, (answers[:, 0] == 1).sum())
    assert shown.evaluate("document.documentElement.scrollWidth") == 390


def test_what_the_browser_decodes_has_the_pixels_that_pillow_gives(browser, tmp_path):
    rng = np.random.default_rng(4)
    small = Image.fromarray(rng.integers(0, 256, (9, 13, 3)).astype(np.uint8))
    smooth = small.resize((200, 150), Image.Resampling.BICUBIC)
    clear = smooth.copy()
    clear.putalpha(Image.fromarray(np.where(np.indices((150, 200)).sum(0) % 90 > 45, 255, 0).astype(np.uint8)))
    exif = Image.Exif()
    exif[0x112] = 5
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("XYZ")).tobytes()
    kinds = {
        "444.jpg": (smooth, {"quality": 95, "subsampling": 0}),
        "420.jpg": (smooth, {"quality": 80, "subsampling": 2, "icc_profile": profile}),
        "progressive.jpg": (smooth, {"quality": 85, "progressive": True, "exif": exif}),
        "gray.jpg": (smooth.convert("L"), {}),
        "lossy.webp": (smooth, {"quality": 80, "exif": exif}),
        "lossless.webp": (clear, {"lossless": True, "exact": True, "icc_profile": profile}),
        "8.bmp": (smooth.convert("P"), {}),
    }
    (tmp_path / "page.html").write_text(f"<script>{page.script().split('// The model in the page')[0]}</script>")
    shown = browser.new_page()
    shown.goto((tmp_path / "page.html").as_uri())
    worst = {}
    for name, (image, options) in kinds.items():
        path = tmp_path / name
        image.save(path, **options)
        found = shown.evaluate(READ, base64.b64encode(path.read_bytes()).decode())
        expected = decode_file(path, None, "bilinear", "rgb")
        got = np.frombuffer(base64.b64decode(found["data"]), np.uint8).reshape(found["height"], found["width"], 3)
        assert got.shape == expected.shape, name
        worst[name] = int(np.abs(got.astype(int) - expected).max())
    assert worst == dict.fromkeys(kinds, 0)


READ = """async (content) => {
  const bytes = Uint8Array.from(atob(content), (letter) => letter.charCodeAt(0));
  const read = await decoded(bytes, 16);
  const image = inColor(turned(onWhite(read), read.orientation), 3);
  return { ...image, data: btoa(Array.from(image.data, (value) => String.fromCharCode(value)).join("")) };
}"""
