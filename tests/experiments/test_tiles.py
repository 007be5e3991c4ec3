"""Images of any size with masks: learned from crops, predicted by tiles, and judged in their own sizes."""

import re
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from petriscope import api
from petriscope.core.errors import RequestError
from petriscope.core.recipe import load_recipe
from petriscope.data import load_dataset
from petriscope.inference import objects
from petriscope.inference.base import Reading
from petriscope.inference.objects import ObjectCounter
from petriscope.inference.offline import main as offline
from petriscope.inference.package import Package
from petriscope.inference.predictor import load_model
from petriscope.inference.segmentation import segment
from petriscope.ship.page import write_page
from petriscope.ship.server.segmentation import NoRules, of_run
from petriscope.training.build import build_trainer

CLASSES = ("background", "red", "blue")
COLORS = np.array([[220, 220, 220], [180, 60, 80], [80, 60, 180]])


def draw(folder, count, seed, largest):
    """Images of random sizes with discs of two colors, and their masks."""
    rng = np.random.default_rng(seed)
    for part in ("images", "masks"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    for number in range(count):
        height, width = rng.integers(20, largest, 2).tolist()
        mask = np.zeros((height, width), np.uint8)
        y, x = np.mgrid[:height, :width]
        for _ in range(max(height * width // 600, 2)):
            inside = np.hypot(y - rng.integers(height), x - rng.integers(width)) <= rng.integers(4, 8)
            mask[inside] = rng.integers(1, 3)
        pixels = (COLORS[mask] + rng.normal(0, 6, (height, width, 3))).clip(0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / "images" / f"{number}.png")
        Image.fromarray(mask).save(folder / "masks" / f"{number}.png")
    (folder / "classes.txt").write_text("\n".join(CLASSES))
    return folder


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return draw(tmp_path_factory.mktemp("tiles") / "smear", 16, 0, 100)


@pytest.fixture(scope="module")
def run(source, tmp_path_factory):
    tree = {
        "data": {"source": str(source), "tiles": {"size": 32, "overlap": 0.25}},
        "augment": ["flip"],
        "model": {"name": "unet", "widths": [4, 8]},
        "optimizer": {"name": "adamw", "lr": 0.02},
        "training": {"epochs": 3, "batch_size": 4, "precision": "fp32", "device": "cpu", "ema": None},
        "evaluation": {"bootstrap": 100, "stress": "off"},
    }
    return api.train(
        load_recipe("demo", **{**tree, "loss": "cross-entropy"}), tmp_path_factory.mktemp("run") / "run", quiet=True
    )


def miou(truth, predicted):
    hits = [((truth == k) & (predicted == k)).sum() for k in (1, 2)]
    return np.mean([hit / ((truth == k) | (predicted == k)).sum() for k, hit in zip((1, 2), hits, strict=True)])


def read(path):
    with Image.open(path) as image:
        return np.asarray(image)


def test_evaluate_counts_the_pixels_of_the_masks_that_predict_writes(run, source, tmp_path):
    test = load_dataset(run.recipe.data).split("test")
    found = api.evaluate(run.folder, quiet=True, stress=True, stress_images=2)
    files = [source / str(id) for id in test.ids]
    table = api.predict(run.folder, files, out=tmp_path / "masks", quiet=True)
    pairs = [(read(source / "masks" / file.name), read(tmp_path / "masks" / file.name)) for file in files]
    assert all(truth.shape == predicted.shape for truth, predicted in pairs)
    truth, predicted = (np.concatenate([pair[side].ravel() for pair in pairs]) for side in (0, 1))
    assert found.value("miou") == pytest.approx(miou(truth, predicted), abs=1e-9) and found.value("miou") > 0.25
    assert re.fullmatch(r"images in their own sizes, .* by tiles of 32x32 that overlap by 25%", found.resolution)
    assert found.pixels == truth.size
    assert found.stress.tile == (32, 32)
    for name in CLASSES[1:]:
        counted = [ObjectCounter(CLASSES).count(mask)[f"objects_{name}"] for _, mask in pairs]
        assert table[f"objects_{name}"].tolist() == counted
    assert table.filter(like="objects_").to_numpy().sum() > 0


def test_the_report_shows_whole_images_and_says_in_which_size_metrics_are(run):
    page = (run.folder / "report.html").read_text()
    assert "images in their own sizes" in page and "tiles of 32x32" in page
    examples = run.gallery
    assert examples["segments_val_images"].shape[:3] == examples["segments_val_truth"].shape
    assert max(examples["segments_val_images"].shape[1:3]) <= 256
    assert examples["explained_val"].shape[1:3] == (32, 32)
    assert examples["augmented"].shape[2:4] == (32, 32)


def test_an_epoch_covers_the_images_with_other_crops_each_time(run):
    dataset = load_dataset(run.recipe.data)
    trainer, _ = build_trainer(run.recipe, dataset, load_model(run.folder, "cpu").device, quiet=True)
    first, again, second = (np.concatenate(trainer.epoch_batches(epoch)) for epoch in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, second)
    area = dataset.split("train").extents.prod(1).sum() / 32**2
    assert len(first) == pytest.approx(area, rel=0.35) and len(first) > len(dataset.split("train"))


def test_a_package_predicts_by_tiles_without_torch_and_there_is_no_page(run, source, tmp_path, capsys):
    package = api.export(run.folder, tmp_path / "package", quiet=True).folder
    assert Package(package).reading.overlap == 0.25
    big = draw(tmp_path / "big", 1, 3, 120) / "images" / "0.png"
    api.predict(run.folder, big, out=tmp_path / "by-run", quiet=True)
    assert offline(package, [str(big), "--out", str(tmp_path / "by-package"), "--quiet"]) == 0
    differ = read(tmp_path / "by-run" / "0.png") != read(tmp_path / "by-package" / "0.png")
    assert differ.mean() < 1e-3
    api.predict(run.folder, big, out=tmp_path / "wide-by-run", tiles=0.5, quiet=True)
    words = [str(big), "--quiet", "--tiles"]
    assert offline(package, [*words, "0.5", "--out", str(tmp_path / "wide-by-package")]) == 0
    wide, other = (read(tmp_path / f"wide-by-{name}" / "0.png") for name in ("run", "package"))
    assert (wide != other).mean() < 1e-3
    assert offline(package, [*words, "0.9", "--out", str(tmp_path / "not")]) == 2
    assert "from 0 to 0.5" in capsys.readouterr().err
    judged = api.evaluate(package, source, "test", quiet=True, keep_seen=True)
    assert "by tiles of 32x32" in judged.resolution
    with pytest.raises(RequestError, match="by tiles"):
        write_page(package, tmp_path / "page.html")


@pytest.mark.parametrize(("kind", "library"), [("pt2", "torch"), ("openvino", "openvino")])
def test_packages_of_other_formats_predict_by_tiles(run, kind, library, tmp_path):
    pytest.importorskip(library)
    package = api.export(run.folder, tmp_path / "package", format=kind, sample=4, quiet=True).folder
    big = draw(tmp_path / "big", 1, 3, 120) / "images" / "0.png"
    api.predict(run.folder, big, out=tmp_path / "by-run", quiet=True)
    assert offline(package, [str(big), "--out", str(tmp_path / "by-package"), "--quiet"]) == 0
    assert (read(tmp_path / "by-run" / "0.png") != read(tmp_path / "by-package" / "0.png")).mean() < 1e-3


def test_the_server_and_explanations_take_images_of_any_size(run, source, tmp_path, capsys):
    big = draw(tmp_path / "big", 1, 3, 120) / "images" / "0.png"
    served = of_run(load_model(run.folder, "cpu"), "smear", "x", False)
    image = served.decode("0.png", big.read_bytes())
    (found,) = served.predict(["0.png"], [image], [NoRules()])
    assert found.row.mask and served.overlay(image).shape[:2] == read(big).shape[:2]
    table = api.explain(run.folder, [big], tmp_path / "explained")
    assert table["error"].isna().all()
    assert "the tile of 32x32 in the middle of each image" in capsys.readouterr().err


def test_a_model_of_one_size_says_that_large_images_are_reduced_and_tiles_keep_them(run, source, tmp_path, capsys):
    plain = load_model(run.folder, "cpu")
    data = plain.recipe.data.model_copy(update={"tiles": None})
    plain = replace(plain, recipe=plain.recipe.model_copy(update={"data": data}))
    big = draw(tmp_path / "big", 1, 3, 120) / "images" / "0.png"
    api.predict(plain, [big], out=tmp_path / "small")
    assert "reduced to 32x32" in capsys.readouterr().err
    api.predict(plain, [big], out=tmp_path / "tiles", tiles=0.25)
    assert "reduced" not in capsys.readouterr().err
    api.predict(run.folder, [big], out=tmp_path / "own", quiet=True)
    np.testing.assert_array_equal(read(tmp_path / "tiles" / "0.png"), read(tmp_path / "own" / "0.png"))
    with pytest.raises(RequestError, match=r"from 0 to 0\.5"):
        api.predict(plain, [big], out=tmp_path / "not", tiles=0.9)


def test_objects_are_counted_per_class_with_their_median_area(monkeypatch, capsys):
    mask = np.zeros((6, 9), np.uint8)
    mask[0:2, 0:2] = 1
    mask[2, 2] = 1  # touches at a corner
    mask[5, 0:3] = 1
    mask[0:2, 6:9] = 2
    counter = ObjectCounter((*CLASSES, "green"))
    found = counter.count(mask)
    assert list(found) == counter.columns and "objects_background" not in found
    assert found["objects_red"] == 2 and found["area_red"] == 4
    assert found["objects_blue"] == 1 and found["area_blue"] == 6
    assert found["objects_green"] == 0 and found["area_green"] is None
    monkeypatch.setattr(objects, "_has_scipy", lambda: False)
    assert set(counter.count(mask).values()) == set(counter.count(mask).values()) == {None}
    assert capsys.readouterr().err.count("scipy is not installed") == 1


class Sure:
    """The class of a pixel is its value, with certainty."""

    shape, classes = (256, 256, 1), tuple("abcdefgh")
    reading = Reading(overlap=0.25)

    def probabilities(self, images, tta=None):
        return (images[:, None, :, :, 0] == np.arange(8)[None, :, None, None]).astype(np.float32)


def test_a_large_image_is_predicted_in_bounded_memory():
    """The probabilities of all its pixels would take 488 MiB."""
    image = np.random.default_rng(0).integers(0, 8, (4000, 4000, 1), dtype=np.uint8)
    tracemalloc.start()
    ((mask, confidence),) = segment(Sure(), [image])
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    np.testing.assert_array_equal(mask, image[..., 0])
    assert confidence == pytest.approx(1, abs=1e-6)
    assert peak < 250 * 2**20


def test_val_augmentation_is_refused(run):
    recipe = run.recipe.model_copy(
        update={"evaluation": run.recipe.evaluation.model_copy(update={"augment_val": (run.recipe.augment[0],)})}
    )
    with pytest.raises(RequestError, match="images of one size"):
        build_trainer(recipe, load_dataset(recipe.data), load_model(run.folder, "cpu").device, quiet=True)
