"""Losses of masks: against hand calculations and slow second implementations."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from devices import check_same_kind, on_every_device, queued
from petriscope.core.errors import RequestError
from petriscope.core.masks import IGNORE
from petriscope.core.recipe import Part
from petriscope.training.losses import LOSSES
from petriscope.training.losses.class_weights import weigh_classes

COUNTS = np.array([[10, 0, 2], [5, 5, 0]])  # pixels of three classes in two images
EACH = [
    Part(name="cross-entropy"),
    Part(name="cross-entropy", label_smoothing=0.1, class_weights="balanced", borders=5),
    Part(name="focal", class_weights="median-frequency"),
    Part(name="focal", borders=10, border_sigma=1),
    Part(name="generalized-cross-entropy"),
    Part(name="dice"),
    Part(name="dice", per_image=True, class_weights="balanced"),
    Part(name="tversky"),
    Part(name="tversky", gamma=1.5, per_image=True),
    Part(name="lovasz"),
    Part(name="lovasz", per_image=True, class_weights="median-frequency"),
    Part(name="sum", terms=["cross-entropy", {"name": "dice", "weight": 0.5}]),
]
every = pytest.mark.parametrize("part", EACH, ids=[f"{i}-{part.name}" for i, part in enumerate(EACH)])


def build(*args, **options):
    part = args[0] if isinstance(args[0], Part) else Part(name=args[0], **options)
    return LOSSES.build(part, COUNTS)


def draw(seed=0, shape=(2, 6, 7), unlabeled=0.3):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(shape[0], 3, *shape[1:], generator=generator)
    masks = torch.randint(0, 3, shape, generator=generator)
    masks[torch.rand(shape, generator=generator) < unlabeled] = IGNORE
    return logits, masks


def test_every_loss_is_tested():
    of_labels = {"consistency", "binary-cross-entropy", "binary-focal", "asymmetric"}
    assert {part.name for part in EACH} == set(LOSSES.members) - of_labels


class TestContract:
    @every
    @given(seed=st.integers(0, 2**31), unlabeled=st.sampled_from([0.0, 0.3, 0.9]))
    @settings(max_examples=15, deadline=None)
    def test_what_lies_under_unlabeled_pixels_is_all_the_same(self, part, seed, unlabeled):
        logits, masks = draw(seed, unlabeled=unlabeled)
        other = torch.where((masks == IGNORE)[:, None], 50 * torch.randn_like(logits), logits)
        loss = build(part)
        torch.testing.assert_close(loss(other, masks), loss(logits, masks))

    @every
    def test_gradients_are_finite_and_nought_where_unlabeled(self, part):
        logits, masks = draw()
        logits.requires_grad_()
        build(part)(logits, masks).backward()
        assert logits.grad.isfinite().all()
        assert not logits.grad[(masks == IGNORE)[:, None].expand_as(logits)].any()
        assert logits.grad[(masks != IGNORE)[:, None].expand_as(logits)].any()

    @every
    @pytest.mark.parametrize("sure", [0.0, 40.0, -40.0])
    def test_gradients_are_finite_where_a_model_is_sure(self, part, sure):
        _, masks = draw()
        truth = nn.functional.one_hot(torch.where(masks == IGNORE, 0, masks), 3).movedim(3, 1)
        logits = (sure * truth).float().requires_grad_()
        loss = build(part)(logits, masks)
        loss.backward()
        assert loss.isfinite()
        assert logits.grad.isfinite().all()

    @every
    def test_without_any_label_the_loss_is_nought(self, part):
        logits, masks = draw(unlabeled=1.1)
        logits.requires_grad_()
        loss = build(part)(logits, masks)
        loss.backward()
        assert loss.item() == 0
        assert torch.equal(logits.grad, torch.zeros_like(logits))

    @every
    def test_a_few_steps_down_the_gradient_make_the_mask(self, part):
        logits, masks = draw()
        logits.requires_grad_()
        loss = build(part)
        optimizer = torch.optim.Adam([logits], 0.3)
        for _ in range(60):
            optimizer.zero_grad()
            loss(logits, masks).backward()
            optimizer.step()
        labeled = masks != IGNORE
        assert torch.equal(logits.argmax(1)[labeled], masks[labeled])

    @every
    def test_the_order_of_images_does_not_matter(self, part):
        logits, masks = draw()
        loss = build(part)
        torch.testing.assert_close(loss(logits.flip(0), masks.flip(0)), loss(logits, masks))

    @every
    @on_every_device
    def test_it_runs_on_every_device_and_waits_for_none(self, part, device):
        logits, masks = draw()
        expected = build(part)(logits, masks)
        there, masks, loss_of = logits.to(device).requires_grad_(), masks.to(device), build(part).to(device)
        with queued(device):
            loss = loss_of(there, masks)
            loss.backward()
        check_same_kind(loss, expected, device)
        check_same_kind(there.grad, logits, device)
        if device != "meta":
            torch.testing.assert_close(loss.cpu(), expected)


class TestPixelwise:
    @pytest.mark.parametrize("smoothing", [0.0, 0.2])
    @pytest.mark.parametrize("weights", ["none", "balanced", (1.0, 2.0, 0.0)])
    def test_cross_entropy_is_torchs_over_labeled_pixels(self, weights, smoothing):
        logits, masks = draw()
        loss = build("cross-entropy", class_weights=weights, label_smoothing=smoothing)
        expected = nn.functional.cross_entropy(
            logits, masks, weight=loss.weight, ignore_index=IGNORE, label_smoothing=smoothing
        )
        torch.testing.assert_close(loss(logits, masks), expected)

    @pytest.mark.parametrize("name", ["cross-entropy", "focal", "generalized-cross-entropy"])
    @pytest.mark.parametrize("weights", ["none", "balanced"])
    def test_unlabeled_pixels_are_as_if_they_were_not_there(self, name, weights):
        logits, masks = draw()
        labeled = masks != IGNORE
        loss = build(name, class_weights=weights)
        flat = loss(logits.movedim(1, 3)[labeled], masks[labeled])
        torch.testing.assert_close(loss(logits, masks), flat)

    def test_a_label_of_255_is_a_class_like_others(self):
        loss = LOSSES.build(Part(name="cross-entropy"), np.ones(300, dtype=np.int64))
        logits = torch.zeros(2, 300)
        assert loss(logits, torch.tensor([255, 255])).item() == pytest.approx(math.log(300))

    @pytest.mark.parametrize("name", ["cross-entropy", "focal"])
    def test_borders_weigh_a_mean_and_no_more(self, name):
        """Every pixel wrong by the same: weights leave the mean as it is. Only a border pixel wrong: it counts more."""
        masks = torch.zeros(1, 9, 9, dtype=torch.long)
        masks[:, :, 5:] = 1
        plain, weighted = build(name), build(name, borders=9, border_sigma=0.5)
        even = torch.zeros(1, 3, 9, 9)
        torch.testing.assert_close(weighted(even, masks), plain(even, masks))
        right = 9 * nn.functional.one_hot(masks, 3).movedim(3, 1).float()
        on, off = right.clone(), right.clone()
        on[0, :, 4, 4], off[0, :, 4, 0] = 0, 0
        torch.testing.assert_close(plain(on, masks), plain(off, masks))
        assert weighted(on, masks) > 5 * weighted(off, masks)


class TestClassWeights:
    def test_median_frequency_is_the_papers(self):
        # class 0: 15 of 22 labeled pixels in the images that have it; class 1: 5 of 10; class 2: 2 of 12
        frequency = np.array([15 / 22, 5 / 10, 2 / 12])
        assert weigh_classes("median-frequency", COUNTS).numpy() == pytest.approx(0.5 / frequency)

    def test_of_counts_alone_a_frequency_is_a_share_of_all(self):
        assert weigh_classes("median-frequency", np.array([10, 30, 60])).tolist() == pytest.approx([3, 1, 0.5])

    def test_balanced_counts_all_pixels(self):
        assert torch.equal(weigh_classes("balanced", COUNTS), weigh_classes("balanced", COUNTS.sum(0)))

    def test_classes_that_are_not_there_have_finite_weights(self):
        for rule in ("balanced", "median-frequency"):
            assert weigh_classes(rule, np.array([[4, 0, 1]])).isfinite().all()
            assert weigh_classes(rule, np.zeros(3, dtype=np.int64)).isfinite().all()

    def test_numbers_are_one_a_class(self):
        assert weigh_classes((1, 2, 3), COUNTS).tolist() == [1, 2, 3]
        with pytest.raises(RequestError, match="2 numbers for 3 classes"):
            weigh_classes((1, 2), COUNTS)


def by_hand(logits, masks):
    """Probabilities [P, K] and classes [P] of the labeled pixels."""
    labeled = masks != IGNORE
    return logits.softmax(1).movedim(1, 3)[labeled].double().numpy(), masks[labeled].numpy()


class TestTversky:
    @pytest.mark.parametrize(("alpha", "beta", "gamma"), [(0.3, 0.7, 1), (0.5, 0.5, 1), (0.3, 0.7, 4 / 3), (1, 1, 2)])
    def test_it_is_the_papers_formula(self, alpha, beta, gamma):
        logits, masks = draw()
        masks[masks == 1] = 2  # a class that is not there is not in the mean
        p, truth = by_hand(logits, masks)
        losses = []
        for k in (0, 2):
            inside = truth == k
            hit, wrong, missed = p[inside, k].sum(), p[~inside, k].sum(), (1 - p[inside, k]).sum()
            losses.append((1 - (hit + 1) / (hit + alpha * wrong + beta * missed + 1)) ** (1 / gamma))
        loss = build("tversky", alpha=alpha, beta=beta, gamma=gamma)
        assert loss(logits, masks).item() == pytest.approx(np.mean(losses), rel=1e-5)

    def test_dice_is_twice_the_overlap_over_the_sum(self):
        logits, masks = draw()
        p, truth = by_hand(logits, masks)
        overlap = [2 * p[truth == k, k].sum() / (p[:, k].sum() + (truth == k).sum()) for k in range(3)]
        loss = build("dice", smooth=1e-6)
        assert loss(logits, masks).item() == pytest.approx(1 - np.mean(overlap), rel=1e-5)

    def test_false_negatives_can_cost_more(self):
        masks = torch.tensor([[[0, 0, 1, 1]]])
        missing, excess = torch.zeros(1, 3, 1, 4), torch.zeros(1, 3, 1, 4)
        for logits, seen in ((missing, [0, 0, 0, 1]), (excess, [0, 1, 1, 1])):
            for place, k in enumerate(seen):
                logits[0, k, 0, place] = 50
        loss = build("tversky", alpha=0.1, beta=0.9, class_weights=(0.0, 1.0, 0.0))
        assert loss(missing, masks) > loss(excess, masks)

    @pytest.mark.parametrize("name", ["dice", "tversky", "lovasz"])
    def test_images_on_their_own_are_averaged_class_by_class(self, name):
        logits, masks = draw(unlabeled=0)
        loss = build(name, per_image=True)
        each = [loss(logits[i : i + 1], masks[i : i + 1]) for i in range(2)]
        torch.testing.assert_close(loss(logits, masks), torch.stack(each).mean())

    def test_class_weights_are_of_the_mean(self):
        logits, masks = draw()
        alone = [build("dice", class_weights=tuple(np.eye(3)[k]))(logits, masks) for k in range(3)]
        weighted = build("dice", class_weights=(1.0, 2.0, 5.0))(logits, masks)
        torch.testing.assert_close(weighted, (alone[0] + 2 * alone[1] + 5 * alone[2]) / 8)


class TestLovasz:
    @pytest.mark.parametrize("truth", list(itertools.product([0, 1], repeat=4))[1:])
    def test_at_hard_predictions_it_is_one_minus_iou(self, truth):
        masks = torch.tensor(truth)[None, None]
        loss = build("lovasz", class_weights=(0.0, 1.0, 0.0))
        for predicted in itertools.product([0, 1], repeat=4):
            logits = 60 * nn.functional.one_hot(torch.tensor(predicted), 3).T[None, :, None].float()
            both, either = np.bitwise_and(truth, predicted).sum(), np.bitwise_or(truth, predicted).sum()
            assert loss(logits, masks).item() == pytest.approx(1 - both / either, abs=1e-5)

    def test_between_them_it_is_the_mean_over_thresholds(self):
        """The extension of a set function is its mean over the level sets of the errors."""
        logits, masks = draw(3)
        p, truth = by_hand(logits, masks)
        losses = []
        for k in range(3):
            inside = truth == k
            errors = np.abs(inside - p[:, k])
            levels = np.concatenate([[0], np.sort(errors)])
            total = 0.0
            for low, high in itertools.pairwise(levels):
                wrong = errors > low
                total += (high - low) * wrong.sum() / (inside | wrong).sum() if wrong.any() else 0.0
            losses.append(total)
        assert build("lovasz")(logits, masks).item() == pytest.approx(np.mean(losses), rel=1e-5)

    def test_shares_of_classes_have_no_iou(self):
        with pytest.raises(RequestError, match="mixup"):
            build("lovasz")(torch.zeros(2, 3), torch.full((2, 3), 1 / 3))


class TestLabels:
    """Losses of regions take a batch of labels for a region."""

    @pytest.mark.parametrize("name", ["dice", "tversky", "lovasz"])
    def test_labels_are_masks_of_one_pixel(self, name):
        logits, labels = torch.randn(6, 3), torch.tensor([0, 1, 2, 1, 0, 2])
        loss = build(name)
        torch.testing.assert_close(loss(logits, labels), loss(logits[:, :, None, None], labels[:, None, None]))

    @pytest.mark.parametrize("name", ["dice", "tversky"])
    def test_hard_targets_are_soft_ones_of_one_class(self, name):
        logits, labels = torch.randn(6, 3), torch.tensor([0, 1, 2, 1, 0, 2])
        loss = build(name)
        torch.testing.assert_close(loss(logits, nn.functional.one_hot(labels, 3).float()), loss(logits, labels))


class TestSum:
    def test_it_is_the_weighted_sum(self):
        logits, masks = draw()
        loss = build("sum", terms=[{"name": "focal", "gamma": 1}, {"name": "dice", "weight": 0.5}])
        expected = build("focal", gamma=1)(logits, masks) + 0.5 * build("dice")(logits, masks)
        torch.testing.assert_close(loss(logits, masks), expected)

    @pytest.mark.parametrize(
        ("terms", "says"),
        [
            ([], "one loss at least"),
            (["dyce"], "did you mean dice"),
            ([{"name": "dice", "smoth": 1}], r"loss\.terms\.0 .* did you mean smooth"),
            ([{"name": "dice", "weight": -1}], r"terms\.0\.weight"),
            (["dice", {"name": "sum", "terms": ["focl"]}], "did you mean focal"),
        ],
    )
    def test_terms_are_checked_before_anything_is_built(self, terms, says):
        with pytest.raises(RequestError, match=says):
            LOSSES.check(Part(name="sum", terms=terms))
