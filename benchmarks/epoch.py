"""An epoch against the usual loop: Dataset, DataLoader with 0 and 2 workers, PIL transforms, fp32.

Both train the same model with the same batch size, AdamW and cross-entropy. Theirs: torchvision's horizontal flip,
rotation within 10 degrees, to tensor, normalize. Ours: flip, rotation within 10 degrees, normalize, as a recipe has them,
with averaging of the weights and book-keeping on. Also ours with exact flips and quarter turns in place of the rotation.

    python benchmarks/epoch.py --data SOURCE
"""

from __future__ import annotations

import statistics
import time

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset

from common import arguments, in_turn, load, make_trainer, print_machine, print_table, ratio
from petriscope.core.recipe import Part, Recipe, load_recipe
from petriscope.data.imageset import ImageSet
from petriscope.data.normalization import mean_and_std
from petriscope.models import build_model
from petriscope.models.backbones import import_timm

ROTATE = (Part(name="flip"), Part(name="rotate", degrees=10))
EXACT = (Part(name="flip", horizontal=0.5, vertical=0.5), Part(name="quarter-turn"))


class Images(Dataset):
    """One image at a time through PIL, as most projects do it."""

    def __init__(self, images: ImageSet) -> None:
        from torchvision import transforms

        mean, std = mean_and_std(images)
        self.images, self.targets = images.images, images.targets
        self.transform = transforms.Compose(
            [
                transforms.RandomHorizontalFlip(),
                transforms.RandomRotation(10),
                transforms.ToTensor(),
                transforms.Normalize(mean, std),
            ]
        )

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.transform(Image.fromarray(np.squeeze(self.images[index]))), int(self.targets[index])


def usual(model: nn.Module, images: ImageSet, workers: int):
    loader = DataLoader(
        Images(images), 128, shuffle=True, num_workers=workers, drop_last=True, persistent_workers=workers > 0
    )
    optimizer, criterion = torch.optim.AdamW(model.parameters(), lr=1e-3), nn.CrossEntropyLoss()

    def epoch() -> float:
        start = time.perf_counter()
        total = 0.0
        for batch, targets in loader:
            optimizer.zero_grad()
            loss = criterion(model(batch), targets)
            loss.backward()
            optimizer.step()
            total += loss.item()
        return time.perf_counter() - start

    return epoch


def ours(recipe: Recipe, dataset):
    trainer = make_trainer(recipe, dataset)
    trainer.model.train()

    def epoch() -> float:
        start = time.perf_counter()
        sums = torch.zeros(4, dtype=torch.float64)
        for images, targets in trainer.train.iterate(trainer.epoch_batches(0)):
            sums += trainer.train_step(images, targets)
        return time.perf_counter() - start

    return epoch, trainer.format


def main() -> None:
    import_timm()  # before torchvision, which may need its help
    args = arguments(__doc__, rounds=3, models="simple-cnn,resnet18", images=0)
    dataset = load(args.data)
    if args.images:
        train = dataset.split("train")
        object.__setattr__(dataset, "train", train.subset(np.arange(min(args.images, len(train)))))
    train = dataset.split("train")
    print_machine()
    print(f"{len(train):,} images of {'x'.join(map(str, train.shape))}, batches of 128")
    rows = []
    for name in args.models.split(","):
        part = Part(name=name, norm="batch") if name == "simple-cnn" else Part(name=name)
        recipe = load_recipe("blood/fast").model_copy(update={"model": part, "augment": ROTATE})
        theirs = [usual(build_model(part, len(train.classes), train.shape), train, workers) for workers in (0, 2)]
        rotating, number_format = ours(recipe, dataset)
        exact, _ = ours(recipe.model_copy(update={"augment": EXACT}), dataset)
        fp32 = recipe.model_copy(update={"training": recipe.training.model_copy(update={"precision": "fp32"})})
        plain, _ = ours(fp32, dataset)
        times = in_turn([*theirs, plain, rotating, exact], args.rounds)
        labels = (
            "usual loop, 0 workers, fp32",
            "usual loop, 2 workers, fp32",
            "petriscope, the same augmentation, fp32",
            f"petriscope, the same augmentation, {number_format}",
            f"petriscope, exact flips and quarter turns, {number_format}",
        )
        for label, taken in zip(labels, times, strict=True):
            rows.append(
                (name, label, f"{statistics.median(taken):.2f} s", ratio(taken, times[0]), ratio(taken, times[1]))
            )
    print_table(("model", "loop", "an epoch", "times faster than 0 workers", "than 2 workers"), rows)


if __name__ == "__main__":
    main()
