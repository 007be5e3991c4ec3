"""A specialist joined with a main model: the rule, its choice on val, and what does not fit."""

import json
import shutil

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from petriscope import api
from petriscope.core.errors import RequestError
from petriscope.core.masks import IGNORE
from petriscope.core.recipe import Recipe, load_recipe
from petriscope.data import ImageSet, load_dataset
from petriscope.experiments import ensemble as ensembling
from petriscope.experiments.specialist import SHARES, THRESHOLDS, Choice, Rule, RuleCounts, choose_rule
from petriscope.inference.predictor import Predictor, load_model
from petriscope.metrics.segmentation import class_iou, mean_iou
from petriscope.models.voting import SpecialistRule
from petriscope.run.folder import open_run
from petriscope.tasks import find_task

SETTINGS = ("data.size=[8, 12]", "model.widths=[4, 8]", "training.precision=fp32", "evaluation.bootstrap=100")


def train(folder, *settings, seed=0):
    words = [*SETTINGS, "training.epochs=4", *settings]
    recipe = load_recipe("synthetic-terrain/unet", words, seed=seed, data={"source": "synthetic-terrain:96"})
    return api.train(recipe, folder, quiet=True).folder


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """A main run, and one of big rocks alone."""
    folder = tmp_path_factory.mktemp("pair")
    return train(folder / "main"), train(folder / "rock", "data.only=big rock", "sampler=weighted", seed=1)


@pytest.fixture(scope="module")
def joined(pair, tmp_path_factory):
    return ensembling.ensemble(pair, "specialist", tmp_path_factory.mktemp("joined") / "run", quiet=True)


def by_rule(main, specialist, index, threshold, share):
    """The rule in plain numpy: classes of probabilities [N, K, ...] and of the class alone [N, ...]."""
    score = share * main[:, index] + (1 - share) * specialist
    others = main.copy()
    others[:, index] = -1
    return np.where(score > threshold, index, others.argmax(1)), score


def draw(seed, count=40, classes=4):
    rng = np.random.default_rng(seed)
    main = rng.dirichlet(np.full(classes, 0.5), (count, 3)).transpose(0, 2, 1)[..., None]  # [N, K, 3, 1]
    special = rng.beta(0.5, 0.5, (count, 3, 1))
    log_p = np.concatenate([main, np.stack([1 - special, special], 1)], 1)
    return main, special, torch.from_numpy(np.log(np.maximum(log_p, 1e-9)))


@given(
    st.integers(0, 1000),
    st.integers(0, 3),
    st.floats(0.02, 0.98),
    st.sampled_from(SHARES),
)
def test_the_likeliest_class_is_the_rules(seed, index, threshold, share):
    main, special, log_p = draw(seed)
    wanted, score = by_rule(main, special, index, threshold, share)
    out = SpecialistRule(index, threshold, share)(log_p).numpy()
    sure = np.abs(score - threshold) > 1e-6
    np.testing.assert_array_equal(out.argmax(1)[sure], wanted[sure])
    np.testing.assert_allclose(np.exp(out).sum(1), 1, atol=1e-6)


@pytest.mark.parametrize("index", [0, 3])
def test_all_rules_are_counted_as_each_alone_would_be(index):
    main, special, log_p = draw(7, 60)
    masks = np.random.default_rng(1).choice([0, 1, 2, 3, IGNORE], (60, 3, 1)).astype(np.uint8)
    counts = RuleCounts(index, 4)
    for part in (slice(0, 25), slice(25, 60)):
        counts.add(log_p[part], torch.from_numpy(masks[part]))
    found = counts.confusion()
    labeled = masks != IGNORE
    for i, share in enumerate(SHARES):
        for j, threshold in enumerate(THRESHOLDS):
            predicted, _ = by_rule(main, special, index, threshold, share)
            wanted = np.zeros((4, 4), int)
            np.add.at(wanted, (masks[labeled], predicted[labeled]), 1)
            np.testing.assert_array_equal(found[i, j], wanted)


class Teller(nn.Module):
    """Looks up the logits of each pixel in a table, by its gray level."""

    dense = True

    def __init__(self, table):
        super().__init__()
        self.table = nn.Parameter(torch.tensor(table))

    def forward(self, images):
        return self.table[(images[:, 0] * 255).round().long()].permute(0, 3, 1, 2)


def choose(main_table, special_table):
    """The choice on val between networks that answer by tables; class 2 is the specialist's."""
    masks = np.random.default_rng(0).integers(0, 3, (6, 4, 4)).astype(np.uint8)
    masks[0, 0] = IGNORE
    levels = np.where(masks == IGNORE, 0, masks)[..., None]
    val = ImageSet(levels, masks, ("a", "b", "c"), np.arange(6).astype(str))

    def network(table, classes):
        model = Teller(table).eval()
        task = find_task("segmentation")
        return Predictor(model, Recipe(), task, classes, (4, 4, 1), (0.0,), (1.0,), torch.device("cpu"))

    main, special = network(main_table, val.classes), network(special_table, ("rest", "c"))
    return choose_rule(main, special, val, 2, "none", None)


BLIND = [[3.0, 0, 0], [0, 3.0, 0], [3.0, 0, 1]]  # never says c
SEEING = [[3.0, 0, 0], [0, 3.0, 0], [0, 0, 3.0]]
KNOWING = [[2.0, 0], [2.0, 0], [0, 2.0]]
KNOWING_NOTHING = [[0.0, 1], [0, 1], [0, 1]]


def test_a_specialist_that_knows_more_is_heard():
    choice = choose(BLIND, KNOWING)
    assert choice.rule is not None and choice.alone == 1
    assert mean_iou(choice.main.confusion.sum(0)) < 0.6


def test_no_rule_is_better_than_a_main_model_that_knows_all():
    assert choose(SEEING, KNOWING).rule is None
    choice = choose(SEEING, KNOWING_NOTHING)
    assert choice.rule is None and choice.alone < 0.5
    assert mean_iou(choice.main.confusion.sum(0)) == 1


def test_the_rule_of_the_run_is_the_best_on_val(pair, joined):
    dataset = load_dataset(open_run(pair[0]).recipe.data)
    images, masks = dataset.val.images, dataset.val.targets
    main, special = (load_model(folder).probabilities(images) for folder in pair)
    found = joined.results.ensemble.specialist

    def confusion(predicted):
        out = np.zeros((4, 4), int)
        np.add.at(out, (masks[masks != IGNORE], predicted[masks != IGNORE]), 1)
        return out

    tried = {
        (threshold, share): mean_iou(confusion(by_rule(main, special[:, 1], 3, threshold, share)[0]))
        for threshold in THRESHOLDS
        for share in SHARES
    }
    before = confusion(main.argmax(1))
    assert found.of_class == "big rock" and found.rules_tried == len(tried) + 1
    assert found.val_miou["before"] == pytest.approx(mean_iou(before))
    assert found.val_class_iou["before"] == pytest.approx(class_iou(before)[3])
    alone = confusion(np.where(special[:, 1] > 0.5, 3, 0))
    assert found.val_class_iou["alone"] == pytest.approx(class_iou(alone)[3])
    assert max(tried.values()) > mean_iou(before), "a rule that gains, or this test shows nothing"
    chosen = found.rule
    assert tried[chosen["threshold"], chosen["main_share"]] == pytest.approx(max(tried.values()))
    predicted, _ = by_rule(main, special[:, 1], 3, chosen["threshold"], chosen["main_share"])
    assert found.val_miou["after"] == pytest.approx(mean_iou(confusion(predicted)))
    assert found.val_class_iou["after"] == pytest.approx(class_iou(confusion(predicted))[3])
    np.testing.assert_array_equal(load_model(joined.folder).probabilities(images).argmax(1), predicted)


def test_it_is_a_run_like_any_other(pair, joined, capsys):
    from petriscope.cli import app

    found = joined.results.ensemble
    assert found.best_member == str(pair[0])
    assert found.gain == pytest.approx(joined.results.val.value("miou") - found.members[0].val_score)
    app(["evaluate", str(joined.folder), "--tta", "mirror", "--json"], standalone_mode=False)
    result = json.loads(capsys.readouterr().out)
    assert result["split"] == "test" and set(result["per_class"]) == {"soil", "bedrock", "sand", "big rock"}
    page = (joined.folder / "report.html").read_text()
    assert f"petriscope compare {joined.folder} {pair[0]}" in page


def test_where_no_rule_gains_the_run_is_the_main_model(pair, tmp_path, monkeypatch):
    real = ensembling.choose_rule
    monkeypatch.setattr(ensembling, "choose_rule", lambda *args: Choice(None, real(*args).main, float("nan")))
    run = ensembling.ensemble(pair, "specialist", tmp_path / "e", quiet=True)
    joined = run.results.ensemble
    found = joined.specialist
    assert found.rule == "never" and found.val_miou["before"] == found.val_miou["after"]
    assert found.val_class_iou["alone"] is None and not joined.members[1].taken
    assert run.results.cost.parameters == open_run(pair[0]).results.cost.parameters


def test_a_rule_that_harms_the_joined_model_is_not_taken(pair, tmp_path, monkeypatch):
    real = ensembling.choose_rule
    everything = Rule(1e-6, 0.0)  # all is big rock
    monkeypatch.setattr(ensembling, "choose_rule", lambda *args: Choice(everything, real(*args).main, 0.0))
    run = ensembling.ensemble(pair, "specialist", tmp_path / "e", quiet=True)
    joined = run.results.ensemble
    assert joined.specialist.rule == "never"
    assert run.results.val.value("miou") == pytest.approx(joined.members[0].val_score)


def test_what_does_not_fit_together_is_refused_and_leaves_nothing(pair, tmp_path):
    main, rock = pair
    out, twin = tmp_path / "e", tmp_path / "twin"
    shutil.copytree(main, twin)
    other = train(tmp_path / "other", "data.only=sand", "data.val_fraction=0.3", "training.epochs=1")
    with pytest.raises(RequestError, match="name the main model first"):
        ensembling.ensemble([rock, main], "specialist", out)
    with pytest.raises(RequestError, match="joins two runs"):
        ensembling.ensemble([main, rock, other], "specialist", out)
    with pytest.raises(RequestError, match="is not a specialist"):
        ensembling.ensemble([main, twin], "specialist", out)
    with pytest.raises(RequestError, match="trained on other data or splits"):
        ensembling.ensemble([main, other], "specialist", out)
    with pytest.raises(RequestError, match="join it with --method specialist"):
        ensembling.ensemble([main, rock], "soft", out)
    assert not out.exists()
