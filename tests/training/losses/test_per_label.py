"""Losses of images that have any number of labels."""

import numpy as np
import pytest
import torch

from petriscope.core.errors import RequestError
from petriscope.core.recipe import Part
from petriscope.training.losses import LOSSES

COUNTS = np.array([[1, 0, 0], [1, 1, 0], [0, 0, 1], [1, 0, 0]])
NAMES = ("binary-cross-entropy", "binary-focal", "asymmetric")


def build(name, **options):
    return LOSSES.build(Part(name=name, **options), COUNTS)


def drawn(seed=0, n=8):
    generator = torch.Generator().manual_seed(seed)
    return 3 * torch.randn(n, 3, generator=generator), (torch.rand(n, 3, generator=generator) < 0.4).float()


def test_binary_cross_entropy_is_that_of_torch():
    logits, targets = drawn()
    wanted = torch.nn.functional.binary_cross_entropy_with_logits(logits, targets)
    torch.testing.assert_close(build("binary-cross-entropy")(logits, targets), wanted)
    positive = torch.tensor([1 / 3, 3.0, 3.0])  # images without the label over those with it
    weighted = torch.nn.functional.binary_cross_entropy_with_logits(logits, targets, pos_weight=positive)
    torch.testing.assert_close(build("binary-cross-entropy", positive_weights="balanced")(logits, targets), weighted)
    by_class = torch.nn.functional.binary_cross_entropy_with_logits(logits, targets, weight=torch.tensor([1.0, 2, 0]))
    torch.testing.assert_close(build("binary-cross-entropy", class_weights=[1, 2, 0])(logits, targets), by_class)


def test_without_focus_and_margin_all_are_cross_entropy():
    logits, targets = drawn(1)
    plain = build("binary-cross-entropy")(logits, targets)
    torch.testing.assert_close(build("binary-focal", gamma=0)(logits, targets), plain)
    torch.testing.assert_close(build("asymmetric", gamma_negative=0, margin=0)(logits, targets), plain)
    focal = build("binary-focal", gamma=1.5)(logits, targets)
    torch.testing.assert_close(
        build("asymmetric", gamma_positive=1.5, gamma_negative=1.5, margin=0)(logits, targets), focal
    )


def test_focal_loss_is_the_formula_of_the_paper():
    logits, targets = drawn(2)
    p = torch.where(targets == 1, logits.sigmoid(), 1 - logits.sigmoid())
    torch.testing.assert_close(build("binary-focal")(logits, targets), (-((1 - p) ** 2) * p.log()).mean())


def test_asymmetric_loss_is_the_formula_of_the_paper():
    logits, targets = drawn(3)
    p = logits.sigmoid()
    shifted = (p - 0.05).clamp(min=0)
    wanted = torch.where(targets == 1, -(1 - p) * p.log(), -(shifted**4) * (1 - shifted).log()).mean()
    torch.testing.assert_close(build("asymmetric", gamma_positive=1)(logits, targets), wanted)


def test_labels_below_the_margin_teach_nothing():
    logits = torch.tensor([[-4.0, 0.0, 0.0]], requires_grad=True)  # a probability of 0.018
    build("asymmetric")(logits, torch.zeros(1, 3)).backward()
    assert logits.grad[0, 0] == 0 and (logits.grad[0, 1:] > 0).all()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("options", [{}, {"positive_weights": "balanced", "class_weights": "balanced"}])
def test_gradients_are_finite_at_extreme_logits(name, options):
    logits = torch.tensor([[-200.0, -1e-3, 200.0]] * 2, requires_grad=True)
    loss = build(name, **options, **({"gamma": 0.5} if name == "binary-focal" else {}))
    value = loss(logits, torch.tensor([[0.0, 0.0, 0.0], [1.0, 1.0, 1.0]]))
    value.backward()
    assert value.isfinite() and logits.grad.isfinite().all()


def test_label_smoothing_moves_targets():
    logits, targets = drawn(4)
    wanted = torch.nn.functional.binary_cross_entropy_with_logits(logits, targets * 0.9 + 0.05)
    torch.testing.assert_close(build("binary-cross-entropy", label_smoothing=0.1)(logits, targets), wanted)


def test_wrong_numbers_of_weights_and_mixed_sums_are_refused():
    with pytest.raises(RequestError, match="2 numbers for 3 classes"):
        build("asymmetric", positive_weights=[1, 2])
    with pytest.raises(RequestError, match="cannot be added"):
        build("sum", terms=["cross-entropy", "asymmetric"])
    both = build("sum", terms=["binary-cross-entropy", {"name": "asymmetric", "weight": 0.5}])
    logits, targets = drawn()
    torch.testing.assert_close(
        both(logits, targets), build("binary-cross-entropy")(logits, targets) + build("asymmetric")(logits, targets) / 2
    )
