"""A run on corruptions that the stress test does not have, made by torchvision where it has them: another magnification,
elastic and perspective distortion, other dyes, gray, uneven light, other noise, sharpening. Shown are the balanced accuracy,
the share of images answered with at most 1 % errors allowed, and the share of wrong answers among them. With ``--together``
there are two and three at once as well, drawn for each image. ``--without`` leaves out corruptions that the run was trained on.

    python benchmarks/beyond.py RUN --images 400
    python benchmarks/beyond.py RUN --images 400 --together --without equalized "3 bits"
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from common import corruption_arguments, corruption_parser, percent, print_table
from petriscope.core.progress import Progress, progress
from petriscope.core.results import GuaranteeShares
from petriscope.data import ImageSet
from petriscope.experiments.evaluate import watch_guarantees
from petriscope.metrics.passes import Share, judge_labels
from petriscope.models.backbones import import_timm
from petriscope.report import wording
from petriscope.trust.guarantees import Watch

import_timm()  # repairs the import of torchvision beside a torch for CPUs
from torchvision.transforms import v2  # noqa: E402
from torchvision.transforms.v2 import functional as F  # noqa: E402

BATCH = 128
Change = Callable[[Tensor], Tensor]
Numbered = Callable[[Tensor, np.ndarray], Tensor]  # also takes the places of the images in their set


def main() -> None:
    parser = corruption_parser(__doc__)
    parser.add_argument("--together", action="store_true", help="two and three at once, besides")
    parser.add_argument("--without", nargs="+", default=[], choices=list(CHANGES)[1:], metavar="CORRUPTION")
    predictor, images, args = corruption_arguments(parser)
    changes = {name: each_image(change) for name, change in CHANGES.items() if name not in args.without}
    if args.together:
        changes |= {f"{count} at once": at_once(count, list(changes)[1:]) for count in (2, 3)}
    watch = watch_guarantees(predictor, args.tta)
    if watch is None:
        raise SystemExit(f"nothing was fitted on val for tta {args.tta}; run petriscope calibrate RUN --tta {args.tta}")
    with progress("corrupted images", len(changes) * len(images)) as bar:
        hits = np.stack([right(images, name, changes[name], watch, bar) for name in changes])
    judged = judge_labels(hits, images.targets, len(images.classes), 1000)
    alone = [name for name in changes if name in CHANGES][1:]
    found = watch.metrics("none", alone, len(images), 1000)
    each = {"none": found.clean, **found.corruptions}
    rows = [row(name, judged.mean([i]), each[name]) for i, name in enumerate(changes)]
    rows.insert(1 + len(alone), row("mean of the others", judged.mean(range(1, 1 + len(alone))), found.disturbed))
    print(f"{args.split}, {len(images):,} images, tta {args.tta}")
    print_table(("corruption", "balanced accuracy", "answered at 1 % allowed errors", "wrong among them"), rows)


def right(images: ImageSet, name: str, change: Numbered, watch: Watch, bar: Progress) -> np.ndarray:
    """Which images are classified correctly under a corruption, bool [N]."""
    torch.manual_seed(0)
    found = []
    for start in range(0, len(images), BATCH):
        rows = np.arange(start, min(start + BATCH, len(images)))
        batch = torch.from_numpy(images.take(rows)).permute(0, 3, 1, 2).contiguous()
        corrupted = change(batch, rows).permute(0, 2, 3, 1).contiguous().numpy()
        found.append(watch.predict(corrupted).argmax(1) == images.targets[rows])
        watch.keep(name, watch.judge(images.targets[rows]))
        bar.advance(len(rows), name)
    return np.concatenate(found)


def each_image(change: Change) -> Numbered:
    return lambda images, places: change(images)


def at_once(count: int, names: Sequence[str]) -> Numbered:
    """So many different changes one after another, drawn for each image by its place in the set."""

    def changed(images: Tensor, places: np.ndarray) -> Tensor:
        drawn = [np.random.default_rng([count, place]).permutation(len(names))[:count] for place in places]
        images = images.clone()
        for step in np.array(drawn).T:
            for which in np.unique(step):
                rows = torch.from_numpy(np.flatnonzero(step == which))
                images[rows] = CHANGES[names[which]](images[rows])
        return images

    return changed


def row(name: str, accuracy: Share, found: GuaranteeShares) -> tuple[str, ...]:
    answered, wrong = (wording.percent(found.value(key), 1) for key in ("answered", "wrong"))
    return name, percent(accuracy), answered, wrong


def moved(change: Change) -> Change:
    """Apply a change with mirrored borders, so that no empty corners come into the image."""

    def on_mirrored(images: Tensor) -> Tensor:
        height, width = images.shape[2:]
        edge = [width // 2, height // 2]
        return F.center_crop(change(F.pad(images, edge, padding_mode="reflect")), [height, width])

    return on_mirrored


def affine(scale: float = 1.0, shear: float = 0.0) -> Change:
    bilinear = v2.InterpolationMode.BILINEAR
    return moved(lambda images: F.affine(images, 0, [0, 0], scale, [shear, 0], interpolation=bilinear))


def random(transform: Callable[[Tensor], Tensor]) -> Change:
    """Apply a random transform with one draw per image."""
    return lambda images: torch.stack([transform(image) for image in images])


def dyes(*strength: float) -> Change:
    """Multiply the optical density of each channel."""
    return lambda images: to_bytes(255 * (images.float() / 255) ** torch.tensor(strength).view(1, 3, 1, 1))


def uneven(amount: float, radial: bool) -> Change:
    """Light that falls off towards the corners, or from one side to the other."""

    def lit(images: Tensor) -> Tensor:
        y, x = torch.meshgrid(*(torch.linspace(-1, 1, side) for side in images.shape[2:]), indexing="ij")
        return to_bytes(images.float() * (1 - amount * ((x**2 + y**2) / 2 if radial else x)))

    return lit


def salt_and_pepper(share: float) -> Change:
    def strewn(images: Tensor) -> Tensor:
        draws = torch.rand(len(images), 1, *images.shape[2:])
        return torch.where(draws < share / 2, 0, torch.where(draws > 1 - share / 2, 255, images)).to(torch.uint8)

    return strewn


def shot_noise(photons: float) -> Change:
    return lambda images: to_bytes(torch.poisson(images.float() / 255 * photons) / photons * 255)


def fog(amount: float) -> Change:
    return lambda images: to_bytes((1 - amount) * images.float() + amount * 230)


def to_bytes(images: Tensor) -> Tensor:
    return images.clamp(0, 255).round().to(torch.uint8)


CHANGES: dict[str, Change] = {
    "none": lambda images: images,
    "magnified 0.7": affine(scale=0.7),
    "magnified 0.85": affine(scale=0.85),
    "magnified 1.15": affine(scale=1.15),
    "magnified 1.4": affine(scale=1.4),
    "sheared by 15 degrees": affine(shear=15),
    "bent": moved(random(v2.ElasticTransform(alpha=60.0, sigma=5.0))),
    "slanted": moved(random(v2.RandomPerspective(0.3, p=1.0))),
    "dyes at half": dyes(0.5, 0.5, 0.5),
    "dyes doubled": dyes(2, 2, 2),
    "redder dye": dyes(0.6, 1.2, 1.0),
    "bluer dye": dyes(1.4, 1.0, 0.6),
    "hue turned by 18 degrees": lambda images: F.adjust_hue(images, 0.05),
    "hue turned by -18 degrees": lambda images: F.adjust_hue(images, -0.05),
    "hue turned by 36 degrees": lambda images: F.adjust_hue(images, 0.1),
    "hue turned by -36 degrees": lambda images: F.adjust_hue(images, -0.1),
    "gray": lambda images: F.rgb_to_grayscale(images, 3),
    "corners dark": uneven(0.5, radial=True),
    "one side dark": uneven(0.4, radial=False),
    "fog": fog(0.4),
    "salt and pepper 3 %": salt_and_pepper(0.03),
    "photon noise": shot_noise(25),
    "3 bits": lambda images: F.posterize(images, 3),
    "sharpened": lambda images: F.adjust_sharpness(images, 5.0),
    "equalized": F.equalize,
}


if __name__ == "__main__":
    main()
