"""Ensembles of models of masks: what they compute, and that they are runs like any other."""

import numpy as np
import pytest
import torch
from PIL import Image

from petriscope import api
from petriscope.core.errors import RequestError
from petriscope.core.masks import IGNORE
from petriscope.core.recipe import load_recipe
from petriscope.data import load_dataset
from petriscope.experiments import compare as comparing
from petriscope.experiments import ensemble as ensembling
from petriscope.experiments.segmentation import sample_pixels
from petriscope.inference.predictor import load_model
from petriscope.run.folder import open_run

SETTINGS = ("data.size=[8, 12]", "model.widths=[4, 8]", "training.precision=fp32", "evaluation.bootstrap=100")
METHODS = ("soft", "weighted", "soup", "greedy-soup")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Three runs, of which the last has hardly learnt anything."""
    folder = tmp_path_factory.mktemp("runs")
    out = []
    for seed, epochs in ((0, 4), (1, 4), (2, 1)):
        settings = [*SETTINGS, f"training.epochs={epochs}"]
        recipe = load_recipe("synthetic-terrain/unet", settings, seed=seed, data={"source": "synthetic-terrain:96"})
        out.append(api.train(recipe, folder / f"seed{seed}", quiet=True).folder)
    return out


@pytest.fixture(scope="module")
def made(runs, tmp_path_factory):
    folder = tmp_path_factory.mktemp("ensembles")
    return {method: ensembling.ensemble(runs, method, folder / method, quiet=True) for method in METHODS}


@pytest.fixture(scope="module")
def dataset(runs):
    return load_dataset(open_run(runs[0]).recipe.data)


def members_on(runs, images):
    return np.stack([load_model(run).probabilities(images).astype(np.float64) for run in runs])


def miou(predicted, masks, classes=4):
    ious = []
    for k in range(classes):
        true, found = masks == k, (predicted == k) & (masks != IGNORE)
        if true.any():
            ious.append((true & found).sum() / (true | found).sum())
    return np.mean(ious)


@pytest.mark.parametrize("method", METHODS)
def test_an_ensemble_is_a_run_like_any_other(method, made, runs, dataset):
    folder = made[method].folder
    result = api.evaluate(folder, quiet=True)
    predicted = load_model(folder).probabilities(dataset.test.images).argmax(1)
    assert result.split == "test" and result.value("miou") == pytest.approx(miou(predicted, dataset.test.targets))
    found = comparing.compare([runs[0], folder], "val")
    assert [row.label for row in found.rows] == ["synthetic-terrain/unet", f"ensemble-{method}"]
    page = (folder / "report.html").read_text()
    assert "ean IoU" in page and "McNemar" not in page


def test_masks_of_images_that_a_member_has_seen_are_left_out(made, dataset, tmp_path):
    """Whatever the masks are now: images are recognized by their pixels."""
    parts = {"train": 5, "val": 2, "test": 3}
    images = np.concatenate([dataset.split(name).images[:count] for name, count in parts.items()])
    masks = np.concatenate([dataset.split(name).targets[:count] for name, count in parts.items()])[:, ::-1]
    np.savez(tmp_path / "a.npz", test_images=images[..., 0], test_masks=masks, classes=np.array(dataset.classes))
    found = api.evaluate(made["soft"].folder, tmp_path / "a.npz", quiet=True)
    assert found.n == 3 and found.seen.as_json() == {"train": 5, "val": 2, "left_out": 7}


def test_masks_of_files_are_written(made, dataset, tmp_path):
    Image.fromarray(dataset.test.images[0, ..., 0]).save(tmp_path / "a.png")
    api.predict(made["soft"].folder, [tmp_path / "a.png"], quiet=True, out=tmp_path / "masks")
    with Image.open(tmp_path / "masks" / "a.png") as mask:
        wanted = load_model(made["soft"].folder).probabilities(dataset.test.images[:1]).argmax(1)[0]
        np.testing.assert_array_equal(np.asarray(mask), wanted)


def test_a_soft_vote_is_the_mean_of_the_probabilities_of_each_pixel(made, runs, dataset):
    images = dataset.test.images
    joined = load_model(made["soft"].folder).probabilities(images)
    np.testing.assert_allclose(joined, members_on(runs, images).mean(0), atol=1e-5)


def test_a_weighted_vote_is_the_likeliest_mean_on_the_labeled_pixels_of_val(made, runs, dataset):
    found = made["weighted"].results.ensemble
    weights = np.array([row.weight for row in found.members])
    masks = dataset.val.targets
    labeled = masks != IGNORE
    assert weights.sum() == pytest.approx(1) and found.pixels == labeled.sum()
    each = np.moveaxis(members_on(runs, dataset.val.images), 2, -1)[:, labeled]
    of_truth = each[:, np.arange(labeled.sum()), masks[labeled]]

    def loss(w):
        return -np.log(w @ of_truth).mean()

    rng = np.random.default_rng(0)
    assert all(loss(weights) <= loss(w) + 1e-6 for w in rng.dirichlet(np.ones(3), 300))
    images = dataset.test.images
    wanted = np.tensordot(weights, members_on(runs, images), 1)
    np.testing.assert_allclose(load_model(made["weighted"].folder).probabilities(images), wanted, atol=1e-5)


def test_a_sample_of_pixels_is_labeled_and_the_same_for_all(dataset):
    images = dataset.train
    places = sample_pixels(images, 1000)
    again = sample_pixels(images, 1000)
    assert all(np.array_equal(one, other) for one, other in zip(places, again, strict=True))
    assert 850 < sum(map(len, places)) < 1150  # four standard deviations and more
    assert all((mask.reshape(-1)[at] != IGNORE).all() for mask, at in zip(images.targets, places, strict=True))
    assert sum(map(len, sample_pixels(images, 10**9))) == (images.targets != IGNORE).sum()


def test_a_soup_is_the_mean_of_the_weights(made, runs):
    soup = load_model(made["soup"].folder).model.state_dict()
    each = [load_model(run).model.state_dict() for run in runs]
    for name, value in soup.items():
        if "running" not in name and value.is_floating_point():
            torch.testing.assert_close(value, torch.stack([state[name] for state in each]).mean(0))


def test_a_greedy_soup_is_no_worse_than_its_best_member_on_val(made):
    found = made["greedy-soup"].results
    rows = found.ensemble.members
    assert found.val.value("miou") >= max(row.val_score for row in rows) - 1e-9
    assert sum(row.weight for row in rows) == pytest.approx(1)


def test_the_gain_is_that_of_mean_iou_and_its_test_that_of_compare(made):
    found = made["soft"].results.ensemble
    best = max(found.members, key=lambda row: row.val_score)
    assert found.best_member == best.run
    assert found.gain == pytest.approx(made["soft"].results.val.value("miou") - best.val_score)
    contrast = comparing.compare([best.run, made["soft"].folder], "val").rows[1].contrast
    assert contrast is not None
    assert found.p == pytest.approx(contrast.difference.p)
    assert found.gain_ci95 == pytest.approx(contrast.difference.ci95)


def test_stacking_is_refused_and_leaves_nothing(runs, tmp_path):
    with pytest.raises(RequestError, match="by stacking; known: soft, weighted, soup, greedy-soup, specialist"):
        ensembling.ensemble(runs, "stacking", tmp_path / "e", quiet=True)
    assert not (tmp_path / "e").exists()
