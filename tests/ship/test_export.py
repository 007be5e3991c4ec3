"""Packages: from a run to what its package answers, with and without Petriscope."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from importlib import metadata
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from PIL import Image

from petriscope import api, cli
from petriscope.core.errors import DataError, PetriscopeError, RequestError
from petriscope.core.recipe import TilesSection, load_recipe
from petriscope.data import load_dataset
from petriscope.inference import offline, verification
from petriscope.inference.exported import PackagePredictor, open_model
from petriscope.inference.package import ARRAYS, MANIFEST, MODEL, SIGNATURE, Manifest, Package
from petriscope.inference.predictor import load_model
from petriscope.inference.runtime import FORMATS, open_session
from petriscope.inference.verification import as_input, verify
from petriscope.run.folder import open_run
from petriscope.ship import export as exporting
from petriscope.ship import lowered, test_images
from petriscope.ship.recheck import verify_on

pytest.importorskip("onnxscript")

# A Python that has numpy, Pillow, onnxruntime and the standard library, and nothing else.
BARE = """
import sys, importlib.abc
class Refuse(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name.partition(".")[0] not in {*sys.stdlib_module_names, "numpy", "PIL", "onnxruntime", "petriscope"}:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Refuse())
sys.path[:] = [each for each in sys.path if not each.endswith("/src")]
import runpy
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def blobs(n, seed, light=0):
    """Dark discs on a bright ground, large and small: two classes. ``light``: is taken from the ground."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % 2
    y, x = np.mgrid[:16, :16] - 7.5
    inside = (x**2 + y**2)[None] < (rng.normal(3, 0.2, n) + 3 * labels)[:, None, None] ** 2
    level = np.where(inside, rng.normal(90, 5, n)[:, None, None], rng.normal(215, 4, n)[:, None, None] - light)
    images = level[..., None] + rng.normal(0, 6, (n, 16, 16, 3))
    return images.clip(0, 255).astype(np.uint8), labels


def write_folder(folder, n, seed, light=0):
    """Class folders of PNG and JPEG files of several sizes, some of them turned upright by EXIF."""
    images, labels = blobs(n, seed, light)
    for number, (pixels, label) in enumerate(zip(images, labels, strict=True)):
        place = folder / ("large" if label else "small")
        place.mkdir(parents=True, exist_ok=True)
        if number % 3 == 0:
            orientation = test_images.TURNED if number % 2 else 1
            (place / f"{number:03d}.jpg").write_bytes(test_images.encoded(pixels, "JPEG", orientation))
        else:
            image = Image.fromarray(pixels)
            image = image.resize((20, 24)) if number % 3 == 1 else image
            image.save(place / f"{number:03d}.png")
    return folder


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    return tmp_path_factory.mktemp("export")


@pytest.fixture(scope="module")
def run(kept):
    """A run on files with 300 images of val."""
    source = kept / "cells"
    for seed, (split, count) in enumerate((("train", 120), ("val", 300), ("test", 40))):
        write_folder(source / split, count, seed)
    recipe = load_recipe(
        "demo",
        name="blobs",
        data={"source": str(source), "size": 16},
        augment=["flip"],
        model={"name": "simple-cnn", "widths": [4, 8, 8], "hidden": 8},
        training={"epochs": 6, "batch_size": 16, "precision": "fp32", "device": "cpu"},
        evaluation={"bootstrap": 100, "stress": "off", "tta": "flips"},
    )
    return api.train(recipe, kept / "run", quiet=True)


@pytest.fixture(scope="module")
def packed(run, kept):
    """Its package."""
    return api.export(run.folder, kept / "package", quiet=True).folder


@pytest.fixture
def package(packed, tmp_path):
    """A copy of it, which may be changed."""
    return Path(shutil.copytree(packed, tmp_path / "package"))


def predict_bare(package, *words):
    """What ``predict.py`` prints where there is neither torch nor Petriscope."""
    command = [sys.executable, "-c", BARE, str(package / "predict.py"), *map(str, words)]
    return subprocess.run(
        command, capture_output=True, text=True, cwd=package.parent, check=False, env={"PATH": "/usr/bin"}
    )


def petriscope(capsys, monkeypatch, *words):
    """What the command prints: exit status, stdout, stderr."""
    monkeypatch.setattr(sys, "argv", ["petriscope", *map(str, words)])
    capsys.readouterr()
    try:
        cli.main()
        status = 0
    except SystemExit as end:
        status = int(end.code or 0)
    out = capsys.readouterr()
    return status, out.out, out.err


def test_where_the_run_predicts_in_another_format_that_is_said(packed):
    manifest = Manifest.read(packed / MANIFEST)
    (same,), (compared, said) = (
        exporting.Exported(packed, manifest, number).sentences() for number in ("fp32", "bf16")
    )
    assert same == compared and "equal answers" in same
    assert "compared in single precision" in said and "in bf16 on this machine" in said


def test_a_package_says_what_it_is(packed, run):
    manifest = Manifest.read(packed / MANIFEST)
    assert (manifest.name, manifest.task, manifest.classes) == ("blobs", "classification", ("large", "small"))
    assert manifest.input.shape == (16, 16, 3) and manifest.tta == "flips" and manifest.temperature > 0
    assert [each.max_error for each in manifest.error_rates] == [0.005, 0.01, 0.02, 0.05, 0.1]
    assert any(each.threshold is not None for each in manifest.error_rates)
    found = manifest.verification
    assert found.images == found.of == found.from_files == 300 and found.batches == (1, 2, 7, 256)
    assert found.largest_difference <= 1e-4
    names = {path.relative_to(packed).as_posix() for path in packed.rglob("*") if path.is_file()}
    assert names == {*manifest.files, MANIFEST} and {"predict.py", "README.md", MODEL, ARRAYS} <= names
    assert Manifest.read(packed / MANIFEST).text() == (packed / MANIFEST).read_text()


def test_the_card_has_metadata_metrics_and_limits(packed, run):
    text = (packed / "README.md").read_text()
    _, metadata, body = text.split("---\n", 2)
    facts = yaml.safe_load(metadata)
    assert facts["pipeline_tag"] == "image-classification" and facts["license"] == "other"
    accuracy = run.results.val.metrics["accuracy"].value
    measured = facts["model-index"][0]["results"][0]["metrics"]
    assert {"type": "accuracy", "name": "Accuracy", "value": round(accuracy, 6)} in measured
    assert f"{100 * accuracy:.4g} %" in body and "at most 5 % errors" in body and "300 of 300 images" in body


def test_the_test_images_are_files_of_val_as_they_lie(packed, run):
    files = [path for path in (packed / "tests").iterdir() if path.suffix != ".npz"]
    assert len(files) == 32 and {path.suffix for path in files} == {".png", ".jpg"}
    known = {path.read_bytes() for path in Path(run.recipe.data.source).rglob("*.*")}
    assert sum(path.read_bytes() in known for path in files) == 32 - test_images.JPEGS - 1
    assert any(Image.open(path).getexif().get(0x0112) == test_images.TURNED for path in files)


def test_a_package_verifies_itself(package, capsys, monkeypatch):
    found = verify(package)
    assert found.images == 32 and found.batches == (1, 2, 7, 32) and found.largest_difference <= 1e-4
    status, out, _ = petriscope(capsys, monkeypatch, "verify", package)
    assert status == 0 and "32 test images" in out and found.fingerprint in out
    status, out, _ = petriscope(capsys, monkeypatch, "verify", package, "--json")
    assert json.loads(out)["fingerprint"] == found.fingerprint


def test_it_predicts_and_verifies_without_torch_and_without_petriscope(package):
    done = predict_bare(package, "--verify")
    assert done.returncode == 0, done.stderr
    assert "32 test images" in done.stdout


def test_the_runtime_reports_nothing_to_its_maker(package):
    home = package.parent / "home"
    home.mkdir()
    command = [sys.executable, str(package / "predict.py"), str(package / "tests")]
    said = subprocess.run(command, check=True, capture_output=True, env={"PATH": "/usr/bin", "HOME": str(home)})
    assert said.stdout and not list(home.rglob("*")), "no id of this machine"


@pytest.mark.parametrize("options", [(), ("--max-error", "0.05"), ("--max-error", "0.05", "--set-coverage", "0.9")])
def test_its_table_is_that_of_the_run(package, run, tmp_path, capsys, monkeypatch, options):
    images = write_folder(tmp_path / "new", 60, 7)
    (images / "small" / "damaged.png").write_bytes(b"no image")
    status, out, err = petriscope(capsys, monkeypatch, "predict", run.folder, images, *options)
    done = predict_bare(package, images, *options)
    assert status == done.returncode == 1 and "damaged.png" in done.stderr, done.stderr
    same_tables(out, done.stdout)
    for sentence in ("answers need ",) * ("--max-error" in options):
        assert sentence in err and sentence in done.stderr


def same_tables(one, other):
    """Tables are equal, but for the last digits of probabilities."""
    rows = [list(csv.DictReader(io.StringIO(text))) for text in (one, other)]
    assert len(rows[0]) == len(rows[1]) > 0 and list(rows[0][0]) == list(rows[1][0])
    for left, right in zip(*rows, strict=True):
        for name in left:
            if left[name] and (name.startswith("p_") or name == "confidence"):
                assert float(left[name]) == pytest.approx(float(right[name]), abs=1e-4)
            else:
                assert left[name] == right[name], name


def test_it_withdraws_guarantees_in_the_words_of_the_run(package, run, tmp_path, capsys, monkeypatch):
    images = write_folder(tmp_path / "other", 60, 7, light=25)
    options = ("--max-error", "0.05")
    _, out, err = petriscope(capsys, monkeypatch, "predict", run.folder, images, *options)
    done = predict_bare(package, images, *options)
    assert done.returncode == 0, done.stderr
    same_tables(out, done.stdout)
    loud = [line for line in err.splitlines() if "GUARANTEES WITHDRAWN" in line]
    assert loud and loud[0] in done.stderr
    assert all(row["answer"] == "not sure" for row in csv.DictReader(io.StringIO(done.stdout)))
    some = predict_bare(package, images, *options, "--without-guarantee")
    assert any(row["answer"] != "not sure" for row in csv.DictReader(io.StringIO(some.stdout)))


def test_few_images_are_not_tested_which_is_said(package, tmp_path):
    images = write_folder(tmp_path / "few", 5, 7)
    done = predict_bare(package, images, "--max-error", "0.05")
    assert done.returncode == 0 and "was not tested: 5 images are too few" in done.stderr


def test_an_error_rate_that_is_not_on_offer_is_refused_with_those_that_are(package, tmp_path):
    images = write_folder(tmp_path / "few", 2, 7)
    done = predict_bare(package, images, "--max-error", "0.03")
    assert done.returncode == 2 and "0.005, 0.01, 0.02, 0.05, 0.1" in done.stderr and "Traceback" not in done.stderr


def test_petriscope_takes_a_package_like_a_run(package, run, tmp_path, capsys, monkeypatch):
    images = write_folder(tmp_path / "new", 40, 9)
    options = ("--max-error", "0.03", "--classes", "large,small")
    _, of_run, _ = petriscope(capsys, monkeypatch, "predict", run.folder, images, *options)
    status, of_package, err = petriscope(capsys, monkeypatch, "predict", package, images, *options)
    assert status == 0, err
    same_tables(of_run, of_package)
    _, again, err = petriscope(capsys, monkeypatch, "predict", package, images, *options, "--device", "cuda")
    assert again == of_package and "--device cuda has no effect" in err


def test_it_is_evaluated_by_the_same_code(package, run, tmp_path):
    other = write_folder(tmp_path / "elsewhere", 50, 11)
    expected = api.evaluate(run.folder, other, quiet=True).as_json()
    found = api.evaluate(package, other, quiet=True).as_json()
    assert expected.keys() == found.keys() and expected["n"] == found["n"] == 50
    for key in ("accuracy", "balanced_accuracy", "nll", "ece", "accuracy_ci95"):
        assert found[key] == pytest.approx(expected[key], abs=1e-5)
    for key in ("confusion", "selective", "ood"):
        assert found[key] == expected[key]


def test_what_a_package_cannot_do_is_said(package, run, tmp_path):
    with pytest.raises(RequestError, match="name a source with --data"):
        api.evaluate(package)
    with pytest.raises(RequestError, match="test-time augmentation flips"):
        api.predict(package, blobs(3, 1)[0], tta="d4")
    with pytest.raises(RequestError, match="has no network of torch; use the run"):
        api.explain(package, blobs(3, 1)[0], tmp_path / "out")


@pytest.mark.parametrize("name", [MODEL, ARRAYS, "README.md", "tests/00.png", "tests/vectors.npz", "predict.py"])
def test_a_changed_file_is_found(package, name):
    content = bytearray((package / name).read_bytes())
    content[len(content) // 2] ^= 1
    (package / name).write_bytes(content)
    with pytest.raises(PetriscopeError, match=name.rpartition("/")[2]):
        verify(package)


def test_missing_and_added_files_are_found(package):
    gone = next((package / "tests").glob("*.png"))
    gone.unlink()
    (package / "lib" / "petriscope" / "more.py").write_text("")
    with pytest.raises(PetriscopeError, match=rf"1 missing \(tests/{gone.name}\), 1 added \(lib/petriscope/more.py\)"):
        verify(package)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda tree: tree.pop("input"), "damaged"),
        (lambda tree: tree.update(schema_version=99), "newer version"),
        (lambda tree: tree.update(classes=[]), "no classes"),
        (lambda tree: tree["input"].update(height=-3), "sides of images"),
        (lambda tree: tree.update(temperature="hot"), "number"),
        (lambda tree: tree.update(outputs=["label"]), "outputs"),
    ],
)
def test_a_damaged_manifest_is_one_sentence(package, change, said):
    tree = json.loads((package / MANIFEST).read_text())
    change(tree)
    (package / MANIFEST).write_text(json.dumps(tree))
    with pytest.raises(RequestError, match=said):
        Package(package)


@pytest.mark.parametrize(
    "change",
    [
        lambda tree: tree["error_rates"][0].update(max_error=0.001),
        lambda tree: tree["error_rates"][-1].update(threshold=0.9),
        lambda tree: tree.update(classes=list(reversed(tree["classes"]))),
        lambda tree: tree["input"].update(height=tree["input"]["height"] + 4),
        lambda tree: tree.update(files={}),
    ],
)
def test_a_manifest_that_promises_something_else_is_not_used(package, change):
    tree = json.loads((package / MANIFEST).read_text())
    change(tree)
    (package / MANIFEST).write_text(json.dumps(tree))
    with pytest.raises(RequestError, match=r"package\.json was changed after the export"):
        Package(package)


def test_test_images_are_files_beside_their_vectors(package, monkeypatch):
    arrays = verification.read_arrays(package / "tests" / "vectors.npz")
    arrays["names"] = np.array(["../predict.py", *arrays["names"][1:]])
    monkeypatch.setattr(verification, "read_arrays", lambda path: dict(arrays))
    with pytest.raises(PetriscopeError, match=r"names '\.\./predict\.py', which is not beside it"):
        verify(package)


def test_what_python_would_run_instead_of_a_file_is_added(package):
    (package / "lib" / "petriscope" / "__pycache__").mkdir()
    (package / "lib" / "petriscope" / "__pycache__" / "other.cpython-312.pyc").write_bytes(b"")
    (package / "lib" / "numpy").symlink_to(package / "tests", target_is_directory=True)
    with pytest.raises(PetriscopeError, match=r"2 added \(lib/numpy, lib/petriscope/__pycache__/other"):
        verify(package)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--threads", "0"], "--threads must be from 1 to 1024; got 0"),
        (["--threads", "1000000"], "--threads must be from 1 to 1024"),
        (["--key", "public.pem"], "--key needs --verify"),
        (["--verify"], "its own test images"),
    ],
)
def test_options_that_the_program_would_pass_over_are_refused(package, capsys, options, said):
    assert offline.main(package, [str(package / "tests"), *options]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no device that is always full")
def test_a_table_that_cannot_be_written_is_one_sentence(package):
    with Path("/dev/full").open("w") as full:
        command = [sys.executable, str(package / "predict.py"), str(package / "tests" / "00.png")]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith(
        "error: the result cannot be written to the standard output: No space"
    )


def test_a_package_without_one_of_its_modules_or_libraries_is_one_sentence(package):
    (package / "lib" / "petriscope" / "data" / "decode.py").unlink()
    done = predict_bare(package, package / "tests")
    assert done.returncode == 1 and "Traceback" not in done.stderr and "export the package again" in done.stderr
    (package / "lib" / "petriscope" / "inference" / "offline.py").write_text("import libraryofnobody")
    done = predict_bare(package, package / "tests")
    assert done.returncode == 1 and done.stderr.startswith(
        "error: No module named 'libraryofnobody'; this program needs"
    )


def keys(folder):
    cryptography = pytest.importorskip("cryptography.hazmat.primitives.serialization")
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    private = Ed25519PrivateKey.generate()
    pem, none = cryptography.Encoding.PEM, cryptography.NoEncryption()
    (folder / "key.pem").write_bytes(private.private_bytes(pem, cryptography.PrivateFormat.PKCS8, none))
    public = private.public_key().public_bytes(pem, cryptography.PublicFormat.SubjectPublicKeyInfo)
    (folder / "public.pem").write_bytes(public)
    return folder / "key.pem", folder / "public.pem"


def test_a_signature_shows_who_made_it(run, tmp_path):
    key, public = keys(tmp_path)
    folder = api.export(run.folder, tmp_path / "signed", key=key, sample=40, quiet=True).folder
    assert verify(folder, public).signed
    (tmp_path / "other").mkdir()
    with pytest.raises(PetriscopeError, match="not by the key"):
        verify(folder, keys(tmp_path / "other")[1])
    text = (folder / MANIFEST).read_text()
    (folder / MANIFEST).write_text(text.replace('"blobs"', '"blops"'))
    with pytest.raises(PetriscopeError, match="was changed after it was signed"):
        verify(folder, public)
    (folder / SIGNATURE).unlink()
    with pytest.raises(PetriscopeError, match="not signed"):
        verify(folder, public)
    with pytest.raises(RequestError, match="no private key"):
        api.export(run.folder, tmp_path / "no", key=public, quiet=True)
    assert not (tmp_path / "no").exists()


def test_a_package_that_answers_otherwise_is_not_kept(run, tmp_path, monkeypatch):
    class Wrong(exporting.Answers):
        def of(self, images):
            found = super().of(images)
            return {**found, "label": 1 - found["label"][:1].repeat(len(images))}

    monkeypatch.setattr(exporting, "Answers", Wrong)
    with pytest.raises(PetriscopeError, match=r"Of 300 images of val: .* with another label \(val/"):
        api.export(run.folder, tmp_path / "package", quiet=True)
    assert not (tmp_path / "package").exists()


def test_a_file_that_changed_since_training_is_found(run, tmp_path):
    source = Path(run.recipe.data.source)
    path = next((source / "val" / "small").glob("*.png"))
    before = path.read_bytes()
    try:
        Image.fromarray(blobs(1, 99)[0][0]).save(path)
        folder = api.export(run.folder, tmp_path / "package", quiet=True).folder
        found = Manifest.read(folder / MANIFEST).verification
        assert (found.images, found.of) == (299, 299)  # the images that are left of val
    finally:
        path.write_bytes(before)


def test_no_image_of_the_data_leaves_with_it_if_so_asked(run, tmp_path):
    folder = api.export(run.folder, tmp_path / "package", images=False, sample=40, quiet=True).folder
    val = load_dataset(run.recipe.data).split("val")
    known = set(val.digests()) | set(load_dataset(run.recipe.data).split("train").digests())
    arrays = np.load(folder / "tests" / "vectors.npz")
    from petriscope.data.index import row_digests

    assert not known & {bytes(each) for each in row_digests(arrays["images"])}
    assert verify(folder).images == 32
    assert len(np.unique(arrays["label"])) >= 1


EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"


def answer_at_one_percent(package, path):
    """What the model answers for an image file, and its confidence, by the outputs of the graph."""
    opened = Package(package)
    found = opened.run(as_input(path, opened.manifest.input)[None])
    answer = int(found["answers"][0, [each.max_error for each in opened.manifest.error_rates].index(0.01)])
    return f"{'not sure' if answer < 0 else opened.classes[answer]} {found['probabilities'].max():.4f}"


def test_the_example_in_python(package):
    for path in sorted((package / "tests").glob("*.png"))[:3]:
        words = [sys.executable, str(EXAMPLES / "classify.py"), str(package), str(path)]
        done = subprocess.run(words, capture_output=True, text=True, check=True)
        assert done.stdout.strip() == answer_at_one_percent(package, path)


def test_the_example_in_javascript(package, tmp_path):
    modules = Path(os.environ.get("ONNXRUNTIME_WEB", "none")) / "node_modules"
    if shutil.which("node") is None or not (modules / "pngjs").is_dir():
        pytest.skip("needs node, and ONNXRUNTIME_WEB with the folder where npm installed onnxruntime-web and pngjs")
    (tmp_path / "node_modules").symlink_to(modules)
    shutil.copy(EXAMPLES / "classify.mjs", tmp_path)
    image = tmp_path / "image.png"
    Image.fromarray(blobs(1, 3)[0][0]).save(image)
    words = ["node", "classify.mjs", str(package), str(image)]
    done = subprocess.run(words, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == answer_at_one_percent(package, image)


def test_masks(kept, tmp_path, capsys, monkeypatch):
    recipe = load_recipe(
        "synthetic-terrain/unet",
        data={"source": "synthetic-terrain:60"},
        training={"epochs": 1, "precision": "fp32", "device": "cpu"},
        evaluation={"stress": "off"},
    )
    run = api.train(recipe, tmp_path / "run", quiet=True)
    folder = api.export(run.folder, tmp_path / "package", quiet=True).folder
    assert verify(folder).images > 0 and isinstance(open_model(folder), PackagePredictor)
    images = tmp_path / "images"
    images.mkdir()
    for number, pixels in enumerate(load_dataset(run.recipe.data).split("val").images[:3]):
        Image.fromarray(pixels.squeeze()).save(images / f"{number}.png")
    petriscope(capsys, monkeypatch, "predict", run.folder, images, "--out", tmp_path / "of-run")
    done = predict_bare(folder, images, "--out", tmp_path / "of-package")
    assert done.returncode == 0, done.stderr
    for path in (tmp_path / "of-run").glob("*.png"):
        left, right = (np.asarray(Image.open(each)) for each in (path, tmp_path / "of-package" / path.name))
        assert (left != right).mean() < 1e-3
    expected = api.evaluate(run.folder, "synthetic-terrain:60", split="test", quiet=True).metrics["miou"].value
    found = api.evaluate(folder, "synthetic-terrain:60", split="test", quiet=True).metrics["miou"].value
    assert found == pytest.approx(expected, abs=1e-4)


@pytest.mark.slow
def test_a_lower_precision_is_fitted_anew_and_measured_beside_the_run(run, tmp_path):
    folder = api.export(run.folder, tmp_path / "package", precision="int8", quiet=True).folder
    manifest = Manifest.read(folder / MANIFEST)
    assert manifest.precision == "int8" and [each.of for each in manifest.measured] == ["run", "fp32", "int8"]
    of_run, single, lower = manifest.measured
    assert of_run.accuracy == run.results.val.metrics["accuracy"].value == single.accuracy and of_run.bytes is None
    assert abs(lower.change) <= 0.02 and lower.bytes < single.bytes and lower.images_per_second > 0
    assert verify(folder).images == 32
    assert "## Precision" in (folder / "README.md").read_text()
    reference = open_model(folder).trust.references["flips"]
    found = Package(folder).run(load_dataset(run.recipe.data).split("val").images)
    assert np.abs(found["uncertainty"] - reference.uncertainty).max() < 1e-5  # fitted on what it answers itself
    assert (found["label"] == reference.target).mean() == pytest.approx(lower.accuracy)


@pytest.mark.slow
def test_a_lower_precision_that_is_worse_is_refused(run, tmp_path, monkeypatch, capsys):
    worse = {"accuracy": 0.9, "change": -0.03, "change_ci95": (-0.04, -0.02)}
    monkeypatch.setattr(lowered, "_compared", lambda metrics, _: dict.fromkeys(metrics, worse))
    with pytest.raises(
        PetriscopeError, match=r"3.00 points worse than that of the run \(95 %: by 2.00 or more\); nothing was"
    ):
        api.export(run.folder, tmp_path / "package", precision="fp16", quiet=True)
    assert not (tmp_path / "package").exists()
    forced = api.export(run.folder, tmp_path / "package", precision="fp16", force=True, quiet=True).folder
    assert verify(forced).images == 32 and Manifest.read(forced / MANIFEST).precision == "fp16"
    assert "exported all the same, as requested" in capsys.readouterr().err
    with pytest.raises(RequestError, match="precision cannot be 'int4'"):
        api.export(run.folder, tmp_path / "other", precision="int4")
    with pytest.raises(RequestError, match="format cannot be 'tflite'; known: onnx, pt2, openvino"):
        api.export(run.folder, tmp_path / "other", format="tflite")
    with pytest.raises(RequestError, match="models in int8 are in the format onnx, not in pt2"):
        api.export(run.folder, tmp_path / "other", format="pt2", precision="int8")


@pytest.mark.parametrize("format", ["pt2", "openvino"])
def test_other_formats_answer_alike_and_are_verified_alike(run, packed, tmp_path, format):
    pytest.importorskip(FORMATS[format].library)
    folder = api.export(run.folder, tmp_path / "package", format=format, sample=100, quiet=True).folder
    manifest, files = Manifest.read(folder / MANIFEST), FORMATS[format].files
    assert manifest.format == format and set(files) <= set(manifest.files) and not (folder / MODEL).exists()
    if format == "pt2":
        check_program(folder / "model.pt2")
    assert manifest.verification.images == 100 and manifest.verification.largest_difference <= 1e-4
    assert verify(folder).images == 32 and FORMATS[format].library in (folder / "README.md").read_text()
    pixels = blobs(9, 5)[0]
    for count in (0, 1, 9):
        found, expected = (Package(each).run(pixels[:count]) for each in (folder, packed))
        for name in ("label", "answers", "sets"):
            np.testing.assert_array_equal(found[name], expected[name])
        np.testing.assert_allclose(found["probabilities"], expected["probabilities"], atol=1e-4)
    with ThreadPoolExecutor(4) as pool:  # threads can share one
        package = Package(folder, threads=1)
        for labels in pool.map(lambda _: package.run(pixels)["label"], range(16)):
            np.testing.assert_array_equal(labels, expected["label"])
    content = (folder / files[-1]).read_bytes()
    (folder / files[-1]).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(RequestError, match=f"{files[-1]} was changed"):
        Package(folder)


def check_program(path):
    """A program of torch has no pickle and no path of this machine, and can be used alone."""
    with zipfile.ZipFile(path) as packed:
        contents = [packed.read(each) for each in packed.infolist()]
    assert not any(content.startswith(b"\x80") or content[:2] == b"PK" for content in contents)
    assert not any(str(Path(exporting.__file__).parents[1]).encode() in content for content in contents)
    found = torch.export.load(path).module()(torch.zeros(3, 16, 16, 3, dtype=torch.uint8))
    assert found["probabilities"].shape == (3, 2)


class Runs:
    """What makes a file when it is unpickled."""

    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return Path.touch, (self.file,)


def _with_pickled_weight(contents, code):
    name = next(each for each in contents if each.endswith("weights_config.json"))
    config = json.loads(contents[name])
    next(iter(config["config"].values())).update(use_pickle=True)
    weight = next(each for each in contents if each.endswith("weights/weight_0"))
    return {**contents, name: json.dumps(config).encode(), weight: code}


def _with_inputs(contents, code):
    return {name: code if "sample_inputs" in name else content for name, content in contents.items()}


def _with_old_weights(contents, code):
    root = next(iter(contents)).partition("/")[0]
    return {**contents, f"{root}/data/weights/model.pt": code}


def _with_a_size_that_is_code(contents, code):
    name = next(each for each in contents if each.endswith("models/model.json"))
    assert b'"expr_str"' in contents[name]
    return {**contents, name: re.sub(rb'"expr_str": "[^"]*"', b'"expr_str": "__import__(\'os\')"', contents[name])}


@pytest.mark.parametrize("change", [_with_pickled_weight, _with_inputs, _with_old_weights, _with_a_size_that_is_code])
def test_a_program_that_could_run_code_is_not_opened(run, tmp_path, change):
    folder = api.export(run.folder, tmp_path / "package", format="pt2", sample=32, quiet=True).folder
    with zipfile.ZipFile(folder / "model.pt2") as packed:
        contents = {each: packed.read(each) for each in packed.namelist()}
    code = io.BytesIO()
    torch.save(Runs(tmp_path / "it ran"), code)
    with zipfile.ZipFile(folder / "model.pt2", "w") as packed:
        for name, content in change(contents, code.getvalue()).items():
            packed.writestr(name, content)
    with pytest.raises(ValueError, match="can run code"):
        open_session(folder, "pt2", None)
    assert not (tmp_path / "it ran").exists()


def test_a_package_is_compared_on_the_images_of_val_that_one_has(package, run, tmp_path, capsys, monkeypatch):
    source = run.recipe.data.source
    status, out, _ = petriscope(capsys, monkeypatch, "verify", package, "--data", source, "--json")
    found = json.loads(out)["val"]
    assert status == 0 and (found["images"], found["of"]) == (300, 300) and found["largest_difference"] <= 1e-4
    some = shutil.copytree(Path(source) / "val", tmp_path / "some")  # not called val, and not all of it
    for path in sorted(some.rglob("*.*"))[::2]:
        path.unlink()
    status, out, _ = petriscope(capsys, monkeypatch, "verify", package, "--data", some)
    assert status == 0 and "150 of 300 images of val whose answers the package keeps are in" in out
    with pytest.raises(DataError, match="none of the 300 images of val"):
        verify_on(package, str(write_folder(tmp_path / "other", 12, 77)), quiet=True)
    path = package / "tests" / "val.npz"
    arrays = dict(np.load(path))
    np.savez(path, **{**arrays, "label": 1 - arrays["label"]})
    with pytest.raises(PetriscopeError, match=r"Of 300 images of val: 300 with another label \(.*do not use it here"):
        verify_on(package, source, quiet=True)
    path.unlink()
    with pytest.raises(RequestError, match="keeps no answers on images of val"):
        verify_on(package, source, quiet=True)


def test_requests_that_cannot_be_met(run, tmp_path, monkeypatch):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("")
    with pytest.raises(RequestError, match="not empty"):
        api.export(run.folder, tmp_path / "full", quiet=True)
    with pytest.raises(RequestError, match="not a run folder"):
        api.export(tmp_path, tmp_path / "out", quiet=True)
    monkeypatch.setattr(metadata, "version", _missing)
    with pytest.raises(RequestError, match=r"pip install 'petriscope\[export\]'"):
        api.export(run.folder, tmp_path / "out", quiet=True)
    assert not (tmp_path / "out").exists() and open_run(run.folder)


def computes(*args, **more):
    raise AssertionError("something was computed before the request was refused")


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ({"depth": 16}, "reads gray and RGB images with 8 bits"),
        ({"channels": ("a", "b", "c")}, "reads gray and RGB images with 8 bits"),
        ({"scale": 2.0}, "scales images"),
        ({"filter": "draft"}, "at a fraction of their size"),
        ({"tiles": TilesSection(size=16)}, "predicts by tiles"),
    ],
)
def test_what_a_page_cannot_read_is_refused_before_anything_is_computed(run, tmp_path, monkeypatch, data, said):
    predictor = load_model(run.folder, "cpu")
    read = predictor.recipe.data.model_copy(update=data)
    changed = replace(predictor, recipe=predictor.recipe.model_copy(update={"data": read}))
    monkeypatch.setattr(exporting, "find_runtime", lambda place: place)
    monkeypatch.setattr(exporting, "load_model", lambda *args: changed)
    monkeypatch.setattr(exporting, "export", computes)
    with pytest.raises(RequestError, match=said):
        api.export_page(run.folder, tmp_path / "page.html", quiet=True)


def test_what_a_page_cannot_hold_is_refused_before_anything_is_computed(run, packed, tmp_path, monkeypatch):
    monkeypatch.setattr(exporting, "find_runtime", lambda place: place)
    for name in ("export", "verify"):
        monkeypatch.setattr(exporting, name, computes)
    for source in (run.folder, packed):
        with monkeypatch.context() as changed, pytest.raises(RequestError, match="holds a model of at most 0 MB"):
            changed.setattr("petriscope.ship.page.MOST_MODEL", 1000)
            api.export_page(source, tmp_path / "page.html", quiet=True)
        with pytest.raises(RequestError, match=r"nothing can be written into .*package\.json"):
            api.export_page(source, packed / MANIFEST / "page.html", quiet=True)
    with pytest.raises(AssertionError, match="something was computed"):
        api.export_page(run.folder, tmp_path / "page.html", quiet=True)


def test_a_lower_precision_is_refused_before_the_data_are_read(run, tmp_path, monkeypatch):
    monkeypatch.setattr(exporting, "own_split", computes)
    source = tmp_path / "run"
    shutil.copytree(run.folder, source)
    known = json.loads((source / "environment.json").read_text())
    for split, precision, said in (
        ("train", "int8", "int8 needs training images"),
        ("val", "fp16", "fp16 needs a run"),
    ):
        del known["data"]["splits"][split]
        (source / "environment.json").write_text(json.dumps(known))
        with pytest.raises(RequestError, match=said):
            api.export(source, tmp_path / "out", precision=precision, quiet=True)


def _missing(name):
    raise metadata.PackageNotFoundError(name)


def test_predictions_in_shards_are_those_of_one_process(run, packed, tmp_path):
    write_folder(tmp_path / "cells", 40, 9)
    for model in (run.folder, packed):
        table = api.predict(model, [tmp_path / "cells"], quiet=True, max_error=0.05)
        out = tmp_path / model.name
        api.predict_in_shards(model, tmp_path / "cells", out, 3, jobs=1, quiet=True, max_error=0.05)
        rows = pd.concat(map(pd.read_parquet, sorted(out.glob("shard-*"))), ignore_index=True)
        names = ["image", "predicted", "answer", "why"]
        assert rows[names].equals(table[names]) and len(rows) == 40
        np.testing.assert_allclose(rows["confidence"], table["confidence"], atol=1e-6)
