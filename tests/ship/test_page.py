"""The page that predicts in a browser: how it is made, and that its JavaScript reads images and answers as Petriscope does."""

import base64
import json
import shutil
import struct
import subprocess
import zlib
from dataclasses import replace
from io import BytesIO

import numpy as np
import pytest
from image_bytes import png as deep_png
from PIL import Image

import color_package
from pages import Page
from petriscope.core.csv_tables import csv_text
from petriscope.core.errors import RequestError
from petriscope.data.decode import decode_file, resize
from petriscope.data.in_memory import InMemory
from petriscope.inference.label_answers import LabelPlan
from petriscope.inference.package import Manifest
from petriscope.metrics.selective import Threshold
from petriscope.ship import page
from petriscope.trust.abstention import NO_CLASS, NOT_SURE, UNCLAIMED, Abstention
from petriscope.trust.label_rules import answered_labels
from petriscope.trust.two_sample import Likeness, Traits, compare
from petriscope.trust.verdict import NOTHING, WITHDRAWN, remedy, verdict

WORDS = {"not_sure": NOT_SURE, "no_class": NO_CLASS, "withdrawn": WITHDRAWN, "unclaimed": UNCLAIMED}
RUN = """
const input = JSON.parse(require("fs").readFileSync(0, "utf8"));
const bytes = (text) => new Uint8Array(Buffer.from(text, "base64"));
const letters = (data) => Buffer.from(data).toString("base64");
%s
"""


def javascript(code: str, given: object) -> object:
    """What ``code`` logs as JSON, after the scripts of the page; ``input`` is what is given."""
    node = shutil.which("node")
    if node is None:
        pytest.skip("needs node, which is not installed")
    parts = [name for name in page.SCRIPTS if name not in ("model.js", "page.js")]
    scripts = "\n".join((page.TEMPLATES / name).read_text() for name in parts)
    done = subprocess.run([node, "-e", scripts + RUN % code], input=json.dumps(given), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def packed(array: np.ndarray | bytes) -> str:
    return base64.b64encode(array if isinstance(array, bytes) else array.tobytes()).decode()


def pixels(text: str, shape: tuple[int, ...]) -> np.ndarray:
    return np.frombuffer(base64.b64decode(text), np.uint8).reshape(shape)


# --------------------------------------------------------------------------------------------------------------- pixels


@pytest.mark.parametrize("filter", ["nearest", "box", "bilinear", "bicubic", "lanczos"])
def test_images_are_resized_as_pillow_resizes_them(filter):
    rng = np.random.default_rng(3)
    cases, wanted = [], []
    for number in range(60):
        channels = (1, 3)[number % 2]
        height, width, to_height, to_width = rng.integers(1, 70, 4).tolist()
        height, width = (height * 5, width * 3) if number % 5 == 0 else (height, width)
        image = rng.integers(0, 256, (height, width, channels)).astype(np.uint8)
        image = np.where(image > 127, 255, 0).astype(np.uint8) if number % 3 else image  # the steepest edges
        cases.append([height, width, channels, packed(image), to_height, to_width])
        wanted.append(resize(image, (to_height, to_width), filter))
    found = javascript(
        """console.log(JSON.stringify(input.cases.map(([height, width, channels, data, ...size]) => {
          const image = { height, width, channels, data: bytes(data) };
          return letters(resize(image, ...size, input.filter, input.columns_first).data);
        })));""",
        {"cases": cases, "filter": filter, "columns_first": page.columns_first()},
    )
    for case, text, image in zip(cases, found, wanted, strict=True):
        assert np.array_equal(pixels(text, image.shape), image), case[:3] + case[4:]


def read(files: list[bytes], channels: int, bits: int = 16, size: tuple[int, int] | None = None) -> list[object]:
    """Files as the page reads them: an array each, or the reason why not."""
    found = javascript(
        """(async () => {
          const out = [];
          for (const content of input.files) {
            try {
              const image = await decoded(bytes(content), input.bits);
              const { height, width } = input.size ?? turned(onWhite(image), image.orientation);
              const made = fitted(image, image.orientation, { ...input, height, width, filter: "bilinear" });
              out.push([made.height, made.width, letters(made.data)]);
            } catch (error) { out.push(error.message); }
          }
          console.log(JSON.stringify(out));
        })();""",
        {
            "files": [packed(each) for each in files],
            "channels": channels,
            "bits": bits,
            "size": None if size is None else {"height": size[0], "width": size[1]},
            "columns_first": page.columns_first(),
        },
    )
    return [each if isinstance(each, str) else pixels(each[2], (each[0], each[1], channels)) for each in found]


def check_files(files: list[bytes], channels: int, bits: int = 16, size: tuple[int, int] | None = None) -> None:
    for number, (content, found) in enumerate(zip(files, read(files, channels, bits, size), strict=True)):
        kind = "gray" if channels == 1 else "rgb"
        expected = decode_file(InMemory("image", content), size, "bilinear", kind, bits)
        assert isinstance(found, np.ndarray), (number, found)
        assert np.array_equal(found, expected), number


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def raw_png(rng: np.random.Generator, depth: int, kind: int, interlaced: int, extra: bytes = b"") -> bytes:
    """A PNG file of random bytes, which says of itself what it is."""
    samples = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[kind]
    height, width = rng.integers(1, 24, 2).tolist()
    passes = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)]
    raw = b""
    for x, y, right, down in passes if interlaced else [(0, 0, 1, 1)]:
        columns, rows = -((x - width) // right), -((y - height) // down)
        for _ in range(rows if columns > 0 else 0):
            filter = bytes([rng.integers(0, 5)])
            raw += filter + rng.integers(0, 256, -(-columns * depth * samples // 8)).astype(np.uint8).tobytes()
    header = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, interlaced)
    packed = zlib.compress(raw)
    half = len(packed) // 2
    parts = [
        chunk(b"IHDR", header),
        extra,
        chunk(b"IDAT", packed[:half]),
        chunk(b"IDAT", packed[half:]),
        chunk(b"IEND", b""),
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def turned_exif(orientation: int) -> bytes:
    return b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0" + struct.pack("<H", orientation) + b"\0" * 6


def kinds() -> list[bytes]:
    """PNG files of every kind that the format has."""
    rng = np.random.default_rng(5)
    out = []
    depths = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}
    for kind, each in depths.items():
        for depth in each:
            for number in range(8):
                extra = chunk(b"eXIf", turned_exif(number + 1)) if number % 2 else b""
                if kind == 3:
                    colors = rng.integers(0, 256, (2**depth, 3)).astype(np.uint8)
                    colors = colors[:, [0, 0, 0]] if number >= 6 else colors
                    extra += chunk(b"PLTE", colors.tobytes())
                    extra += chunk(b"tRNS", colors[: 2**depth - 1, 0].tobytes()) if number % 4 > 1 else b""
                elif kind in (0, 2) and number % 4 > 1:
                    value = int(rng.integers(0, 2 ** min(depth, 4)))
                    extra += chunk(b"tRNS", struct.pack(">H", value) * (1 if kind == 0 else 3))
                out.append(raw_png(rng, depth, kind, number // 4, extra))
    return out


@pytest.mark.parametrize("channels", [1, 3])
def test_png_files_of_all_kinds_are_read_as_petriscope_reads_them(channels):
    check_files(kinds(), channels)
    check_files(kinds()[:40:3], channels, size=(13, 11))


def test_16_bits_are_scaled_by_the_bits_of_the_camera():
    values = np.arange(4096, dtype=np.uint16).reshape(64, 64, 1)
    color = np.stack([values[..., 0], values[::-1, :, 0], np.minimum(values[..., 0] * 16, 65535)], 2)
    check_files([deep_png(values), deep_png(color % 4096), deep_png(values, (17,))], 3, bits=12)
    check_files([deep_png(values), deep_png(color), deep_png(np.concatenate([color, values * 15], 2))], 1)
    bright = deep_png(np.full((9, 9, 1), 5000, np.uint16))
    assert read([bright], 1, bits=12) == [
        "its brightest pixel, 5000, is more than data.bits=12 allows; increase data.bits"
    ]


def test_every_opacity_of_every_value_and_many_colors():
    every = np.indices((256, 256)).astype(np.uint8)
    opaque = np.stack([every[0], 255 - every[0], every[0] // 2, every[1]], 2)
    colors = np.stack(np.meshgrid(*[np.arange(0, 256, 9)] * 3), -1).reshape(29, -1, 3).astype(np.uint8)
    check_files([color_package.png(opaque), color_package.png(colors)], 3)
    check_files([color_package.png(opaque), color_package.png(colors)], 1)


@pytest.mark.parametrize("mode", ["RGB", "L", "P"])
def test_bmp_files(mode):
    out = BytesIO()
    Image.fromarray(color_package.images(1)[0]).resize((13, 9)).convert(mode).save(out, "BMP")
    check_files([out.getvalue()], 3)


def test_what_the_page_does_not_read_is_refused_with_a_reason():
    image = Image.fromarray(color_package.images(1)[0])
    whole = color_package.png(color_package.images(1)[0])
    files = [
        whole[:-20],
        whole[:50] + bytes([whole[50] ^ 1]) + whole[51:],
        b"II*\0" + b"\0" * 60,
        b"GIF89a" + b"\0" * 60,
        b"",
        b"text",
    ]
    for kind, mode in (("JPEG", "CMYK"), ("BMP", "1")):
        out = BytesIO()
        image.convert(mode).save(out, kind)
        files.append(out.getvalue())
    found = read(files, 3)
    assert found[0] == "the file ends before its image does"
    assert found[1] == "its part IDAT is damaged"
    assert found[2] == "TIFF files are not read by this page; save it as PNG, or use petriscope predict"
    assert found[3] == "GIF files are not read by this page; save it as PNG, or use petriscope predict"
    assert found[4] == found[5] == "not an image in a format that this page reads (PNG, JPEG, WebP, BMP)"
    assert found[6].startswith("a JPEG of 4 channels, which browsers convert")
    assert found[7].startswith("a BMP file of 1 bits or compressed")


# -------------------------------------------------------------------------------------------------------------- answers


def test_answers_and_tables_are_those_of_predict():
    rng = np.random.default_rng(2)
    classes = ("mono", "=lymph", 'plate "x", or so')
    p = rng.dirichlet([0.2] * 3, 200).astype(np.float32)
    p[:4] = [[1, 0, 0], [0.5, 0.5, 0], [1 - 2e-7, 1e-7, 1e-7], [0.875, 0.0625, 0.0625]]
    ood = rng.uniform(0, 1.2, 200).astype(np.float32)
    ood[5] = np.nan
    limits = np.array([0.7, 0.9, np.inf])
    import pandas as pd

    from petriscope.metrics import conformal
    from petriscope.metrics.selective import uncertainty

    doubt, label = uncertainty(p), p.argmax(1)
    for threshold, standing in ((None, "holds"), (0.0625, "holds"), (0.3, "withdrawn"), (0.3, "unclaimed")):
        rule = None if threshold is None else Threshold(0.01, threshold, 100, 1, 0.05)
        rules = Abstention(classes, 0.01, rule, limits)
        rows = (rules if standing == "holds" else rules.without_guarantee(standing == "unclaimed")).rows(p, ood)
        names = [f"p_{name}" for name in classes]
        table = [
            {"image": f"{i}.png", "predicted": classes[label[i]], "confidence": float(p[i].max()), "error": None, **row}
            | dict(zip(names, map(float, p[i]), strict=True))
            for i, row in enumerate(rows)
        ]
        table.append({"image": "-1, a", "error": "-1, a cannot be read as an image: because"})
        columns = ["image", "predicted", "confidence", "error", "answer", "why", "set", *names]
        sets = conformal.sets(p, limits, conformal.METHOD)
        answered = (doubt <= (-1 if threshold is None else threshold)) & (ood <= 1)
        found = javascript(
            """
            const rate = { place: 0, max_error: 0.01, threshold: input.threshold };
            const items = input.items.map(({ ood, ...found }, i) =>
              ({ name: `${i}.png`, found: { ...found, ood: ood ?? NaN } }));
            items.push({ name: "-1, a", error: "-1, a cannot be read as an image: because" });
            console.log(JSON.stringify(tableOf(items, rate, { place: 0 }, input.model, input.standing)));""",
            {
                "threshold": threshold,
                "standing": standing,
                "model": {"classes": classes, "words": WORDS},
                "items": [
                    {
                        "probabilities": p[i].astype(float).tolist(),
                        "label": int(label[i]),
                        "uncertainty": float(doubt[i]),
                        "ood": None if np.isnan(ood[i]) else float(ood[i]),
                        "answers": [int(label[i]) if answered[i] else -1],
                        "sets": sets[i].astype(int).tolist(),
                    }
                    for i in range(len(p))
                ],
            },
        )
        assert found == csv_text(pd.DataFrame(table, columns=columns))


@pytest.mark.parametrize("max_error", [None, 0.1])
@pytest.mark.parametrize("standing", ["holds", "withdrawn", "unclaimed"])
def test_answers_and_tables_of_labels_are_those_of_predict(max_error, standing):
    import pandas as pd

    rng = np.random.default_rng(3)
    classes = ("mass", "=edema", 'a "b", or so')
    p, ood = rng.random((200, 3)).astype(np.float32), rng.uniform(0, 1.2, 200).astype(np.float32)
    ood[5] = np.nan
    cutoffs = np.array([0.5, 0.2, 0.9], np.float32)
    limits = np.array([[0.1, 0.2], [-np.inf, 0.5], [0.3, 0.05]])
    everything = np.full((3, 2), np.inf)
    plan = LabelPlan(classes, cutoffs, everything if max_error is None else limits)
    rows = (plan if standing == "holds" else plan.without_guarantee(standing == "unclaimed")).rows(p, ood)
    table = [{"image": f"{i}.png", "error": None, **row} for i, row in enumerate(rows)]
    for i, row in enumerate(table):
        for k, (name, word) in enumerate(row.pop("answers").items()):
            row |= {f"answer_{name}": word, f"p_{name}": float(p[i, k])}
    table.append({"image": "-1, a", "error": "-1, a cannot be read as an image: because"})
    columns = ["image", "labels", "open", "error", "why"]
    columns += [f"{start}_{name}" for name in classes for start in ("answer", "p")]
    present, given = p >= cutoffs, answered_labels(p, ood, cutoffs, limits)
    found = javascript(
        """
        const items = input.items.map(({ ood, ...found }, i) => ({ name: `${i}.png`, found: { ...found, ood: ood ?? NaN } }));
        items.push({ name: "-1, a", error: "-1, a cannot be read as an image: because" });
        console.log(JSON.stringify(labelTableOf(items, input.rate, input.model, input.standing)));""",
        {
            "rate": None if max_error is None else {"place": 1},
            "standing": standing,
            "model": {"classes": classes, "words": WORDS},
            "items": [
                {
                    "probabilities": p[i].astype(float).tolist(),
                    "labels": present[i].astype(int).tolist(),
                    "ood": None if np.isnan(ood[i]) else float(ood[i]),
                    "answers": [-1] * 3 + np.where(given[i], present[i], -1).tolist(),
                }
                for i in range(len(p))
            ],
        },
    )
    assert found == csv_text(pd.DataFrame(table, columns=columns))


def test_numbers_are_written_as_python_writes_them():
    rng = np.random.default_rng(1)
    values = [0.0, 1.0, 1e-5, 1e-4, 0.1, 1e16, 123456789.0, 5e-324, *np.exp(rng.uniform(-60, 60, 300)).tolist()]
    values += rng.random(300).astype(np.float32).astype(float).tolist()
    halves = [0.125, 12.5, 99.25, 99.75, 98.4375, 0.5, 1.5, 87.0625, *(100 * (1 - rng.random(200))).tolist()]
    found = javascript(
        """console.log(JSON.stringify([input[0].map(floatText),
        input[1].map((value) => [0, 1, 2, 3, 12].map((digits) => fixed(value, digits)))]));""",
        [values, halves],
    )
    assert found[0] == [repr(value) for value in values]
    assert found[1] == [[f"{value:.{digits}f}" for digits in (0, 1, 2, 3, 12)] for value in halves]


# --------------------------------------------------------------------------------------------------- comparison with val


def drawn_traits(rng: np.random.Generator, target: np.ndarray, apart: float, directions: int = 5) -> Traits:
    """Traits of images whose classes lie apart, and which themselves lie ``apart`` from others."""
    n = len(target)
    points = rng.normal(0, 1, (n, directions)) + target[:, None] * 0.3 + apart
    predicted = np.where(rng.random(n) < 0.1, rng.integers(0, 3, n), target)
    look = np.column_stack(
        [rng.normal(180 - 20 * apart, 5, (n, 3)), rng.normal(0.5 + apart / 4, 0.1, n), rng.random((n, 2))]
    )
    look[rng.random(n) < 0.1, 3] = np.nan
    score, doubt = rng.gamma(2, 0.2, n) * (1 + apart), rng.beta(1, 6, n).round(2)
    points, score, doubt, look = (each.astype(np.float32) for each in (points, score, doubt, look))
    return Traits(points, score, doubt, predicted, look)


@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("looks", [False, True])
def test_images_are_compared_with_val_as_predict_compares_them(grouped, looks):
    rng = np.random.default_rng(7)
    classes, target = ("a", "b", "c"), rng.integers(0, 3, 600)
    index = np.arange(600) % 120 if grouped else None
    traits = drawn_traits(rng, target, 0)
    val = Likeness(np.eye(5, dtype=np.float32), traits, target, index)
    if looks:
        center, project = np.nanmean(traits.appearance, 0), np.diag([0.2, 0.2, 0.2, 10, 1, 1]).astype(np.float32)
        val = Likeness(project, traits, target, index, center)
        val = Likeness(project, val.see_points(*unseen(traits)), target, index, center)
    fresh = {
        "same": drawn_traits(rng, rng.integers(0, 3, 200), 0),
        "mixed": drawn_traits(rng, rng.choice(3, 200, p=[0.8, 0.1, 0.1]), 0),
        "near": drawn_traits(rng, rng.integers(0, 3, 100), 0.12),
        "apart": drawn_traits(rng, rng.integers(0, 3, 60), 1),
        "few": drawn_traits(rng, rng.integers(0, 3, 7), 1),
    }
    found = javascript(
        """
        const val = readLikeness(input.val);
        console.log(JSON.stringify(input.fresh.map((fresh) => {
          const found = fresh.map((row) => ({ ...row, appearance: row.appearance.map((value) => value ?? NaN) }));
          const test = compareWithVal(val, traitsOf(found, val), input.classes, fresh.length);
          return { test, said: verdictOf(test, NOTHING_ANSWERED, input.remedy) };
        })));""",
        {
            "val": page.carried_likeness(val),
            "classes": classes,
            "fresh": [outputs_of(each) for each in fresh.values()],
            "remedy": remedy(),
        },
    )
    for (name, new), each in zip(fresh.items(), found, strict=True):
        expected, test = compare(val, val.see_points(*unseen(new)), classes), each["test"]
        for key in ("n", "of", "val", "level", "not_tested", "withdrawn"):
            assert test[key] == getattr(expected, key), (name, key)
        for key in ("p", "p_features", "p_appearance", "p_ood", "p_uncertainty", "p_class_mix"):
            one, other = test.get(key), getattr(expected, key)
            assert (one is None) == (other is None), (name, key)
            assert one is None or abs(one - other) < 0.004 + 0.2 * np.sqrt(other * (1 - other)), (name, key)
        assert [d["measure"] for d in test["differs"]] == [d.measure for d in expected.differs], name
        for one, other in zip(test["differs"], expected.differs, strict=True):
            pair = [[*one["val"], *one["here"], one["deviations"]], [*other.val, *other.here, other.deviations]]
            assert np.allclose(*pair, atol=1e-5), name
        assert [(d["name"], d["here"]) for d in test["class_mix"]] == [(d.name, d.here) for d in expected.class_mix], (
            name
        )
        drawn = {key: test.get(key) for key in ("p", "p_features", "p_appearance", "p_ood", "p_uncertainty")}
        wanted = verdict(replace(expected, **drawn), then=NOTHING)
        assert each["said"] == wanted, name


def unseen(traits: Traits) -> tuple[np.ndarray, ...]:
    return traits.points, traits.uncertainty, traits.predicted, traits.ood, traits.appearance


def outputs_of(traits: Traits) -> list[dict[str, object]]:
    """The outputs of a model on each image."""
    return [
        {
            "points": traits.points[i].astype(float).tolist(),
            "ood": float(traits.ood[i]),
            "plain_uncertainty": float(traits.uncertainty[i]),
            "plain_label": int(traits.predicted[i]),
            "appearance": [None if np.isnan(value) else float(value) for value in traits.appearance[i]],
        }
        for i in range(len(traits))
    ]


# ------------------------------------------------------------------------------------------------------------- the page


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """A folder that passes for onnxruntime-web."""
    folder = tmp_path / "lib" / "node_modules" / "onnxruntime-web"
    (folder / "dist").mkdir(parents=True)
    (folder / "package.json").write_text(json.dumps({"name": "onnxruntime-web", "version": page.VERSION}))
    for name in page.DIGESTS:
        (folder / "dist" / name).write_bytes(name.encode())
    monkeypatch.setattr(page, "DIGESTS", {name: page.sha256(name.encode()) for name in page.DIGESTS})
    return folder


@pytest.mark.parametrize("task", ["classification", "multilabel", "segmentation"])
def test_a_page_has_all_that_it_needs(tmp_path, stand_in, task):
    pytest.importorskip("onnx")
    package = color_package.write_package(tmp_path / "package", task)
    page.write_page(package, tmp_path / "page.html", tmp_path / "lib")
    html = (tmp_path / "page.html").read_text()
    parsed = Page(html)
    parsed.check_self_contained()
    assert "default-src 'none'" in html and "unsafe-eval'" not in html.replace("wasm-unsafe-eval", "")
    for word in (
        Manifest.read(package / "package.json").fingerprint,
        "blue, or so",
        "10 x 12 pixels",
        "images with what the model answers",
    ):
        assert word in parsed.text
    assert (task == "segmentation") == (page.TESTED not in parsed.text)
    assert (task == "classification") == ("Prediction sets" in parsed.text)
    assert parsed.text.count("cannot be guaranteed") == (task != "segmentation")


def test_what_a_page_cannot_do_is_refused(tmp_path, stand_in):
    pytest.importorskip("onnx")
    scaled = {
        "height": 10,
        "width": 12,
        "channels": 3,
        "filter": "bilinear",
        "bits": 16,
        "gray": False,
        "scale": "0.1um",
    }
    for changes, words in (({"input": scaled}, "data.scale 0.1um"), ({"format": "pt2"}, "in the format pt2")):
        package = color_package.write_package(tmp_path / next(iter(changes)), **changes)
        with pytest.raises(RequestError, match=words):
            page.write_page(package, tmp_path / "page.html", stand_in)
    (package / "package.json").write_text('{"name": 1}')
    with pytest.raises(RequestError, match=r"package\.json is damaged"):
        page.write_page(package, tmp_path / "page.html", stand_in)
    assert not (tmp_path / "page.html").exists()


def test_the_runtime_is_the_published_one(tmp_path, stand_in, monkeypatch):
    assert page.find_runtime(stand_in) == stand_in / "dist" == page.find_runtime(stand_in / "dist")
    monkeypatch.chdir(tmp_path / "lib")
    assert page.find_runtime(None).resolve() == stand_in / "dist"
    (stand_in / "dist" / page.WASM).write_bytes(b"another")
    with pytest.raises(RequestError, match=r"not the file that was published with onnxruntime-web"):
        page.read_runtime(stand_in / "dist")
    (stand_in / "dist" / page.WASM).unlink()
    with pytest.raises(RequestError, match=r"is missing; install it again with npm install onnxruntime-web@"):
        page.read_runtime(stand_in / "dist")
    (stand_in / "package.json").write_text('{"name": "onnxruntime-web", "version": "1.2.3"}')
    with pytest.raises(RequestError, match=r"has version 1\.2\.3 of onnxruntime-web, and the page needs"):
        page.find_runtime(stand_in)
    with pytest.raises(RequestError, match=r"which is not in .*; get it with npm install onnxruntime-web@"):
        page.find_runtime(tmp_path / "nothing")
