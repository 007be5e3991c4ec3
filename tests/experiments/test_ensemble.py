"""Ensembles: what they compute, that they are runs like any other, and which requests are refused."""

import shutil

import numpy as np
import pytest
import torch

from petriscope import api
from petriscope.core.errors import RequestError
from petriscope.core.recipe import load_recipe
from petriscope.experiments import compare as comparing
from petriscope.experiments import ensemble as ensembling
from petriscope.inference.predictor import load_model
from petriscope.metrics.classification import nll_each
from petriscope.run.folder import open_run

OF_LABELS = [method for method in ensembling.METHODS if method != "specialist"]


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """Three classes of noisy 10x10 images, a bright stripe each, that a small network half learns; and three runs."""
    folder = tmp_path_factory.mktemp("ensembling")
    rng = np.random.default_rng(0)
    arrays = {}
    for split, count in (("train", 150), ("val", 90), ("test", 60)):
        labels = np.arange(count) % 3
        images = rng.normal(110, 45, (count, 10, 10, 3))
        for k in range(3):
            images[labels == k, 3 * k : 3 * k + 3] += 22
        arrays[f"{split}_images"] = images.clip(0, 255).astype(np.uint8)
        arrays[f"{split}_labels"] = labels
    source = folder / "drawn.npz"
    np.savez(source, **arrays)
    runs = []
    for seed, epochs in ((0, 6), (1, 6), (2, 1)):
        tree = {
            "name": "drawn",
            "seed": seed,
            "data": {"source": str(source)},
            "augment": [],
            "model": {"name": "simple-cnn", "norm": "batch", "widths": [4, 8, 8], "hidden": 8},
            "optimizer": {"name": "adamw", "lr": 0.01},
            "training": {"epochs": epochs, "batch_size": 30, "precision": "fp32", "device": "cpu", "ema": None},
            "evaluation": {"bootstrap": 100},
        }
        runs.append(api.train(load_recipe("demo", (), **tree), folder / f"seed{seed}", quiet=True).folder)
    with np.load(source) as kept:
        return source, runs, dict(kept)


@pytest.fixture(scope="module")
def made(drawn, tmp_path_factory):
    folder = tmp_path_factory.mktemp("ensembles")
    return {method: ensembling.ensemble(drawn[1], method, folder / method, quiet=True) for method in OF_LABELS}


def raw(folder, images):
    """Probabilities without temperature scaling."""
    return load_model(folder).predict(images).raw.astype(np.float64)


def members_on(runs, images):
    return np.stack([raw(run, images) for run in runs])


@pytest.mark.parametrize("method", OF_LABELS)
def test_an_ensemble_is_a_run_like_any_other(method, made, drawn):
    _, runs, arrays = drawn
    folder = made[method].folder
    result = api.evaluate(folder, quiet=True)
    assert result.n == 60 and result.split == "test"
    predictor = load_model(folder)
    predicted = predictor.probabilities(arrays["test_images"]).argmax(1)
    assert (predicted == arrays["test_labels"]).mean() == pytest.approx(result.value("accuracy"))
    api.evaluate(runs[0], quiet=True)
    found = comparing.compare([runs[0], folder], "test")
    assert [row.label for row in found.rows] == ["drawn", f"ensemble-{method}"]
    page = (folder / "report.html").read_text()
    assert f"ensemble-{method}" in page
    assert "No epoch is done yet" not in page
    assert predictor.exposure == load_model(runs[0]).exposure and len(predictor.exposure.train) == 150


def test_a_soft_vote_is_the_mean_of_the_probabilities(made, drawn):
    images = drawn[2]["test_images"]
    wanted = members_on(drawn[1], images).mean(0)
    np.testing.assert_allclose(raw(made["soft"].folder, images), wanted, atol=1e-5)


def test_a_weighted_vote_is_the_likeliest_mean_on_val(made, drawn):
    arrays = drawn[2]
    each = members_on(drawn[1], arrays["val_images"])
    weights = np.array([row.weight for row in made["weighted"].results.ensemble.members])
    assert weights.sum() == pytest.approx(1)

    def loss(w):
        return nll_each(np.tensordot(w, each, 1), arrays["val_labels"].astype(np.int64)).mean()

    rng = np.random.default_rng(0)
    assert all(loss(weights) <= loss(w) + 1e-6 for w in rng.dirichlet(np.ones(3), 300))
    images = arrays["test_images"]
    wanted = np.tensordot(weights, members_on(drawn[1], images), 1)
    np.testing.assert_allclose(raw(made["weighted"].folder, images), wanted, atol=1e-5)


def test_a_useless_member_has_no_weight():
    rng = np.random.default_rng(0)
    targets = rng.integers(0, 3, 400)
    good = np.full((400, 3), 0.1)
    good[np.arange(400), targets] = 0.8
    each = np.stack([good, rng.dirichlet(np.ones(3), 400)])
    weights = ensembling.vote_weights(each[:, np.arange(400), targets])
    assert weights[0] > 0.99


def test_stacking_is_a_logistic_regression_on_val(made, drawn):
    from sklearn.linear_model import LogisticRegression

    arrays = drawn[2]

    def features(split):
        return np.log(
            np.maximum(np.concatenate(list(members_on(drawn[1], arrays[f"{split}_images"])), 1), ensembling.FLOOR)
        )

    found = raw(made["stacking"].folder, arrays["test_images"])
    candidates = [
        LogisticRegression(C=c, max_iter=2000)
        .fit(features("val"), arrays["val_labels"])
        .predict_proba(features("test"))
        for c in ensembling.PENALTIES
    ]
    assert min(np.abs(found - wanted).max() for wanted in candidates) < 1e-3


def test_stacking_of_two_classes_keeps_their_order():
    from torch import nn

    rng = np.random.default_rng(0)
    targets = np.arange(60) % 2
    p = np.clip(0.2 + 0.6 * targets + rng.normal(0, 0.1, 60), 0.01, 0.99)
    stack = nn.Linear(2, 2)
    ensembling._fit_stack(stack, np.stack([1 - p, p], 1)[None], targets)
    logits = stack(torch.from_numpy(np.log(np.stack([1 - p, p], 1))).float())
    assert (logits.argmax(1).numpy() == targets).mean() > 0.9


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("p", ["certain", "all wrong", "all equal", "huge logits"])
def test_stacking_of_extreme_predictions(p):
    rng, targets = np.random.default_rng(0), np.arange(60) % 3
    right = np.eye(3)[targets]
    each = {"certain": right, "all wrong": right[:, [1, 2, 0]], "all equal": np.full((60, 3), 1 / 3)}
    each["huge logits"] = np.eye(3)[rng.integers(0, 3, 60)]
    stack = torch.nn.Linear(6, 3)
    ensembling._fit_stack(stack, np.stack([each[p], rng.dirichlet(np.ones(3), 60)]), targets)
    assert stack.weight.isfinite().all() and stack.bias.isfinite().all()


def test_what_val_cannot_fit_is_refused():
    p = np.full((1, 8, 3), 1 / 3)
    for targets in (np.zeros(8, int), np.array([0] * 7 + [1])):
        with pytest.raises(RequestError, match="stacking needs val images of two classes"):
            ensembling._fit_stack(torch.nn.Linear(3, 3), p, targets)
    with pytest.raises(RequestError, match="no pixel has a label"):
        ensembling.vote_weights(np.empty((2, 0)))


def test_a_soup_is_the_mean_of_the_weights_with_statistics_of_its_own(made, drawn):
    soup = load_model(made["soup"].folder).model.state_dict()
    each = [load_model(run).model.state_dict() for run in drawn[1]]
    for name, value in soup.items():
        mean = torch.stack([state[name].float() for state in each]).mean(0)
        if "running" not in name and value.is_floating_point():
            torch.testing.assert_close(value, mean)
    running = [name for name in soup if name.endswith("running_mean")]
    means = {name: torch.stack([state[name] for state in each]).mean(0) for name in running}
    assert any(not torch.allclose(soup[name], means[name], atol=1e-3) for name in running)


def test_a_greedy_soup_is_no_worse_than_its_best_member_on_val(made, drawn):
    found = made["greedy-soup"].results
    members = found.ensemble.members
    assert found.val.value("accuracy") >= max(row.val_score for row in members) - 1e-9
    assert any(row.taken for row in members)
    assert sum(row.weight for row in members) == pytest.approx(1)


def test_the_gain_over_the_best_member_is_tested_on_the_same_images(made):
    found = made["soft"].results.ensemble
    best = max(found.members, key=lambda row: row.val_score)
    assert found.best_member == best.run
    assert found.gain == pytest.approx(made["soft"].results.val.value("accuracy") - best.val_score)
    assert found.gain_ci95[0] <= found.gain <= found.gain_ci95[1]
    assert 0 < found.p <= 1


def test_an_ensemble_is_calibrated_and_detects_images_out_of_distribution(made, drawn):
    predictor = load_model(made["soft"].folder)
    assert predictor.trust.references["none"].temperature > 0
    odd = np.zeros((4, 10, 10, 3), np.uint8)
    assert (predictor.predict(odd).ood > 1).all()
    assert predictor.trust.detector.features.centers.shape == (3, 9)  # log-probabilities of 3 classes by 3 members


def test_the_cost_counts_all_members(made, drawn):
    one = open_run(drawn[1][0]).results.cost
    joined = made["soft"].results.cost
    assert joined.parameters == 3 * one.parameters
    assert joined.multiply_adds == 3 * one.multiply_adds
    assert made["soup"].results.cost.parameters == one.parameters


def test_runs_whose_data_have_moved_are_joined(drawn, tmp_path):
    source, runs, _ = drawn
    moved = tmp_path / "moved.npz"
    shutil.copy(source, moved)
    run = ensembling.ensemble(runs[:2], "soft", tmp_path / "joined", quiet=True, data=moved)
    assert run.recipe.data.source == str(moved) and run.results.val.n == 90


def test_an_ensemble_of_ensembles_is_one(made, drawn, tmp_path):
    both = ensembling.ensemble([made["soft"].folder, drawn[1][0]], "soft", tmp_path / "both", quiet=True)
    images = drawn[2]["test_images"]
    each = members_on([made["soft"].folder, drawn[1][0]], images)
    np.testing.assert_allclose(raw(both.folder, images), each.mean(0), atol=1e-5)


def test_what_does_not_fit_together_is_refused_and_leaves_nothing(drawn, tiny_recipe, tmp_path):
    _, runs, _ = drawn
    with pytest.raises(RequestError, match="at least two different runs"):
        ensembling.ensemble([runs[0], runs[0]], out=tmp_path / "e")
    with pytest.raises(RequestError, match="classification models cannot be joined by specialist"):
        ensembling.ensemble(runs, "specialist", tmp_path / "e")
    with pytest.raises(RequestError, match=r"known: soft, weighted"):
        ensembling.ensemble(runs, "sof", out=tmp_path / "e")  # type: ignore[arg-type]
    other = api.train(tiny_recipe(training={"epochs": 1}), tmp_path / "other", quiet=True)
    with pytest.raises(RequestError, match="classes"):
        ensembling.ensemble([runs[0], other.folder], out=tmp_path / "e")
    with pytest.raises(RequestError, match="petriscope ensemble RUN"):
        member = {"model": "simple-cnn", "mean": [0.5] * 3, "std": [0.2] * 3}
        api.train(tiny_recipe(model={"name": "ensemble", "members": [member]}), tmp_path / "e", quiet=True)
    assert not (tmp_path / "e").exists()


def test_a_soup_of_two_architectures_is_refused(drawn, tmp_path):
    _, runs, _ = drawn
    tree = open_run(runs[0]).recipe.model_dump(mode="json")
    tree["model"]["widths"] = [4, 8, 12]
    tree["training"]["epochs"] = 1
    wider = api.train(load_recipe("demo", (), **tree), tmp_path / "wider", quiet=True)
    with pytest.raises(RequestError, match="one architecture"):
        ensembling.ensemble([runs[0], wider.folder], "soup", tmp_path / "e", quiet=True)
    assert not (tmp_path / "e").exists()


def test_the_command_says_where_the_run_is(drawn, tmp_path, capsys):
    import json

    from petriscope.cli import app

    words = ["ensemble", *map(str, drawn[1]), "--method", "weighted", "--out", str(tmp_path / "e"), "--json"]
    app(words, standalone_mode=False)
    found = json.loads(capsys.readouterr().out)
    assert found["run"] == str(tmp_path / "e") and found["method"] == "weighted" and len(found["members"]) == 3


def test_members_that_standardize_otherwise_are_refused(drawn, tmp_path):
    recipe = open_run(drawn[1][0]).recipe
    section = recipe.data.model_copy(update={"standardize": ("background",)})
    other = api.train(recipe.model_copy(update={"data": section}), tmp_path / "other", quiet=True)
    with pytest.raises(RequestError, match=r"data\.standardize is \['background'\]"):
        ensembling.ensemble([drawn[1][0], other], "soft", tmp_path / "joined", quiet=True)
    assert not (tmp_path / "joined").exists()
