"""Which classes occur, or the share of each: how it is asked for, and that probabilities and guarantees are right for it."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import softmax

from petriscope.core.errors import RequestError
from petriscope.metrics.conformal import METHODS, quantile, sets, true_scores
from petriscope.metrics.intervals import group_index
from petriscope.metrics.selective import uncertainty
from petriscope.trust.plan import plan_abstention
from petriscope.trust.prior import NAMED, Prior, implied_shares, parse_prior, reweight
from petriscope.trust.state import Reference, Trust, fit_reference
from petriscope.trust.temperature import scale

CLASSES = ("a", "b", "c")
MEANS = np.array([[0.0, 0.0], [2.8, 0.0], [1.4, 2.4]])
HERE, THERE = np.array([0.6, 0.3, 0.1]), np.array([0.1, 0.3, 0.6])


def images(targets: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Features, float [N, 2]."""
    return MEANS[targets] + rng.normal(size=(len(targets), 2))


def posterior(features: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """The probabilities of a perfect network that was trained on these class shares, float32 [N, K]."""
    distance = ((features[:, None] - MEANS) ** 2).sum(2) / 2
    return softmax(np.log(shares) - distance, axis=1).astype(np.float32)


def drawn(n: int, of: np.ndarray, rng: np.random.Generator, trained: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    targets = rng.choice(3, n, p=of)
    return posterior(images(targets, rng), trained), targets


def prior_of(shares: np.ndarray | None, occurs: np.ndarray | None = None) -> Prior:
    there = shares > 0 if shares is not None else occurs
    return Prior(CLASSES, np.asarray(there), shares)


# ------------------------------------------------------------------------------------------------- what is asked for


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ("a,c", ["a", "c"]),
        (["a", "c"], ["a", "c"]),
        ([" c ", "a"], ["a", "c"]),  # in the order of the model
        (["a,b", "c"], ["a", "b", "c"]),
        (("d, e", "a"), ["a", "d, e"]),
        (["d, e", "a,c"], ["a", "c", "d, e"]),
        (["e\u0301=1", "a"], ["a", "\u00e9=1"]),  # composed and not
    ],
)
def test_classes_are_named_by_commas_or_one_by_one(given, wanted):
    found = parse_prior((*CLASSES, "d, e", "\u00e9=1"), given)
    assert found.names == wanted and found.shares is None


@pytest.mark.parametrize(
    "given",
    [
        "a=0.6,d, e=0.4",
        ["a=0.6", "d, e=0.4"],
        {"a": 0.6, "d, e": 0.4},
        {"a": 3, "d, e": 2, "b": 0},
        ["d, e=40", "a=60"],
    ],
)
def test_shares_are_named_in_texts_or_a_mapping(given):
    model = (*CLASSES, "d, e")
    if isinstance(given, str):  # a comma of a name is not to be told from the others
        with pytest.raises(RequestError, match=r"NAME=SHARE, such as a=0.3; got 'd'"):
            parse_prior(model, prior=given)
        return
    found = parse_prior(model, prior=given)
    assert found.names == ["a", "d, e"]
    np.testing.assert_allclose(found.shares, [0.6, 0, 0, 0.4])


@pytest.mark.parametrize(
    ("classes", "prior", "says"),
    [
        ("a,lymphocyt", None, "classes: the model has no class 'lymphocyt'; did you mean lymphocyte?"),
        ("A,b", None, "no class 'A'; did you mean a"),
        ("a,b,a", None, "classes: a is named twice"),
        (["a", " a"], None, "classes: a is named twice"),
        ("a", None, "classes: only a occurs, so there is nothing to predict"),
        ("", None, "classes: no class occurs"),
        ([], None, "classes: no class occurs"),
        ([1, 2], None, "1 is no text"),
        (None, {}, "prior: no class occurs"),
        (None, "a=1", "prior: only a occurs"),
        (None, "a=1,b=0", "prior: only a occurs"),
        (None, "a=0.5,b", "prior takes NAME=SHARE, such as a=0.3; got 'b'"),
        (None, "a=0.5,b=x", "prior: the share of b must be a number from 0, such as 0.3; got 'x'"),
        (None, "a=0.5,b=-1", "the share of b must be a number from 0"),
        (None, "a=0.5,b=nan", "the share of b must be a number from 0"),
        (None, {"a": 1, "b": float("inf")}, "the share of b must be a number from 0"),
        (None, {"a": 1, "b": None}, "the share of b must be a number from 0"),
        (None, "a=0.5,x=0.5", "prior: the model has no class 'x'"),
        (None, "a=0.5,a=0.5", "prior: a is named twice"),
        (None, "a=1e308,b=1e308", "prior: the sum of the shares is too large"),
        (None, "a=1e300,b=1e-300", "prior: only a occurs"),
        ("a,b", "a=0.5,b=0.5", "give either classes or prior"),
    ],
)
def test_a_wrong_request_is_a_sentence(classes, prior, says):
    with pytest.raises(RequestError) as error:
        parse_prior((*CLASSES, "lymphocyte"), classes, prior)
    assert says in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("classes", "prior", "says"),
    [
        ({"a": 0.9, "b": 0.1}, None, "classes cannot be .*; shares of classes are given as prior"),
        (5, None, "classes cannot be 5; give text or a list of texts"),
        (None, 0.5, "prior cannot be 0.5; give text"),
        (None, [("a", 0.5)], "prior takes texts such as a=0.3, or a mapping; got"),
        (None, b"a=1", "prior cannot be b'a=1'; give text"),
        (None, np.array([0.5, 0.5]), "prior takes texts such as a=0.3"),
    ],
)
def test_what_is_no_text_is_refused_in_a_sentence(classes, prior, says):
    with pytest.raises(RequestError, match=says):
        parse_prior(CLASSES, classes, prior)


def test_shares_that_the_images_contradict_are_doubted():
    found = parse_prior(CLASSES, prior="a=0.01,b=0.99")
    assert found.doubt(np.array([148, 2, 0]), "are predicted as").startswith(
        "99 % of 150 images are predicted as a, whose share was given as 1 %"
    )
    assert not found.doubt(np.array([10, 140, 0]), "are predicted as"), "mistakes of the network"
    assert not found.doubt(np.array([2, 1, 0]), "are predicted as"), "too few to tell"
    assert not parse_prior(CLASSES, "a,b").doubt(np.array([0, 0, 90]), "are predicted as"), "no shares were given"


def test_what_is_assumed_is_said():
    assert parse_prior(CLASSES) is None
    only = parse_prior(CLASSES, "a,b")
    assert only.sentence() == "only these classes occur: a, b; the other 1 of 3 classes have probability 0"
    assert only.cell() == "only a; b"
    shares = parse_prior(CLASSES, prior="a=70,b=30")
    assert shares.sentence().startswith(
        "the class shares are a 70 %, b 30 % (given with sum 100, and divided by it); the"
    )
    assert "sum" not in parse_prior(CLASSES, prior="a=0.333,b=0.333,c=0.333").sentence(), "rounding"
    assert shares.cell() == "a 0.7; b 0.3"
    many = tuple(f"class {k}" for k in range(100))
    assert len(parse_prior(many, many[:90]).sentence()) < 300
    assert f"and {90 - NAMED} more; the other 10 of 100" in parse_prior(many, many[:90]).sentence()
    json.dumps(shares.record(np.ones(3) / 3, 4).as_json(), allow_nan=False)


# ----------------------------------------------------------------------------------------------------- probabilities


@given(st.integers(0, 2**32 - 1), st.integers(2, 6))
def test_reweighted_probabilities(seed, classes):
    rng = np.random.default_rng(seed)
    p = softmax(rng.normal(size=(20, classes)) * 5, axis=1).astype(np.float32)
    factors = rng.uniform(0.1, 5, classes) * (rng.random(classes) < 0.7)
    factors[rng.integers(classes)] = 1.0
    found = reweight(p, factors)
    assert found.dtype == np.float32 and (found[:, factors == 0] == 0).all()
    np.testing.assert_allclose(found.sum(1), 1, atol=1e-6)
    np.testing.assert_allclose(reweight(p, 7 * factors), found, atol=1e-6)
    order = rng.permutation(classes)
    np.testing.assert_allclose(reweight(p[:, order], factors[order]), found[:, order], atol=1e-6)
    np.testing.assert_array_equal(reweight(p, np.ones(classes)), p)


def test_an_image_that_is_surely_of_another_class_gets_finite_probabilities():
    p = np.array([[1, 0, 0], [1 - 1e-30, 1e-30, 3e-30]], np.float32)
    np.testing.assert_allclose(reweight(p, np.array([0.0, 1, 3])), [[0, 0.25, 0.75], [0, 0.1, 0.9]], rtol=1e-5)


@pytest.mark.parametrize("trained", [HERE, np.ones(3) / 3, THERE])
def test_the_shares_that_probabilities_imply_are_measured(trained):
    """Whatever the shares of val: a network that was trained with a sampler implies those of the sampler."""
    p, targets = drawn(4000, HERE, np.random.default_rng(0), trained)
    found = implied_shares(p, targets)
    np.testing.assert_allclose(found, trained, atol=0.06)
    order = np.array([2, 0, 1])
    np.testing.assert_allclose(implied_shares(p[:, order], np.argsort(order)[targets]), found[order], atol=1e-4)
    same = prior_of(found).factors(found)
    np.testing.assert_allclose(reweight(p, same), p, atol=1e-6)


def test_shares_are_those_of_val_where_nothing_is_in_doubt():
    targets = np.repeat(np.arange(3), [60, 30, 10])
    np.testing.assert_allclose(implied_shares(np.eye(3)[targets], targets), [0.6, 0.3, 0.1], atol=1e-6)
    assert np.isfinite(implied_shares(np.eye(3)[targets * 0], targets)).all()


def test_reweighted_probabilities_are_those_of_a_network_trained_there():
    rng = np.random.default_rng(1)
    for trained in (HERE, np.ones(3) / 3):
        trust = Trust({"none": fit_reference(*drawn(6000, HERE, rng, trained))}).under(prior_of(THERE))
        targets = rng.choice(3, 3000, p=THERE)
        features = images(targets, rng)
        before = scale(posterior(features, trained), trust.temperature("none", "none"))
        after = trust.reweight(before, "none", "none")
        best = posterior(features, THERE)
        assert abs(after - best).mean() < abs(before - best).mean() / 4
        assert (after.argmax(1) == targets).mean() > (before.argmax(1) == targets).mean() + 0.01


# -------------------------------------------------------------------------------------------------------- guarantees


def val(n: int, seed: int, groups: np.ndarray | None = None) -> Reference:
    rng = np.random.default_rng(seed)
    return fit_reference(*drawn(n, HERE, rng, HERE), groups=groups)


def made(reference: Reference, prior: Prior) -> Reference:
    return Trust({"none": reference}).under(prior).references["none"]


@pytest.mark.parametrize("groups", [None, np.arange(2000) // 4])
def test_all_classes_change_nothing(groups):
    before = val(2000, 0, groups)
    after = made(before, prior_of(None, np.ones(3, bool)))
    assert after.threshold(0.2) == before.threshold(0.2) is not None
    for method in METHODS:
        np.testing.assert_array_equal(after.limits(0.9, 3, method), before.limits(0.9, 3, method))


def test_the_shares_of_val_draw_all_of_val():
    before = val(2000, 0)
    counts = np.bincount(before.target) / 2000
    after = made(before, prior_of(counts))
    assert after.size == 2000
    assert after.threshold(0.2).answered == pytest.approx(before.threshold(0.2).answered, rel=0.05)
    for method in METHODS:
        np.testing.assert_allclose(after.limits(0.9, 3, method), before.limits(0.9, 3, method), atol=0.05)


@pytest.mark.parametrize("groups", [None, np.arange(2000) // 4])
def test_classes_that_do_not_occur_are_no_part_of_val(groups):
    before, occurs = val(2000, 0, groups), np.array([True, True, False])
    after = made(before, prior_of(None, occurs))
    rows = np.flatnonzero(before.target < 2)
    p = reweight(scale(before.raw[rows], before.temperature), occurs.astype(float))
    np.testing.assert_array_equal(after.target, before.target[rows])
    np.testing.assert_array_equal(after.uncertainty, uncertainty(p))
    np.testing.assert_array_equal(after.right, p.argmax(1) == before.target[rows])
    np.testing.assert_array_equal(after.true_scores["aps"], true_scores(p, after.target, "aps"))
    if groups is not None:
        np.testing.assert_array_equal(after.index, group_index(groups[rows]))
    for method in METHODS:
        limits = after.limits(0.9, 3, method)
        assert limits[2] == -np.inf and np.isfinite(limits[:2]).all()
        assert not sets(p, limits, method)[:, 2].any()


def shifted(index: bool, rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Features, targets and groups of val. Images of a group share their class and most of their features."""
    if not index:
        targets = rng.choice(3, n, p=HERE)
        return images(targets, rng), targets, None
    groups = np.repeat(np.arange(n // 5), 5)
    targets = rng.choice(3, n // 5, p=HERE)
    return (images(targets, rng)[groups] + rng.normal(size=(n, 2)) * 0.1), targets[groups], groups


@pytest.mark.parametrize(("grouped", "n", "max_error"), [(False, 2000, 0.1), (True, 2000, 0.2)])
def test_thresholds_hold_for_other_shares(grouped, n, max_error):
    """In 20 draws of val, the threshold for the new shares fails no more often than promised; that of val mostly does."""
    rng = np.random.default_rng(0)
    targets = rng.choice(3, 5000, p=THERE)
    network = np.array([0.7, 0.25, 0.05])
    new = posterior(images(targets, rng), network)
    broken, found, naive = 0, 0, 0
    for _ in range(20):
        features, own, groups = shifted(grouped, rng, n)
        reference = fit_reference(posterior(features, network), own, groups=groups)
        trust = Trust({"none": reference}).under(prior_of(THERE))
        plain = scale(new, reference.temperature)
        p = trust.reweight(plain, "none", "none")
        threshold = trust.references["none"].threshold(max_error)
        found += threshold is not None
        broken += threshold is not None and error(p, targets, threshold.uncertainty) > max_error
        threshold = reference.threshold(max_error)
        naive += threshold is not None and error(plain, targets, threshold.uncertainty) > max_error
    assert found > 13, "not by answering nothing"
    assert broken <= 3, "1 is expected at most"
    assert naive > 13


def error(p: np.ndarray, targets: np.ndarray, most: float) -> float:
    """The share of the answers that is wrong."""
    sure = uncertainty(p) <= most
    return float((p.argmax(1) != targets)[sure].mean())


@pytest.mark.parametrize("grouped", [False, True])
def test_prediction_sets_hold_for_other_shares(grouped):
    rng = np.random.default_rng(0)
    targets = rng.choice(3, 4000, p=THERE)
    new = posterior(images(targets, rng), HERE)
    covered: dict[str, list[float]] = {method: [] for method in METHODS}
    naive = []
    for _ in range(12):
        features, own, groups = shifted(grouped, rng, 3000)
        reference = fit_reference(posterior(features, HERE), own, groups=groups)
        trust = Trust({"none": reference}).under(prior_of(THERE))
        plain = scale(new, reference.temperature)
        p = trust.reweight(plain, "none", "none")
        for method in METHODS:
            held = sets(p, trust.references["none"].limits(0.9, 3, method), method)
            covered[method].append(float(held[np.arange(len(held)), targets].mean()))
        held = sets(plain, reference.limits(0.9, 3, "lac"), "lac")
        naive.append(float(held[np.arange(len(held)), targets].mean()))
    for method in METHODS:
        assert 0.88 < np.mean(covered[method]) < 0.95, method
    assert np.mean(naive) < 0.8


@given(st.lists(st.floats(0, 1), min_size=1, max_size=60), st.floats(0.05, 0.99), st.floats(0.1, 9))
def test_equal_weights_are_no_weights(values, level, weight):
    found = quantile(np.array(values), level, None, np.full(len(values), weight), weight)
    assert found == quantile(np.array(values), level)


# ------------------------------------------------------------------------------------------------------- model files


def test_the_probabilities_of_val_survive_a_round_trip_and_are_not_needed():
    before = Trust({"none": val(300, 0)})
    facts, arrays = before.to_file()
    again = Trust.from_file(json.loads(json.dumps(facts)), arrays, 3)
    np.testing.assert_array_equal(again.references["none"].raw, before.references["none"].raw)
    older = {name: values for name, values in arrays.items() if not name.endswith("/probabilities")}
    assert len(older) == len(arrays) - 1
    del facts["references"]["none"]["probabilities"]
    old = Trust.from_file(facts, older, 3)
    assert old.references["none"].raw is None
    assert old.references["none"].threshold(0.2) == before.references["none"].threshold(0.2)


@pytest.mark.parametrize("damage", [np.nan, -1.0, 7.0])
def test_damaged_probabilities_are_refused(damage):
    facts, arrays = Trust({"none": val(300, 0)}).to_file()
    arrays["trust/references/none/probabilities"][5, 1] = damage
    with pytest.raises(ValueError, match="inconsistent"):
        Trust.from_file(facts, arrays, 3)
    arrays["trust/references/none/probabilities"] = np.zeros((300, 2), np.float32)
    with pytest.raises(ValueError, match="inconsistent"):
        Trust.from_file(facts, arrays, 3)


def test_a_request_is_not_written_to_a_file():
    plain = Trust({"none": val(300, 0)})
    under = plain.under(prior_of(THERE))
    facts, arrays = under.to_file()
    np.testing.assert_array_equal(arrays["trust/references/none/target"], plain.references["none"].target)
    assert facts == plain.to_file()[0]
    again = under.under(prior_of(None, np.array([True, True, False])))
    assert again.reweighting.plain is plain, "the last request counts"


def test_old_files_restrict_probabilities_but_have_no_thresholds():
    found = val(300, 0)
    old = Trust({"none": Reference(1.5, found.uncertainty, found.target, found.right, found.ood, found.true_scores)})
    under = old.under(prior_of(None, np.array([True, True, False])))
    assert under.temperature("none", "none") == 1.5
    np.testing.assert_allclose(under.reweight(np.full((1, 3), 1 / 3), "none", "none"), [[0.5, 0.5, 0]])
    assert plan_abstention(under, CLASSES, "none", None, None).max_error is None
    with pytest.raises(RequestError, match=r"older version.*calibrate RUN adds them"):
        plan_abstention(under, CLASSES, "none", 0.1, None)
    with pytest.raises(RequestError, match="prior: the model file is of an older version"):
        old.under(prior_of(THERE))
    with pytest.raises(RequestError, match="prior needs a model with predictions on val"):
        Trust().under(prior_of(THERE))


def test_a_test_time_augmentation_that_was_not_fitted_uses_what_the_recipe_has():
    under = Trust({"d4": val(300, 0)}).under(prior_of(THERE))
    np.testing.assert_array_equal(under.implied("mirror", "d4"), under.implied("d4", "none"))
    with pytest.raises(RequestError, match="no predictions on val for test-time augmentation mirror"):
        under.implied("mirror", "none")


def test_a_large_val_is_not_kept(monkeypatch):
    from petriscope.trust import state

    monkeypatch.setattr(state, "MOST_KEPT", 500)
    found = val(300, 0)
    assert found.raw is None
    with pytest.raises(RequestError, match="300 images of 3 classes are too many to keep"):
        Trust({"none": found}).under(prior_of(THERE))


def test_shares_of_a_class_that_val_does_not_have_are_refused():
    p, targets = drawn(300, np.array([0.5, 0.5, 0]), np.random.default_rng(0), HERE)
    trust = Trust({"none": fit_reference(p, targets)})
    with pytest.raises(RequestError, match="val has no image of c"):
        trust.under(prior_of(THERE))
    trust.under(prior_of(np.array([0.5, 0.5, 0])))


def test_what_a_guarantee_is_about_is_said():
    trust = Trust({"none": val(2000, 0)})
    said = "; ".join(
        plan_abstention(trust.under(prior_of(None, np.array([True, True, False]))), CLASSES, "none", 0.1, 0.9).notes
    )
    assert "on val, images of these classes" in said and "On images of these classes like those of val" in said
    said = "; ".join(plan_abstention(trust.under(prior_of(THERE)), CLASSES, "none", 0.2, None).notes)
    assert "images drawn from val with these class shares" in said and "On images with these class shares like" in said
    said = "; ".join(plan_abstention(trust.under(prior_of(THERE)), CLASSES, "none", 0.001, None).notes)
    assert "images of val with these class shares are too few" in said
    p, targets = drawn(300, np.array([0.5, 0.5, 0]), np.random.default_rng(0), HERE)
    lacking = Trust({"none": fit_reference(p, targets)})
    for each in (lacking, lacking.under(prior_of(None, np.array([True, True, True])))):
        said = "; ".join(plan_abstention(each, CLASSES, "none", 0.3, None).notes)
        assert "val has no image of c, so no guarantee holds for images of it" in said
    without = lacking.under(prior_of(None, np.array([True, True, False])))
    assert "val has no image" not in "; ".join(plan_abstention(without, CLASSES, "none", 0.3, None).notes)
