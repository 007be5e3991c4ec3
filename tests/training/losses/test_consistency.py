"""AugMix's consistency: the divergence in numbers, the views, and training by them."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.distance import jensenshannon

from petriscope import api
from petriscope.augment.families import recipe_without
from petriscope.augment.pipeline import Pipeline, Views, to_float
from petriscope.core.errors import RequestError
from petriscope.core.recipe import Part, load_recipe
from petriscope.inference.predictor import load_model
from petriscope.training.build import check_parts
from petriscope.training.losses import LOSSES, views_of
from petriscope.training.losses.consistency import jensen_shannon

TWO = Views(2, ("aug-mix",))
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
    both = Part(
        name="consistency", of={"name": "cross-entropy", "label_smoothing": 0.1}, weight=5, views=3, label_views=True
    )
    every = torch.nn.functional.cross_entropy(logits, targets.repeat(4, *[1] * (targets.ndim - 1)), label_smoothing=0.1)
    assert LOSSES.build(both, COUNTS)(logits, targets).item() == pytest.approx(
        expected - plain + every.item(), rel=1e-5
    )
    assert views_of(part) == Views(3, ("aug-mix",)) and views_of(Part(name="cross-entropy")).count == 0


def test_views_share_the_image_s_crop_and_differ_from_it_and_one_another():
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (8, 12, 12, 3), dtype=np.uint8))
    labels = torch.arange(8) % 3
    parts = [Part(name="flip"), Part(name="aug-mix")]
    out, targets = Pipeline.from_recipe(parts, 3, TWO)(images, labels, torch.Generator().manual_seed(0))
    alone, _ = Pipeline.from_recipe(parts[:1], 3)(images, labels, torch.Generator().manual_seed(0))
    assert out.shape == (24, 3, 12, 12) and torch.equal(targets, labels)
    torch.testing.assert_close(out[:8], to_float(alone), rtol=0, atol=0)
    first, second = out[8:16], out[16:]
    assert out.min() >= 0 and out.max() <= 1
    for one, other in ((out[:8], first), (out[:8], second), (first, second)):
        assert ((one - other).abs().mean((1, 2, 3)) > 1e-4).sum() >= 6
    still, _ = Pipeline.from_recipe([Part(name="aug-mix", severity=0)], 3, Views(1, ("aug-mix",)))(
        images, labels, torch.Generator().manual_seed(0)
    )
    assert still.shape == (16, 3, 12, 12)


def test_views_are_of_mixed_images_where_images_are_mixed():
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (8, 12, 12, 3), dtype=np.uint8))
    parts = [Part(name="aug-mix"), Part(name="mixup")]
    out, targets = Pipeline.from_recipe(parts, 2, TWO)(images, torch.arange(8) % 2, torch.Generator().manual_seed(0))
    assert out.shape[0] == 24 and targets.shape == (8, 2)


@pytest.mark.parametrize("by", ["corruption-mix", "wide-mix", "rand-augment", "rotate", "contrast", "cutout", "noise"])
def test_any_augmentation_can_make_the_views(by):
    """The others act on the image and on its views alike; those that make views leave the image alone."""
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (16, 12, 12, 3), dtype=np.uint8))
    labels, always = torch.arange(16) % 3, {} if by == "wide-mix" else {"p": 1}
    parts = [Part(name="invert", p=1), Part(name=by, **always), Part(name="posterize", bits=1)]
    out, _ = Pipeline.from_recipe(parts, 3, Views(2, (by, "posterize")))(
        images, labels, torch.Generator().manual_seed(0)
    )
    image, first, second = out.view(3, 16, 3, 12, 12)
    torch.testing.assert_close(image, 1 - to_float(images), rtol=0, atol=1e-6)
    changed = [(one - other).abs().amax((1, 2, 3)) > 1e-3 for one, other in ((image, first), (first, second))]
    assert all(some.sum() >= 10 for some in changed)
    assert out.min() >= 0 and out.max() <= 1


def test_what_mixes_images_makes_no_views():
    with pytest.raises(RequestError, match="MixUp cannot make the views"):
        Pipeline.from_recipe([Part(name="mixup")], 3, Views(1, ("mixup",)))
    with pytest.raises(RequestError, match="views that noise makes: list noise once under augment"):
        Pipeline.from_recipe([Part(name="blur")], 3, Views(1, ("noise",)))


def test_views_survive_where_a_family_is_left_out():
    loss = {"name": "consistency", "by": ["noise", "corruption-mix"]}
    recipe = load_recipe("blood/fast", augment=["noise", "corruption-mix"], loss=loss)
    left = recipe_without(recipe, "noise")
    assert [part.name for part in left.augment] == left.loss.options["by"] == ["corruption-mix"]
    assert recipe_without(recipe, "blur").loss.options["by"] == ["noise", "corruption-mix"]
    check_parts(left)
    with pytest.raises(RequestError, match="without the family noise, nothing makes the views"):
        recipe_without(load_recipe("blood/fast", augment=["noise"], loss={**loss, "by": ["noise"]}), "noise")


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


@pytest.mark.parametrize(
    ("by", "said"), [("aug-mix", "AugMix blends images, but a mask"), ("wide-mix", "works only for classification")]
)
def test_masks_are_refused(tmp_path, by, said):
    recipe = load_recipe(
        "synthetic-terrain/unet",
        ["data.size=[16, 16]", "training.epochs=1"],
        data={"source": "synthetic-terrain:48"},
        **{"augment": [by], "loss": {"name": "consistency", "by": [by]}},
    )
    with pytest.raises(RequestError, match=said):
        api.train(recipe, tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()


def test_a_network_trained_by_it_answers_views_alike(tiny_recipe, tmp_path):
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (64, 12, 12, 3), dtype=np.uint8))
    augment = Pipeline.from_recipe([Part(name="aug-mix", severity=10)], 2, TWO)
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
