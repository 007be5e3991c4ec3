"""What augmentation costs: a full policy within a training step, and our batched operations against kornia's and
torchvision's.

The step: RandAugment, GridMask and CutMix, with all else that `petriscope train` does, for resnet18 in batches of 128;
against forward, loss, backward and optimizer on one normalized batch that is already there.

The operations: from uint8 images to floats of 0 to 1, 128 at once. kornia draws for each image of a batch as we do,
except that its RandAugment draws the operations once a batch. torchvision draws once a call, so it is called for each
image, as a data set's transform would be; its CutMix draws one rectangle a batch, which is less work.

Each augmentation by itself: every one that labels allow, on all images, the rest of its options as they are.

    python benchmarks/augment.py [--data SOURCE] [--threads 2] [--only step,others,each]

kornia is compared where it is installed: `pip install --no-deps kornia kornia_rs` (its dependencies would move torch).
"""

from __future__ import annotations

import argparse
import statistics
import time
import warnings
from collections.abc import Callable
from importlib.util import find_spec

import torch
from torch import Tensor

from common import arguments, in_turn, load, make_trainer, print_machine, print_table, ratio
from petriscope.augment import AUGMENTATIONS
from petriscope.augment.pipeline import Pipeline
from petriscope.core.device import autocast
from petriscope.core.recipe import Part, load_recipe
from petriscope.models.backbones import import_timm

BATCH, CLASSES = 128, 8
POLICY = (Part(name="rand-augment"), Part(name="grid-mask"), Part(name="cutmix"))
OURS = {
    "flip, rotate, jitter, erase": (
        Part(name="flip"),
        Part(name="rotate", degrees=10),
        Part(name="brightness", amount=0.2),
        Part(name="contrast", amount=0.2),
        Part(name="saturation", amount=0.2),
        Part(name="hue", amount=0.05),
        Part(name="random-erasing", fill="zero"),
    ),
    "RandAugment": (Part(name="rand-augment"),),
    "CutMix": (Part(name="cutmix", p=1.0),),
}
# Called with uint8 [B, C, H, W] and labels [B].
Operations = dict[str, Callable[[Tensor, Tensor], object]]


def main() -> None:
    args = arguments(__doc__, threads=torch.get_num_threads(), steps=4, rounds=9, only="step,others,each")
    torch.set_num_threads(args.threads)
    print_machine()
    for name, part in {"step": within_a_step, "others": against_others, "each": each_by_itself}.items():
        if name in args.only.split(","):
            part(args)


def within_a_step(args: argparse.Namespace) -> None:
    dataset = load(args.data)
    recipe = load_recipe("blood/fast").model_copy(update={"model": Part(name="resnet18")})
    bare = make_trainer(recipe, dataset)
    full = make_trainer(recipe.model_copy(update={"augment": POLICY}), dataset)
    order = full.epoch_batches(0)[: args.steps]
    batch, targets = full.train.take(order[0])
    images = full.normalize(batch)
    generator = torch.Generator().manual_seed(0)

    def whole() -> None:
        for taken in full.train.iterate(order):
            full.train_step(*taken)

    def plain() -> None:
        for _ in order:
            with autocast(bare.device, bare.format):
                logits = bare.model(images)
            bare.loss(logits.float(), targets).backward()
            bare.optimizer.step()
            bare.optimizer.zero_grad(set_to_none=True)

    def alone() -> None:
        for _ in order:
            full.normalize(full.augment(batch, targets, generator)[0])

    full.model.train()
    bare.model.train()
    times = in_turn([timed(whole), timed(plain), timed(alone)], args.rounds)
    whole_ms, bare_ms, alone_ms = (f"{1000 * statistics.median(t) / len(order):.1f} ms" for t in times)
    height, width, _ = dataset.shape
    print(f"\nRandAugment + GridMask + CutMix, resnet18, {len(images)} images of {height}x{width}, {full.format}\n")
    print_table(
        ("bare step", "whole step", "augmentation alone", "whole / bare image rate (range)"),
        [(bare_ms, whole_ms, alone_ms, ratio(times[0], times[1]))],
    )


def against_others(args: argparse.Namespace) -> None:
    import_timm()  # before torchvision: see there
    others = {"kornia": kornia_operations(), "torchvision": torchvision_operations()}
    rows = []
    for side in (28, 96):
        images = torch.randint(0, 256, (BATCH, side, side, 3), dtype=torch.uint8)
        planes = images.permute(0, 3, 1, 2).contiguous()
        labels = torch.arange(BATCH) % CLASSES
        for task, parts in OURS.items():
            pipeline, generator = Pipeline.from_recipe(parts, CLASSES), torch.Generator().manual_seed(0)
            there = [name for name, operations in others.items() if task in operations]
            actions = [timed(lambda p=pipeline, g=generator, x=images, y=labels: p(x, y, g))]
            actions += [timed(lambda f=others[name][task], x=planes, y=labels: f(x, y)) for name in there]
            ours, *theirs = in_turn(actions, args.rounds)
            cells = dict.fromkeys(others, ("not installed", ""))
            for name, times in zip(there, theirs, strict=True):
                cells[name] = (rate(times), ratio(ours, times))
            rows.append((task, f"{side}x{side}", rate(ours), *cells["kornia"], *cells["torchvision"]))
    print(f"\nImages a second, batches of {BATCH}\n")
    header = ("operations", "size", "petriscope", "kornia", "ours / kornia", "torchvision v2", "ours / torchvision")
    print_table(header, rows)


def each_by_itself(args: argparse.Namespace) -> None:
    images = torch.randint(0, 256, (BATCH, 96, 96, 3), dtype=torch.uint8)
    labels = torch.arange(BATCH) % CLASSES
    names = [name for name in AUGMENTATIONS.members if getattr(AUGMENTATIONS.find(name), "for_labels", True)]
    actions = []
    for name in names:
        always = {"p": 1} if "p" in AUGMENTATIONS.options(name) else {}
        pipeline, generator = (
            Pipeline.from_recipe([Part(name=name, **always)], CLASSES),
            torch.Generator().manual_seed(0),
        )
        actions.append(timed(lambda p=pipeline, g=generator: p(images, labels, g)))
    rows = [
        (name, f"{1000 * statistics.median(times):.0f} ms")
        for name, times in zip(names, in_turn(actions, args.rounds), strict=True)
    ]
    print(f"\n{BATCH} images of 96x96, in a pipeline of its own\n")
    print_table(("augmentation", "time"), rows)


def timed(action: Callable[[], object]) -> Callable[[], float]:
    """The action, giving the seconds it took."""

    def run() -> float:
        start = time.perf_counter()
        action()
        return time.perf_counter() - start

    return run


def rate(times: list[float]) -> str:
    return f"{BATCH / statistics.median(times):,.0f}"


def kornia_operations() -> Operations:
    if find_spec("kornia") is None:
        return {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import kornia.augmentation as K
        from kornia.augmentation.auto import RandAugment

    usual = torch.nn.Sequential(
        K.RandomHorizontalFlip(p=0.5),
        K.RandomRotation(10.0, p=1.0),
        K.ColorJitter(0.2, 0.2, 0.2, 0.05, p=1.0),
        K.RandomErasing(scale=(0.02, 0.4), p=0.5),
    )
    policy, mix = RandAugment(n=2, m=9), K.RandomCutMixV2(p=1.0, use_correct_lambda=True)
    return {
        "flip, rotate, jitter, erase": lambda images, labels: usual(images.float() / 255),
        "RandAugment": lambda images, labels: policy(images.float() / 255),
        "CutMix": lambda images, labels: mix(images.float() / 255, labels),
    }


def torchvision_operations() -> Operations:
    from torchvision.transforms import v2

    usual = v2.Compose(
        [
            v2.RandomHorizontalFlip(),
            v2.RandomRotation(10, interpolation=v2.InterpolationMode.BILINEAR),
            v2.ColorJitter(0.2, 0.2, 0.2, 0.05),
            v2.RandomErasing(scale=(0.02, 0.4)),
        ]
    )
    policy = v2.RandAugment(2, 9, interpolation=v2.InterpolationMode.BILINEAR)
    mix = v2.CutMix(num_classes=CLASSES)
    return {
        "flip, rotate, jitter, erase": lambda images, labels: torch.stack([usual(x) for x in images]).float() / 255,
        "RandAugment": lambda images, labels: torch.stack([policy(x) for x in images]).float() / 255,
        "CutMix": lambda images, labels: mix(images.float() / 255, labels),
    }


if __name__ == "__main__":
    main()
