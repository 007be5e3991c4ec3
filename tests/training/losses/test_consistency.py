"""AugMix's consistency: the divergence in numbers, the views, and training by them."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.distance import jensenshannon

from petriscope import api
from petriscope.augment.pipeline import Pipeline, to_float
from petriscope.core.errors import RequestError
from petriscope.core.recipe import Part, load_recipe
from petriscope.inference.predictor import load_model
from petriscope.training.losses import LOSSES, views_of
from petriscope.training.losses.consistency import jensen_shannon

COUNTS = np.array([10, 20, 30])
CONSISTENT = {"augment": ["flip", {"name": "translate", "fraction": 0.1}, "aug-mix"], "loss": {"name": "consistency"}}


def numpy_divergence(logits):
    p = np.exp(logits - logits.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    mean = p.mean(0)
    return (p * np.log(p / mean)).sum(-1).mean()


@given(st.integers(2, 4), st.integers(1, 5), st.integers(2, 6), st.integers(0, 100))
def test_the_divergence_is_numpys_and_in_its_range(views, batch, classes, seed):
    logits = np.random.default_rng(seed).normal(0, 3, (views, batch, classes))
    found = jensen_shannon(torch.from_numpy(logits)).item()
    assert found == pytest.approx(numpy_divergence(logits), rel=1e-6)
    assert 0 <= found <= np.log(views) + 1e-9
    same = np.repeat(logits[:1], views, 0)
    assert jensen_shannon(torch.from_numpy(same)).item() == pytest.approx(0, abs=1e-9)


def test_of_two_answers_it_is_scipys():
    p = np.random.default_rng(0).dirichlet(np.ones(4), 2)
    found = jensen_shannon(torch.from_numpy(np.log(p))[:, None]).item()
    assert found == pytest.approx(jensenshannon(*p) ** 2)


def test_certain_and_opposite_answers_are_as_far_apart_as_can_be():
    logits = torch.tensor([[[500.0, -500.0]], [[-500.0, 500.0]]], requires_grad=True)
    found = jensen_shannon(logits)
    found.backward()
    assert found.item() == pytest.approx(np.log(2)) and torch.isfinite(logits.grad).all()


@pytest.mark.parametrize("soft", [False, True])
def test_the_loss_is_that_of_the_images_and_the_weighted_divergence(soft):
    part = Part(name="consistency", of={"name": "cross-entropy", "label_smoothing": 0.1}, weight=5, views=3)
    logits = torch.randn(4 * 6, 3, generator=torch.Generator().manual_seed(0))
    targets = torch.tensor([0, 1, 2, 1, 0, 2])
    targets = torch.nn.functional.one_hot(targets, 3).float() if soft else targets
    plain = torch.nn.functional.cross_entropy(logits[:6], targets, label_smoothing=0.1).item()
    expected = plain + 5 * numpy_divergence(logits.view(4, 6, 3).numpy())
    assert LOSSES.build(part, COUNTS)(logits, targets).item() == pytest.approx(expected, rel=1e-5)
    assert views_of(part) == 3 and views_of(Part(name="cross-entropy")) == 0


def test_views_share_the_image_s_crop_and_differ_from_it_and_one_another():
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (8, 12, 12, 3), dtype=np.uint8))
    labels = torch.arange(8) % 3
    parts = [Part(name="flip"), Part(name="aug-mix")]
    out, targets = Pipeline.from_recipe(parts, 3, 2)(images, labels, torch.Generator().manual_seed(0))
    alone, _ = Pipeline.from_recipe(parts[:1], 3)(images, labels, torch.Generator().manual_seed(0))
    assert out.shape == (24, 3, 12, 12) and torch.equal(targets, labels)
    torch.testing.assert_close(out[:8], to_float(alone), rtol=0, atol=0)
    first, second = out[8:16], out[16:]
    assert out.min() >= 0 and out.max() <= 1
    for one, other in ((out[:8], first), (out[:8], second), (first, second)):
        assert ((one - other).abs().mean((1, 2, 3)) > 1e-4).sum() >= 6
    still, _ = Pipeline.from_recipe([Part(name="aug-mix", severity=0)], 3, 1)(
        images, labels, torch.Generator().manual_seed(0)
    )
    assert still.shape == (16, 3, 12, 12)


def test_views_are_of_mixed_images_where_images_are_mixed():
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (8, 12, 12, 3), dtype=np.uint8))
    parts = [Part(name="aug-mix"), Part(name="mixup")]
    out, targets = Pipeline.from_recipe(parts, 2, 2)(images, torch.arange(8) % 2, torch.Generator().manual_seed(0))
    assert out.shape[0] == 24 and targets.shape == (8, 2)


@pytest.mark.parametrize(
    ("loss", "words"),
    [
        ({"name": "sum", "terms": ["consistency"]}, "cannot be a term of a sum"),
        ({"name": "consistency", "of": {"name": "consistency"}}, "loss of labels"),
        ({"name": "consistency", "of": "crossentropy"}, "did you mean cross-entropy"),
        ({"name": "consistency", "weight": 0}, "weight"),
    ],
)
def test_wrong_losses_are_named(loss, words):
    with pytest.raises(RequestError, match=words):
        LOSSES.build(Part.model_validate(loss), COUNTS)


@pytest.mark.parametrize("augment", [["flip"], ["aug-mix", "aug-mix"]])
def test_without_aug_mix_it_is_refused_before_anything_is_made(tiny_recipe, tmp_path, augment):
    recipe = tiny_recipe(loss={"name": "consistency"}, augment=augment)
    with pytest.raises(RequestError, match="list aug-mix once under augment"):
        api.train(recipe, tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()


def test_masks_are_refused(tmp_path):
    recipe = load_recipe(
        "synthetic-terrain/unet",
        ["data.size=[16, 16]", "training.epochs=1"],
        data={"source": "synthetic-terrain:48"},
        **{"augment": ["aug-mix"], "loss": {"name": "consistency"}},
    )
    with pytest.raises(RequestError, match="AugMix blends images, but a mask"):
        api.train(recipe, tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()


def test_a_network_trained_by_it_answers_views_alike(tiny_recipe, tmp_path):
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (64, 12, 12, 3), dtype=np.uint8))
    augment = Pipeline.from_recipe([Part(name="aug-mix", severity=10)], 2, 2)
    views, _ = augment(images, torch.zeros(64, dtype=torch.long), torch.Generator().manual_seed(0))
    found = []
    for weight in (1e-6, 12.0):
        recipe = tiny_recipe(**{**CONSISTENT, "loss": {"name": "consistency", "weight": weight}})
        run = api.train(recipe, tmp_path / f"weight-{weight}", quiet=True)
        losses = [line.train["loss"] for line in run.history]
        assert losses[-1] < losses[0]
        assert run.gallery["augmented"].shape[2:] == (12, 12, 3)
        predictor = load_model(run.model)
        with torch.no_grad():
            found.append(jensen_shannon(predictor.model(predictor.normalize(views)).view(3, 64, -1)).item())
    assert found[1] < found[0] / 2
    taught = tiny_recipe(distill={"teachers": [str(run.folder)]}, training={"epochs": 1}, **CONSISTENT)
    assert len(api.train(taught, tmp_path / "taught", quiet=True).history) == 1
