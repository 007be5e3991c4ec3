"""Out-of-distribution detection: distances, limits, and what is flagged."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from petriscope.trust.ood import (
    INSIDE,
    INSIDE_AUGMENTED,
    Detector,
    Mahalanobis,
    fit_detector,
    fit_mahalanobis,
    fit_mixture,
    image_statistics,
    observe,
)


def blobs(n: int, seed: int, dims: int = 6) -> tuple[np.ndarray, np.ndarray]:
    """Three separate classes with a common covariance."""
    rng = np.random.default_rng(seed)
    targets = rng.integers(0, 3, n)
    slant = np.random.default_rng(99).normal(size=(dims, dims))
    values = rng.normal(size=(n, dims)) @ slant + 8 * np.eye(3, dims)[targets]
    return values.astype(np.float32), targets


def test_the_distance_is_mahalanobis():
    values, targets = blobs(4000, 0)
    mahalanobis = fit_mahalanobis(values, targets)
    means = np.stack([values[targets == k].mean(0) for k in range(3)])
    within = values - means[targets]
    inverse = np.linalg.inv(within.T @ within / len(values))
    new = blobs(50, 1)[0]
    expected = np.min([np.einsum("nd,de,ne->n", new - m, inverse, new - m) for m in means], axis=0)
    np.testing.assert_allclose(mahalanobis.distance(new), expected, rtol=0.05)  # the covariance is shrunk a little


def test_a_mixture_of_one_is_the_mahalanobis_distance():
    values = blobs(400, 0)[0]
    mixture, new = fit_mixture(values), blobs(50, 1)[0]
    assert len(mixture.centers) == 1
    away = new - values.mean(0)
    expected = np.einsum("nd,de,ne->n", away, np.linalg.inv(np.cov(values.T, bias=True)), away)
    np.testing.assert_allclose(mixture.distance(new), expected, rtol=0.05)  # every variance is a little larger


def test_a_mixture_orders_by_density_as_scikit_learn_does():
    from sklearn.mixture import GaussianMixture

    values = np.concatenate([blobs(1500, 0)[0], 5 + 0.1 * blobs(1500, 1)[0]])
    mixture, new = fit_mixture(values), blobs(300, 2)[0]
    mean, spread = values.mean(0), values.std(0)
    theirs = GaussianMixture(12, reg_covar=1e-3, random_state=0, init_params="k-means++", max_iter=200)
    density = theirs.fit(((values - mean) / spread).astype(np.float64)).score_samples((new - mean) / spread)
    assert len(mixture.centers) == 12
    lower = mixture.distance(new) + 2 * density
    np.testing.assert_allclose(lower, lower.mean(), atol=0.05)  # but for a constant, and float32
    np.testing.assert_array_equal(fit_mixture(values).whiten, mixture.whiten)


def test_augmented_images_are_in_distribution():
    train, val, harder = blobs(3000, 0), blobs(2000, 1)[0], 3 * blobs(2000, 2)[0]
    both = np.concatenate([train[0], 3 * train[0]]), np.tile(train[1], 2)
    naive = fit_detector((train[0], train[0]), train[1], (val, val))
    taught = fit_detector((both[0], both[0]), both[1], (val, val), (harder, harder))
    assert (naive.score(harder, harder) > 1).mean() > 0.5
    assert (taught.score(harder, harder) <= 1).mean() == pytest.approx(INSIDE_AUGMENTED, abs=1e-3)
    assert (taught.score(val, val) <= 1).mean() >= 0.995


def test_the_share_of_val_that_is_in_distribution_is_as_asked():
    train, val, new = blobs(3000, 0), blobs(2000, 1), blobs(2000, 2)
    statistics = [np.ones((len(part[0]), 2), np.float32) for part in (train, val, new)]
    detector = fit_detector((train[0], statistics[0]), train[1], (val[0], statistics[1]), inside=0.95)
    assert (detector.score(val[0], statistics[1]) <= 1).mean() == pytest.approx(0.95, abs=1e-3)
    assert (detector.score(new[0], statistics[2]) <= 1).mean() == pytest.approx(0.95, abs=0.02)
    assert (detector.score(new[0] + 60, statistics[2]) > 1).all()
    assert (detector.score(new[0], statistics[2] + 1) > 1).mean() > 0.99  # a constant statistic has changed


def test_limits_widen_for_images_from_elsewhere_and_never_shrink():
    train, val, (values, targets), elsewhere = blobs(3000, 0), blobs(2000, 1)[0], blobs(500, 2), blobs(400, 3)[0] + 9
    near = (values + 8 * np.eye(3, 6, dtype=np.float32)[targets]) / 2  # halfway to their classes' centers
    detector = fit_detector((train[0], train[0]), train[1], (val, val))
    assert (detector.score(elsewhere, elsewhere) > 1).all()
    wider = detector.widened(elsewhere, elsewhere)
    assert (wider.score(elsewhere, elsewhere) <= 1).mean() >= 0.995
    assert (wider.score(val, val) <= detector.score(val, val)).all()
    assert (wider.score(elsewhere + 60, elsewhere + 60) > 1).all()
    np.testing.assert_array_equal(detector.widened(near, near).score(val, val), detector.score(val, val))
    broken = elsewhere.copy()
    broken[:9] = np.nan
    assert (detector.widened(broken, broken).score(broken, broken) > 1).sum() == 9 + 1  # of what is finite, 99.5 %


@pytest.mark.parametrize("n", [60, 2000])  # the limit is the last image's score, or not
@pytest.mark.parametrize("augmented", [False, True])
def test_no_image_that_limits_were_fitted_on_is_at_the_edge(n, augmented):
    train, val, harder, elsewhere = blobs(3000, 0), blobs(n, 1)[0], 1.5 * blobs(n, 2)[0], blobs(n, 3)[0] + 9
    detector = fit_detector(
        (train[0], train[0]), train[1], (val, val), (harder, harder) if augmented else None, inside=0.97
    )
    wider = detector.widened(elsewhere, elsewhere)
    for fitted, images in ((detector, harder if augmented else val), (wider, elsewhere)):
        scores = fitted.score(images, images)
        inside = INSIDE if fitted is wider else INSIDE_AUGMENTED if augmented else 0.97
        assert (scores > 1).sum() == n - 1 - np.ceil(inside * (n - 1))
        assert 1e-6 < 1 - scores[scores <= 1].max() < 0.0101
        assert not len(scores[scores > 1]) or scores[scores > 1].min() - 1 > 1e-6


def test_an_image_and_its_augmented_version_whose_scores_differ_by_rounding_are_both_inside():
    """Else the limit is between the two, and an exported network, which rounds otherwise, has another verdict."""
    train, val = blobs(3000, 0), blobs(200, 1)[0]
    for factor in (1 - 1e-6, 1 + 1e-6):
        seen = (np.float32(factor) * val, np.float32(factor) * val)
        detector = fit_detector((train[0], train[0]), train[1], (val, val), seen, inside=0.97)
        scores = np.concatenate([detector.score(val, val), detector.score(*seen)])
        assert np.abs(scores - 1).min() > 1e-5


def test_few_images_and_many_dimensions_are_handled():
    rng = np.random.default_rng(0)
    train, val = rng.normal(size=(5, 40)).astype(np.float32), rng.normal(size=(2, 40)).astype(np.float32)
    detector = fit_detector((train, train), np.array([0, 0, 0, 1, 1]), (val, val))
    assert np.isfinite(detector.score(val, val)).all() and (detector.score(val, val) <= 1).all()
    same = np.ones((5, 4), np.float32)
    constant = fit_detector((same, same), np.zeros(5, int), (same[:2], same[:2]))
    for part in (constant.features, constant.pixels):
        assert (part.distance(np.full((1, 4), 2, np.float32)) > 1).all()


def test_values_that_are_not_finite_are_out_of_distribution():
    values, targets = blobs(100, 0)
    mahalanobis = fit_mahalanobis(values, targets)
    for value in (np.nan, np.inf, -np.inf):
        assert mahalanobis.distance(np.full((1, 6), value))[0] == np.inf


def test_a_model_without_features_is_judged_by_pixels_alone():
    rng = np.random.default_rng(0)
    none, pixels = np.zeros((50, 0), np.float32), rng.normal(size=(50, 3)).astype(np.float32)
    detector = fit_detector((none, pixels), np.arange(50) % 2, (none, pixels))
    assert (detector.score(none, pixels + 30) > 1).all()


@pytest.mark.parametrize("channels", [1, 3])
def test_statistics_by_hand(channels):
    images = np.random.default_rng(0).integers(0, 256, (4, 9, 7, channels), dtype=np.uint8)
    found = image_statistics(torch.from_numpy(images)).numpy()
    x = images / 255
    assert found.shape == (4, 25 if channels == 3 else 8)
    np.testing.assert_allclose(found[:, :channels], x.mean((1, 2)), atol=1e-5)
    np.testing.assert_allclose(found[:, channels : 2 * channels], x.std((1, 2)), atol=1e-5)
    median = found[:, 2 * channels : 7 * channels].reshape(4, channels, 5)[..., 2]
    np.testing.assert_allclose(median, np.median(x, axis=(1, 2)), atol=1e-5)
    gray = x.mean(3)
    steps = np.concatenate([np.abs(np.diff(gray, axis=a)).reshape(4, -1) for a in (1, 2)], axis=1)
    np.testing.assert_allclose(found[:, -1], np.log(steps.mean(1) + 1e-3), atol=1e-4)


@pytest.mark.parametrize("shape", [(1, 1), (1, 5), (80, 70)])
def test_statistics_of_any_size_are_finite(shape):
    assert torch.isfinite(image_statistics(torch.zeros(2, *shape, 3, dtype=torch.uint8))).all()


class Headed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Conv2d(3, 5, 3), nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 2))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(images))


def test_features_are_those_of_the_first_view():
    model, images = Headed().eval(), torch.randint(0, 256, (4, 8, 8, 3), dtype=torch.uint8)
    plain = images.permute(0, 3, 1, 2).float()
    with torch.no_grad(), observe(model) as observer:
        model(plain)
        model(plain.flip(3))  # another view
        features, statistics = observer.take(images)
        expected = model.body(plain).mean((2, 3))
        model(plain * 0)
        again, _ = observer.take(images)
    np.testing.assert_allclose(features, expected, rtol=1e-5)
    assert not np.allclose(again, features)  # the next batch is noted anew
    assert statistics.shape == (4, 25)
    assert not model.head._forward_pre_hooks


def test_blank_images_noise_and_other_colors_are_flagged():
    rng = np.random.default_rng(0)

    def cells(n: int) -> np.ndarray:
        y, x = np.mgrid[:16, :16]
        radius = rng.uniform(3, 6, (n, 1, 1, 1))
        disc = ((y - 8) ** 2 + (x - 8) ** 2)[None, ..., None] < radius**2
        color = np.array([150, 60, 140]) + rng.normal(0, 10, (n, 1, 1, 3))
        return (np.where(disc, color, 220) + rng.normal(0, 6, (n, 16, 16, 3))).clip(0, 255).astype(np.uint8)

    def look(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return np.zeros((len(images), 0), np.float32), image_statistics(torch.from_numpy(images)).numpy()

    detector = fit_detector(look(cells(400)), np.zeros(400, int), look(cells(200)))
    assert (detector.score(*look(cells(300))) > 1).mean() < 0.03
    blank = np.broadcast_to(rng.integers(0, 256, (50, 1, 1, 3)), (50, 16, 16, 3)).astype(np.uint8)
    noise = rng.integers(0, 256, (50, 16, 16, 3), dtype=np.uint8)
    for far in (blank, noise, 255 - cells(50), cells(50)[..., ::-1].copy() // 2):
        assert (detector.score(*look(far)) > 1).all()


def test_the_larger_of_the_two_counts():
    distances = [Mahalanobis(np.zeros((1, 1), np.float32), np.ones((1, 1), np.float32), limit) for limit in (1.0, 4.0)]
    found = Detector(distances[0], distances[1], 2.0).score(np.array([[3.0], [0.0]]), np.array([[0.0], [6.0]]))
    np.testing.assert_allclose(found, [9 / 2, 36 / 4 / 2])
