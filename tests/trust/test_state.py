"""What is fitted on val: fitting, metrics, and saving to a file."""

from __future__ import annotations

import base64
import json

import numpy as np
import pytest
from scipy.special import softmax

from fitted import CLASSES as FITTED
from fitted import fitted
from petriscope.core.recipe import Part
from petriscope.metrics.conformal import METHODS
from petriscope.metrics.selective import uncertainty
from petriscope.trust.ood import Detector, fit_detector
from petriscope.trust.state import LEVELS, MAX_ERRORS, Trust, fit_reference, trust_metrics
from petriscope.trust.temperature import scale

CLASSES = ("a", "b", "c")


def drawn(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities of an underconfident network."""
    rng = np.random.default_rng(seed)
    targets = rng.integers(0, 3, n)
    logits = rng.normal(size=(n, 3)) + 6 * np.eye(3)[targets] * rng.exponential(1, (n, 1))
    return softmax(logits * 0.4, axis=1).astype(np.float32), targets


def ood_scores(n: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).uniform(0, 1.05, n).astype(np.float32)


def metrics(n_val: int = 1500, n: int = 1500):
    raw, targets = drawn(n_val, 0)
    reference = fit_reference(raw, targets, ood_scores(n_val, 1))
    new, new_targets = drawn(n, 2)
    p = scale(new, reference.temperature)
    found = trust_metrics(new, p, new_targets, ood_scores(n, 3), CLASSES, reference, reference.temperature)
    return reference, p, new_targets, found


def test_the_metrics_agree_with_the_thresholds():
    reference, p, targets, found = metrics()
    json.dumps(found.as_json(), allow_nan=False)
    assert found.calibration.after.ece_equal_mass < found.calibration.before.ece_equal_mass
    assert [row.max_error for row in found.selective] == list(MAX_ERRORS)
    row = found.selective[-2]
    answered = (ood_scores(1500, 3) <= 1) & (uncertainty(p) <= reference.threshold(0.05).uncertainty)
    assert (row.answered, row.coverage) == (answered.sum(), answered.mean())
    assert row.wrong == (p.argmax(1) != targets)[answered].sum()
    assert row.error_ci95[0] <= row.error <= row.error_ci95[1]
    assert {(row.level, row.method) for row in found.conformal} == {(a, b) for a in LEVELS for b in METHODS}
    assert found.ood.flagged == (ood_scores(1500, 3) > 1).sum()


def test_out_of_distribution_images_of_val_give_no_guarantee():
    raw, targets = drawn(1500, 0)
    all_far = fit_reference(raw, targets, np.full(1500, 2, np.float32))
    assert all_far.threshold(0.2) is None
    assert fit_reference(raw, targets).threshold(0.2) is not None


@pytest.mark.parametrize("n", [1, 3])
def test_few_images_are_handled(n):
    found = metrics(n, n)[-1]
    json.dumps(found.as_json(), allow_nan=False)
    assert all(not row.guaranteed for row in found.selective)
    assert all(row.too_few_val == list(CLASSES) for row in found.conformal)  # all classes are in all sets
    assert all(row.coverage == 1 for row in found.conformal)


@pytest.mark.parametrize("right", [True, False])
def test_all_right_and_all_wrong_are_handled(right):
    raw, targets = drawn(800, 0)
    targets = raw.argmax(1) if right else (raw.argmax(1) + 1) % 3
    reference = fit_reference(raw, targets)
    p = scale(raw, reference.temperature)
    found = trust_metrics(raw, p, targets, None, CLASSES, reference, reference.temperature)
    json.dumps(found.as_json(), allow_nan=False)
    assert found.selective[1].guaranteed == right
    assert found.ood is None


def test_without_a_reference_nothing_is_guaranteed():
    raw, targets = drawn(50, 0)
    found = trust_metrics(raw, raw, targets, None, CLASSES, None, 1.0)
    assert found.selective is None and found.conformal is None
    assert found.calibration.before == found.calibration.after
    assert found.aurc >= found.excess_aurc >= 0


def trust() -> Trust:
    rng = np.random.default_rng(0)
    values, statistics = rng.normal(size=(60, 4)).astype(np.float32), rng.normal(size=(60, 5)).astype(np.float32)
    detector = fit_detector((values, statistics), np.arange(60) % 3, (values, statistics))
    references = {
        tta: fit_reference(*drawn(200, seed), ood_scores(200, seed)) for seed, tta in enumerate(("none", "d4"))
    }
    return Trust(references, detector)


def as_before_tensors(facts, arrays):
    """The facts as older versions wrote them, with arrays as base64 in place of their names."""
    if isinstance(facts, dict):
        return {key: as_before_tensors(value, arrays) for key, value in facts.items()}
    if isinstance(facts, str):
        values = arrays[facts]
        return {"shape": list(values.shape), "base64": base64.b64encode(values.tobytes()).decode()}
    return facts


def written(trust: Trust, older: bool = False):
    facts, arrays = trust.to_file()
    if older:
        facts, arrays = as_before_tensors(facts, arrays), {}
    return json.loads(json.dumps(facts, allow_nan=False)), arrays


@pytest.mark.parametrize("older", [False, True])
def test_trust_survives_a_round_trip(older):
    before = trust()
    after = Trust.from_file(*written(before, older), 3)
    for tta, reference in before.references.items():
        assert after.temperature(tta, "") == reference.temperature
        assert after.references[tta].threshold(0.1) == reference.threshold(0.1)
        for method in METHODS:
            np.testing.assert_array_equal(
                after.references[tta].limits(0.9, 3, method), reference.limits(0.9, 3, method)
            )
    new = np.random.default_rng(5).normal(size=(9, 4)), np.random.default_rng(6).normal(size=(9, 5))
    np.testing.assert_array_equal(after.detector.score(*new), before.detector.score(*new))


def test_files_from_before_mixtures_are_read():
    before = trust()
    mahalanobis = before.detector.features
    older = Trust(before.references, Detector(mahalanobis, mahalanobis))
    after = Trust.from_file(*written(older, older=True), 3)
    new = np.random.default_rng(5).normal(size=(9, 4))
    np.testing.assert_array_equal(after.detector.score(new, new), older.detector.score(new, new))


def test_empty_trust_survives_a_round_trip():
    found = Trust.from_file(*written(Trust()), 3)
    assert found.references == {} and found.detector is None
    assert found.temperature("none", "none") == 1


@pytest.mark.parametrize(
    "place",
    [
        ("references", "none", "doubt"),
        ("references", "none", "aps"),
        ("detector", "pixels", "whiten"),
        ("detector", "features", "whiten"),
    ],
)
@pytest.mark.parametrize("older", [False, True])
def test_missing_and_inconsistent_arrays_are_errors(place, older):
    facts, arrays = written(trust(), older)
    within = facts[place[0]][place[1]]
    whole = within.pop(place[2])
    with pytest.raises(KeyError):
        Trust.from_file(facts, arrays, 3)
    within[place[2]] = {"shape": [1, 2], "base64": base64.b64encode(bytes(8)).decode()}
    with pytest.raises(ValueError, match="inconsistent"):
        Trust.from_file(facts, arrays, 3)
    within[place[2]] = whole
    if older:
        whole["base64"] = whole["base64"][:-4]
    else:
        arrays[whole] = arrays[whole].astype(np.float64)
    with pytest.raises(ValueError, match=r"reshape|size|float64, not float32"):
        Trust.from_file(facts, arrays, 3)
    if not older:
        del arrays[whole]
        with pytest.raises(KeyError):
            Trust.from_file(facts, arrays, 3)


def test_the_temperature_of_the_recipe_stands_in_for_other_augmentations():
    found = trust()
    assert found.temperature("flips", "d4") == found.references["d4"].temperature
    assert found.temperature("flips", "mirror") == 1


def test_a_detector_without_centers_is_inconsistent():
    facts, arrays = fitted(Part(name="simple-cnn", widths=[4, 4, 4], hidden=4), (8, 8, 3)).trust.to_file()
    assert Trust.from_file(facts, arrays, len(FITTED)).detector is not None
    for name in ("features", "pixels"):
        key = f"trust/detector/{name}/centers"
        less = {**arrays, key: arrays[key][:0]}
        if (height := f"trust/detector/{name}/height") in arrays:
            less |= {
                height: arrays[height][:0],
                f"trust/detector/{name}/whiten": arrays[f"trust/detector/{name}/whiten"][:0],
            }
        with pytest.raises(ValueError, match="detector have inconsistent shapes"):
            Trust.from_file(facts, less, len(FITTED))
