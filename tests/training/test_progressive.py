"""Progressive resizing: smaller images first, then whole ones; nothing else of the loop changes."""

import numpy as np
import pytest
import torch

from petriscope import api
from petriscope.core.errors import RequestError
from petriscope.core.progress import Progress
from petriscope.core.recipe import ProgressiveSection, load_recipe
from petriscope.training.loop import Trainer
from petriscope.training.progressive import Progressive

SMALL = {"size": 6, "share": 0.7}
ANY_SIZE = {"name": "se-cnn", "widths": [4, 8], "depths": [1, 1], "pool": False}


def sizes_seen(monkeypatch) -> list[tuple[int, ...]]:
    """Of the images that each step's network is given."""
    seen = []
    steps = Trainer.train_step

    def watched(self, batch, targets):
        forward = self.step_model
        self.step_model = lambda images: seen.append(tuple(images.shape[1:])) or forward(images)
        try:
            return steps(self, batch, targets)
        finally:
            self.step_model = forward

    monkeypatch.setattr(Trainer, "train_step", watched)
    return seen


def test_the_first_epochs_see_smaller_images_and_the_model_is_of_whole_ones(tiny_recipe, tmp_path, monkeypatch):
    seen = sizes_seen(monkeypatch)
    recipe = tiny_recipe(model=ANY_SIZE, training={"epochs": 4, "progressive": SMALL})
    run = api.train(recipe, tmp_path / "run", quiet=True)
    assert seen == [(3, 6, 6)] * 14 + [(3, 12, 12)] * 14  # 0.7 of 4 epochs is 2; 7 batches of 16 of 120 images
    assert run.results.val.value("accuracy") > 0.9
    assert "the first 2 epochs on images of 6 pixels" in (run.folder / "report.html").read_text()


class TestShrinking:
    def test_a_smooth_image_keeps_its_look(self):
        ramp = np.linspace(20, 220, 24)[:, None, None].repeat(36, 1).repeat(3, 2)
        images = torch.from_numpy(ramp.astype(np.uint8))[None].repeat(2, 1, 1, 1)
        progressive = Progressive(ProgressiveSection(size=8), (24, 36, 3), 10)
        small, labels = progressive.shrink(images, torch.tensor([0, 1]))
        assert small.shape == (2, 8, 12, 3)
        assert small.dtype == torch.uint8
        assert labels.tolist() == [0, 1]
        means = ramp.reshape(8, 3, 12, 3, 3).mean((1, 3))
        assert np.abs(small[0].numpy()[1:-1].astype(float) - means[1:-1]).max() <= 2

    def test_masks_follow_and_keep_their_classes(self):
        mask = torch.zeros(1, 8, 12, dtype=torch.uint8)
        mask[:, :, 6:] = 3
        mask[:, 4:, :6] = 255
        images = mask[..., None].repeat(1, 1, 1, 3)
        small, targets = Progressive(ProgressiveSection(size=4), (8, 12, 3), 2, dense=True).shrink(images, mask)
        assert small.shape == (1, 4, 6, 3)
        assert targets.dtype == torch.uint8
        assert targets[0].tolist() == [[0] * 3 + [3] * 3] * 2 + [[255] * 3 + [3] * 3] * 2


def test_masks_are_trained_on_smaller_images_too(tmp_path):
    recipe = load_recipe(
        "synthetic-terrain/unet",
        data={"source": "synthetic-terrain:60", "size": [16, 24]},
        model={"name": "unet", "widths": [4, 8]},
        training={"epochs": 2, "batch_size": 16, "device": "cpu", "progressive": {"size": 8}},
        evaluation={"bootstrap": 100, "stress": "off"},
    )
    run = api.train(recipe, tmp_path / "run", quiet=True)
    assert 0 <= run.results.val.value("miou") <= 1


class TestRefusals:
    def test_a_size_that_is_no_smaller(self, tiny_recipe, tmp_path):
        with pytest.raises(RequestError, match="12x12: give a smaller size"):
            api.train(tiny_recipe(model=ANY_SIZE, training={"progressive": {"size": 12}}), tmp_path / "run")
        assert not (tmp_path / "run").exists()

    def test_a_model_of_one_size(self, tiny_recipe, tmp_path):
        with pytest.raises(RequestError, match="does not take images of 6x6"):
            api.train(tiny_recipe(training={"progressive": SMALL}), tmp_path / "run")
        assert not (tmp_path / "run").exists()

    def test_teachers(self, tiny_recipe, tmp_path):
        teacher = api.train(tiny_recipe(), tmp_path / "teacher", quiet=True)
        recipe = tiny_recipe(model=ANY_SIZE, distill={"teachers": str(teacher.folder)}, training={"progressive": SMALL})
        with pytest.raises(RequestError, match="teachers take images of one size"):
            api.train(recipe, tmp_path / "run")


def test_time_left_counts_what_is_left_to_do(capsys, monkeypatch):
    now = [0.0]
    monkeypatch.setattr("petriscope.core.progress.time.monotonic", lambda: now[0])
    bar = Progress("training", 20, "steps", lambda count: count - 0.5 * min(count, 10))
    now[0] = 10.0
    bar.advance(10)  # the cheap half took 10 s, so the other takes 20
    assert "20 s left" in capsys.readouterr().err
