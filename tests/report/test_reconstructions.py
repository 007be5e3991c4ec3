"""What an autoencoder makes of its images: kept with the run, undone of the normalization, and shown with its error."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from petriscope.api import train
from petriscope.core.recipe import Recipe
from petriscope.data import Dataset, ImageSet
from petriscope.experiments.samples import reconstructions
from petriscope.inference.predictor import Predictor
from petriscope.report import write_report
from petriscope.report.page import render
from petriscope.run.folder import Run
from petriscope.tasks import find_task

MEAN, STD = (0.75, 0.5, 0.25), (0.25, 0.125, 0.5)


class Decoder(nn.Module):
    """Gives its normalized input back, times a factor."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def reconstruct(self, images: Tensor) -> Tensor:
        return self.factor * images


def predictor(model: nn.Module, channels: int = 3, **data: Any) -> Predictor:
    mean, std = MEAN[:channels], STD[:channels]
    task = find_task("classification")
    return Predictor(model, Recipe(data=data), task, ("a", "b"), (4, 6, channels), mean, std, torch.device("cpu"))


def some_images(targets: list[int], channels: int = 3, split: str = "val") -> ImageSet:
    pixels = np.random.default_rng(0).integers(0, 256, (len(targets), 4, 6, channels), dtype=np.uint8)
    ids = np.array([f"{split}/{i}" for i in range(len(targets))], dtype=object)
    return ImageSet(pixels, np.array(targets), ("a", "b"), ids)


def dataset(train_set: ImageSet, val: ImageSet | None) -> Dataset:
    return Dataset(train_set, val, source="here", fingerprint="f00d")


@pytest.mark.parametrize("channels", [1, 3])
def test_normalization_is_undone(channels: int) -> None:
    data = dataset(some_images([0, 1], channels, "train"), some_images([0, 1, 0], channels))
    same = reconstructions(predictor(Decoder(1.0), channels), data)["reconstructions_val"]
    assert same.dtype == np.uint8 and same.shape == (3, 2, 4, 6, channels)
    assert (same[:, 0] == same[:, 1]).all()
    # The mean of normalized images is 0, so a decoder that answers 0 draws the mean color.
    flat = reconstructions(predictor(Decoder(0.0), channels), data)["reconstructions_val"][:, 1]
    assert (flat == np.round(255 * np.array(MEAN[:channels]))).all()


@pytest.mark.parametrize("channels", [1, 3])
def test_standardized_images_stand_beside_their_reconstructions(channels: int) -> None:
    data = dataset(some_images([0, 1], channels), None)
    exact = predictor(Decoder(1.0), channels, standardize=["background", "stain"])
    pairs = reconstructions(exact, data)["reconstructions_train"].astype(int)
    assert np.abs(pairs[:, 0] - pairs[:, 1]).max() <= 1, "a perfect decoder is shown with an error"
    assert (pairs[:, 0] != data.split("train").images[:2]).any()


def test_what_leaves_the_range_of_images_is_clamped() -> None:
    data = dataset(some_images([0, 1]), None)
    made = reconstructions(predictor(Decoder(1000.0)), data)["reconstructions_train"][:, 1]
    assert ((made == 0) | (made == 255)).mean() > 0.9


def test_eight_images_of_all_classes_of_val_else_train() -> None:
    val = some_images([0] * 10 + [1, 1])
    out = reconstructions(predictor(Decoder(1.0)), dataset(some_images([0, 1], split="train"), val))
    assert out["reconstructions_val_ids"].tolist() == [f"val/{i}" for i in (0, 10, 1, 11, 2, 3, 4, 5)]
    assert (out["reconstructions_val"][1, 0] == val.pixels[10]).all()
    out = reconstructions(predictor(Decoder(1.0)), dataset(some_images([0, 1], split="train"), None))
    assert out["reconstructions_train_ids"].tolist() == ["train/0", "train/1"]


def test_a_model_without_a_decoder_has_none() -> None:
    assert reconstructions(predictor(nn.Identity()), dataset(some_images([0, 1]), None)) == {}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    recipe = Recipe(
        data={"source": "synthetic-smear:64", "size": 16},
        model={"name": "autoencoder", "widths": [4, 8]},
        training={"epochs": 1, "device": "cpu"},
        evaluation={"bootstrap": 100},
    )
    return train(recipe, tmp_path_factory.mktemp("runs") / "autoencoder", quiet=True)


def test_a_trained_autoencoder_shows_them(run: Run) -> None:
    text = re.sub(r"\s+", " ", (run.folder / "report.html").read_text(encoding="utf-8"))
    section = text.partition('id="reconstructions"')[2].partition("</section>")[0]
    assert section.count("<img ") == 16 and section.count('alt="its reconstruction"') == 8
    pairs = run.gallery["reconstructions_val"].astype(float) / 255
    errors = ((pairs[:, 0] - pairs[:, 1]) ** 2).mean((1, 2, 3))
    assert re.findall(r"<dd>([\d.]+)</dd>", section) == [f"{error:.4f}" for error in errors]
    assert f"{errors.mean():.4f} on average" in section
    assert 'href="#reconstructions"' in text and "cross-entropy, plus the reconstruction loss" in text
    assert "The decoder was not trained" not in section and "standardized" not in section


def test_the_report_is_rebuilt_from_the_folder_alone(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    before = (run.folder / "report.html").read_bytes()
    monkeypatch.chdir(tmp_path)
    assert write_report(run).read_bytes() == before


def test_a_decoder_that_was_not_trained_is_told(run: Run, tmp_path: Path) -> None:
    for name in ("environment.json", "results.json", "metrics.jsonl"):
        (tmp_path / name).write_bytes((run.folder / name).read_bytes())
    shutil.copytree(run.folder / "gallery", tmp_path / "gallery")
    options = {**run.recipe.model.options, "reconstruction": 0.0}
    recipe = Recipe(**{**run.recipe.model_dump(), "model": {"name": "autoencoder", **options}})
    (tmp_path / "recipe.yaml").write_text(recipe.to_yaml(), encoding="utf-8")
    text = render(Run(tmp_path))
    assert "The decoder was not trained in this run" in text and "the reconstruction loss" not in text
