"""Segmentation metrics against scikit-learn and against slow reference implementations."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, confusion_matrix, f1_score, jaccard_score, precision_score, recall_score

from devices import check_same_kind, on_every_device, queued
from petriscope.core.device import widest
from petriscope.core.masks import IGNORE
from petriscope.data.imageset import ImageSet
from petriscope.inference.tta import predict_batch, predict_batches
from petriscope.metrics import segmentation
from petriscope.metrics.segmentation import (
    Tally,
    boundary_f1_each,
    choose_examples,
    confusion_each,
    full_mask_metrics,
    loss_each,
    mask_table,
    outlines_each,
    quick_mask_metrics,
    tally_masks,
)

NAMES = ("soil", "bedrock", "sand", "big rock")
FLOOR = 1e-9


def sample(seed=0, count=6, height=9, width=11, classes=4, lacking=()):
    """Masks with unlabeled pixels, and log-probabilities that are right more often than not."""
    rng = np.random.default_rng(seed)
    masks = rng.integers(0, classes, (count, height, width), dtype=np.uint8)
    for label in lacking:
        masks[masks == label] = (label + 1) % classes
    scores = rng.normal(size=(count, classes, height, width)) + 1.5 * (
        masks[:, None] == np.arange(classes)[:, None, None]
    )
    masks[rng.random(masks.shape) < 0.2] = IGNORE
    return torch.from_numpy(scores).float().log_softmax(1), torch.from_numpy(masks)


def tally_of(log_p, masks, batch=4, outlines=True):
    count = len(masks)
    parts = [np.arange(i, min(i + batch, count)) for i in range(0, count, batch)]
    return tally_masks(((part, log_p[part], masks[part]) for part in parts), count, log_p.shape[1], outlines)


def flat(log_p, masks):
    labeled = (masks != IGNORE).numpy()
    return masks.numpy()[labeled], log_p.argmax(1).numpy()[labeled]


@given(st.integers(0, 50), st.integers(2, 4), st.booleans())
def test_metrics_agree_with_scikit_learn(seed, classes, lacks_one):
    log_p, masks = sample(seed, classes=classes, lacking=(0,) if lacks_one and classes > 2 else ())
    truth, guess = flat(log_p, masks)
    labels, there = np.arange(classes), np.unique(truth)
    result = full_mask_metrics(tally_of(log_p, masks), NAMES[:classes], resamples=10)
    assert result["confusion"] == confusion_matrix(truth, guess, labels=labels).tolist()
    assert result["pixel_accuracy"] == pytest.approx(accuracy_score(truth, guess))
    assert result["miou"] == pytest.approx(jaccard_score(truth, guess, labels=there, average="macro"))
    assert result["pixels"] == len(truth) and result["n"] == len(masks)
    theirs = {
        "iou": jaccard_score(truth, guess, labels=labels, average=None, zero_division=0),
        "precision": precision_score(truth, guess, labels=labels, average=None, zero_division=0),
        "recall": recall_score(truth, guess, labels=labels, average=None, zero_division=0),
        "f1": f1_score(truth, guess, labels=labels, average=None, zero_division=0),
    }
    for key, values in theirs.items():
        for k in there:
            assert result["per_class"][NAMES[k]][key] == pytest.approx(values[k]), key
    quick = quick_mask_metrics(tally_of(log_p, masks, outlines=False))
    assert quick["miou"] == pytest.approx(result["miou"])
    assert quick["accuracy"] == pytest.approx(result["pixel_accuracy"])
    assert quick["loss"] == pytest.approx(result["nll"])
    assert quick["loss"] == pytest.approx(float(torch.nn.functional.nll_loss(log_p, masks.long(), ignore_index=IGNORE)))


@given(st.integers(0, 20))
def test_predictions_at_unlabeled_pixels_do_not_count(seed):
    log_p, masks = sample(seed)
    other = torch.where((masks == IGNORE)[:, None], log_p.flip(1), log_p)
    first, second = tally_of(log_p, masks), tally_of(other, masks)
    for name in ("confusion", "nll", "outlines"):
        assert np.array_equal(getattr(first, name), getattr(second, name)), name


def test_the_batches_do_not_matter():
    log_p, masks = sample(count=7)
    for batch in (1, 3):
        one, other = tally_of(log_p, masks, batch), tally_of(log_p, masks, 7)
        assert np.array_equal(one.confusion, other.confusion) and np.array_equal(one.outlines, other.outlines)
        np.testing.assert_allclose(one.nll, other.nll)


def test_background_is_left_out_of_the_mean():
    log_p, masks = sample()
    names = ("background", *NAMES[1:])
    result = full_mask_metrics(tally_of(log_p, masks), names, resamples=10)
    each = [row["iou"] for row in result["per_class"].values()]
    assert result["miou"] == pytest.approx(np.mean(each[1:]))
    assert result["miou_with_background"] == pytest.approx(np.mean(each))
    assert "miou_with_background" not in full_mask_metrics(tally_of(log_p, masks), NAMES, resamples=10)


def test_images_without_labeled_pixels_are_handled():
    log_p, masks = sample()
    masks[:2] = IGNORE
    tally = tally_of(log_p, masks)
    assert math.isfinite(full_mask_metrics(tally, NAMES, resamples=10)["miou"])
    masks[:] = IGNORE
    empty = full_mask_metrics(tally_of(log_p, masks), NAMES, resamples=10)
    assert empty["miou"] is None and empty["miou_ci95"] == [None, None] and empty["pixels"] == 0


class TestOutlines:
    def slow(self, guess, truth, classes, reach):
        """Counts by looking at every pair of pixels."""
        out = np.zeros((classes, 4), dtype=int)
        guess = np.where(truth == IGNORE, IGNORE, guess)

        def outline(mask, label):
            found = []
            for y, x in zip(*np.nonzero(mask == label), strict=True):
                near = [(y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)]
                beside = [mask[p] for p in near if 0 <= p[0] < mask.shape[0] and 0 <= p[1] < mask.shape[1]]
                if any(value not in (label, IGNORE) for value in beside):
                    found.append((y, x))
            return found

        def close(points, others):
            return sum(any(math.dist(p, q) <= reach + FLOOR for q in others) for p in points)

        for label in range(classes):
            true, guessed = outline(truth, label), outline(guess, label)
            out[label] = len(true), close(true, guessed), len(guessed), close(guessed, true)
        return out

    @pytest.mark.parametrize(("height", "width"), [(7, 9), (4, 320)])  # reaching 1 and 2.4 pixels
    def test_counts_agree_with_the_definition(self, height, width):
        log_p, masks = sample(3, 2, height, width, 3)
        guess = log_p.argmax(1)
        found = outlines_each(guess, masks, 3).numpy()
        reach = max(1.0, 0.0075 * math.hypot(height, width))
        for i in range(2):
            assert found[i].tolist() == self.slow(guess[i].numpy(), masks[i].numpy(), 3, reach).tolist()

    def halves(self, border):
        masks = torch.zeros(1, 32, 32, dtype=torch.uint8)
        masks[:, :, border:] = 1
        return masks

    @pytest.mark.parametrize(("off", "wanted"), [(0, 1.0), (1, 1.0), (2, 0.0)])
    def test_a_pixel_off_is_near_enough(self, off, wanted):
        lines = outlines_each(self.halves(16 + off).long(), self.halves(16), 2).numpy()
        assert boundary_f1_each(lines)[0] == pytest.approx(wanted, abs=0.51 if off == 2 else 1e-9)
        assert (boundary_f1_each(lines)[0] < 1) == (off == 2)

    def test_images_of_one_class_have_no_outline(self):
        masks = torch.zeros(1, 8, 8, dtype=torch.uint8)
        assert np.isnan(boundary_f1_each(outlines_each(masks.long(), masks, 2).numpy())[0])

    def test_the_mean_is_of_images_whose_truth_has_an_outline(self):
        truth = torch.cat([self.halves(16), torch.zeros(3, 32, 32, dtype=torch.uint8)])
        guess = self.halves(16).repeat(4, 1, 1).long()
        log_p = torch.nn.functional.one_hot(guess, 2).permute(0, 3, 1, 2).float().log_softmax(1)
        result = full_mask_metrics(tally_of(log_p, truth), NAMES[:2], resamples=10)
        assert result["boundary_f1"] == pytest.approx(1) and result["outlined"] == 1

    def test_borders_to_unlabeled_pixels_are_no_outlines(self):
        masks = torch.zeros(1, 8, 8, dtype=torch.uint8)
        masks[:, 3:5] = IGNORE
        assert outlines_each(masks.long(), masks, 2).sum() == 0


class TestIntervals:
    def test_scenes_are_drawn_not_images(self):
        """Copies of a scene add no evidence: the interval is as wide as with one image per scene."""
        log_p, masks = sample(count=8)
        groups = np.arange(8).astype(str)
        alone = full_mask_metrics(tally_of(log_p, masks), NAMES, groups, resamples=400)
        fivefold = tally_of(log_p.repeat(5, 1, 1, 1), masks.repeat(5, 1, 1))
        kept = full_mask_metrics(fivefold, NAMES, np.tile(groups, 5), resamples=400)
        assert kept["scenes"] == 8 and kept["n"] == 40
        assert kept["miou_ci95"] == pytest.approx(alone["miou_ci95"])
        loose = full_mask_metrics(fivefold, NAMES, None, resamples=400)
        width = lambda result: result["miou_ci95"][1] - result["miou_ci95"][0]  # noqa: E731
        assert width(loose) < 0.7 * width(kept)

    def test_they_contain_the_metric_and_depend_on_the_seed_alone(self):
        tally = tally_of(*sample(count=20))
        first, again = (full_mask_metrics(tally, NAMES, resamples=200) for _ in range(2))
        assert first == again
        for name in ("miou", "pixel_accuracy", "boundary_f1", "nll"):
            low, high = first[f"{name}_ci95"]
            assert low < first[name] < high
        for row in first["per_class"].values():
            assert row["iou_ci95"][0] < row["iou"] < row["iou_ci95"][1]

    def test_one_scene_has_no_interval(self):
        result = full_mask_metrics(tally_of(*sample(count=3)), NAMES, np.array(["a", "a", "a"]), resamples=50)
        assert result["miou"] is not None and result["miou_ci95"] == [None, None]


def test_the_table_has_one_row_per_image():
    log_p, masks = sample(count=5)
    masks[1][masks[1] == 2] = IGNORE
    masks[3] = IGNORE
    table = mask_table(tally_of(log_p, masks), NAMES, np.array(list("abcde")), None, "val")
    assert table["id"].tolist() == list("abcde") and set(table["split"]) == {"val"}
    for i in (0, 1, 2, 4):
        truth, guess = flat(log_p[i : i + 1], masks[i : i + 1])
        assert table["labeled"][i] == len(truth)
        assert table["pixel_accuracy"][i] == pytest.approx(accuracy_score(truth, guess))
        mean = jaccard_score(truth, guess, labels=np.unique(truth), average="macro")
        assert table["miou"][i] == pytest.approx(mean)
    assert np.isnan(table["iou_sand"][1]) and np.isnan(table["miou"][3]) and table["labeled"][3] == 0


def test_examples_are_the_best_the_median_and_the_worst():
    hits = np.arange(1, 31)
    confusion = np.zeros((30, 2, 2), dtype=np.int64)
    confusion[:, 0, 0], confusion[:, 0, 1] = hits, 40 - hits
    confusion[29] = [[3, 0], [0, 0]]  # all right, of next to nothing
    tally = Tally(confusion, np.zeros(30), np.zeros((30, 2, 4), np.int64))
    chosen, words = choose_examples(tally, 3)
    assert chosen.tolist()[:3] == [28, 27, 26] and chosen.tolist()[-3:] == [2, 1, 0]
    assert sorted(chosen.tolist()[3:6]) == [13, 14, 15]
    assert words == ["best"] * 3 + ["median"] * 3 + ["worst"] * 3
    few, words = choose_examples(Tally(confusion[:4], np.zeros(4), np.zeros((4, 2, 4), np.int64)), 3)
    assert sorted(few.tolist()) == [0, 1, 2, 3] and words[0] == "best" and words[-1] == "worst"


class PixelReader(torch.nn.Module):
    """Predicts each pixel from its own value alone, or from that of its left neighbor."""

    def __init__(self, left: bool) -> None:
        super().__init__()
        self.left = left

    def forward(self, images):
        seen = images.roll(1, 3) if self.left else images
        return torch.cat([seen, -seen], 1)


@pytest.mark.parametrize("tta", ["none", "mirror", "flips", "d4"])
@pytest.mark.parametrize("size", [(6, 6), (6, 8)])
def test_views_are_turned_back_before_they_are_averaged(tta, size):
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, *size, 1), dtype=np.uint8))
    normalize = lambda batch: batch.permute(0, 3, 1, 2).float() / 64 - 2  # noqa: E731
    plain = predict_batch(PixelReader(False), images, normalize, "fp32", "none")
    turned = predict_batch(PixelReader(False), images, normalize, "fp32", tta)
    torch.testing.assert_close(turned, plain, atol=1e-5, rtol=1e-4)
    if tta == "none":
        return
    left = predict_batch(PixelReader(True), images, normalize, "fp32", tta).exp()
    both = [
        predict_batch(PixelReader(False), images.roll(step, 2), normalize, "fp32", "none").exp() for step in (1, -1)
    ]
    if tta == "mirror":
        torch.testing.assert_close(left, (both[0] + both[1]) / 2, atol=1e-5, rtol=1e-4)


def test_a_model_is_left_in_the_mode_it_was_in():
    from petriscope.data.batches import Batches

    masks = np.zeros((5, 4, 4), dtype=np.uint8)
    images = ImageSet(np.zeros((5, 4, 4, 1), np.uint8), masks, NAMES[:2], np.arange(5).astype(str))
    model = PixelReader(False).train()
    normalize = lambda batch: batch.permute(0, 3, 1, 2).float()  # noqa: E731
    parts = list(predict_batches(model, Batches(images, torch.device("cpu")), normalize, "fp32", batch_size=2))
    assert model.training and [len(indices) for indices, _, _ in parts] == [2, 2, 1]
    assert all(targets.dtype == torch.uint8 and targets.shape[1:] == (4, 4) for _, _, targets in parts)


@on_every_device
def test_counts_run_on_every_device_and_wait_for_none(device):
    log_p = torch.randn(3, 4, 6, 7, generator=torch.Generator().manual_seed(0)).log_softmax(1)
    masks = (torch.arange(3 * 6 * 7) % 5).to(torch.uint8).view(3, 6, 7)
    masks[masks == 4] = IGNORE
    counts = [confusion_each, outlines_each]
    expected = [count(log_p.argmax(1), masks, 4) for count in counts]
    loss = loss_each(log_p, masks)
    log_p, masks = log_p.to(device), masks.to(device)
    with queued(device):
        found = [count(log_p.argmax(1), masks, 4) for count in counts]
        there = loss_each(log_p, masks)
    assert there.device.type == device and there.dtype == widest(there.device)
    for each, same in zip(found, expected, strict=True):
        check_same_kind(each, same, device)
        if device != "meta":
            assert torch.equal(each.cpu(), same)
    if device != "meta":
        torch.testing.assert_close(there.cpu().double(), loss)


def test_outlines_of_large_images_are_widened_by_the_same_disc(monkeypatch):
    rng = np.random.default_rng(0)
    lines = torch.from_numpy(rng.random((2, 3, 60, 45)) > 0.98)
    lines[1, 2] = False
    for reach in (3.0, 8.5):
        monkeypatch.setattr(segmentation, "FAR", 100.0)
        by_rows = segmentation._widen(lines, reach)
        monkeypatch.setattr(segmentation, "FAR", 0.0)
        assert torch.equal(segmentation._widen(lines, reach), by_rows)
    truth = torch.from_numpy(rng.integers(0, 3, (2, 20, 30), dtype=np.uint8))
    guess = torch.from_numpy(rng.integers(0, 3, (2, 20, 30)))
    at_once = segmentation.outlines_each(guess, truth, 3)
    monkeypatch.setattr(segmentation, "AT_ONCE", 1)
    assert torch.equal(segmentation.outlines_each(guess, truth, 3), at_once)
