"""Write docs/stress.md and its images: what every corruption of the stress test does to one drawn cell.

python docs/make_stress.py
"""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from petriscope.augment.corruptions import CORRUPTIONS, SEVERITIES, Corruption, corrupt
from petriscope.data.sources.synthetic_smear import draw_smear
from petriscope.report.robustness import KINDS
from petriscope.trust.robustness import FEWEST, IMAGES

DOCS = Path(__file__).parent
SIDE, GAP, COLORS = 72, 3, 64

OPENING = f"""# The stress test

A test split holds images from the same microscope as those trained on. The next one may be out of focus, lit otherwise,
stained otherwise, compressed, dirty. The stress test disturbs images in {len(CORRUPTIONS)} ways at five severities
and tells what is still recognized.

    petriscope evaluate RUN --stress                        on test, {IMAGES} images in the classes' proportions
    petriscope evaluate RUN --stress --stress-images 50   fewer
    petriscope evaluate RUN --split val --stress --json     metrics for scripts, under `stress`

Training ends with one on val, kept short (`evaluation: {{stress: auto}}`: 200 images, and as few as {FEWEST} where 20 s or a
tenth of the training's time are not enough; `val`: {IMAGES} however long it takes; `off`: none). A report has a table of all
metrics and one image under all corruptions.

## The metrics

All are balanced accuracies, with 95 % intervals from one bootstrap over the images for all of them. [Masks](#masks) have mean
IoU in its place.

- **clean**: of the same images, undisturbed.
- **mean**: over the five severities of the eleven corruptions that MedMNIST-C names for blood cells (ten for gray
  images, which saturation does not change). `mean_all`: over all corruptions.
- **drop**: clean less mean. **relative drop**: that, as a share of clean. MedMNIST-C and ImageNet-C divide errors by those
  of a reference network instead; these metrics need none, and cannot be compared with theirs.
- **worst**: the corruption with the lowest mean over severities.
- **seen** and **unseen**: the means over corruptions that the recipe trains against, and over the others. Seen are those that
  `corruption-mix` draws, and those that another augmentation is much like (`brightness`, `rotate`, `cutout`, ...).
- **promises**: of what val [vouches for](trust.md), with the images as they are and over the same corruptions as the mean: the
  share that is answered when at most 1 % errors are asked for, the share of wrong answers, and how often 95 % sets hold the true
  class. A promise made on val is about images like val's; here is what it comes to on others.

Images are disturbed by a function of the seed, the corruption and the image's place in its split: the same bits whatever
the batches, so two runs are tested on the same disturbed images. Without `--tta` there is no test-time augmentation.

## Masks

A model of masks is tested by the same commands. The metric is mean IoU, from one confusion matrix over all images, without
pixels that are unlabeled and without a class called background; beside it stands the accuracy of labeled pixels. In JSON,
`miou` and `pixel_accuracy` stand where `balanced_accuracy` and `accuracy` do, and `scenes` says how many groups of images
(or images, where there are no groups) the bootstrap draws.

Rotation and translation move the mask with the image. What they bring in at the border is unlabeled, so nothing is lost by
the move itself; only the outlines, which are interpolated in the image and not in the mask, cost a little. Under all else,
dirt included, the mask stays: what is covered still counts. Images are chosen in the proportions of their rarest classes.

## Training against it

`corruption-mix` ([augmentations](augmentations.md#corruption-mix)) draws corruptions at any severity. What is named under
`held_out` is never drawn, and shows what the network does with a disturbance nobody thought of. `blood/robust` and
`blood96/robust` train so.

Withstanding these 16 is not withstanding everything. A network that met all of them but three was right on 55 to 87 % of cells in
six of eight other dyes and hues, until it was trained with `stain-jitter`, more `hue` and `scale`, and `sharpness` too.
[`benchmarks/beyond.py`](../benchmarks/beyond.py) tests a run under 24 disturbances that are not here
([results](results.md#under-disturbances)).

## The corruptions

Each on one drawn cell of {SIDE} pixels, at severities 0 to 5. Those marked • are the eleven of MedMNIST-C (Di Salvo, Doerrich
and Ledig, 2024, [arXiv:2406.17536](https://arxiv.org/abs/2406.17536)), by name; how they are drawn, and all levels, are
Petriscope's own ([beside MedMNIST-C's](#beside-medmnist-cs-own-levels)). Lengths are in shorter sides of the image, so a
severity means the same at 28 and at 224 pixels; only JPEG has blocks of 8 pixels whatever the side, and does more harm to small
images. Written by `python docs/make_stress.py` from the code.
"""

# Of version 0.1.0, for blood cells: what it does, its five levels as it writes them, and in the unit used here, if it has one.
MEDMNIST_C = {
    "pixelate": (
        "down to a share of the side, and back",
        "0.6, 0.5, 0.4, 0.3, 0.25",
        "0.007, 0.009, 0.011, 0.015, 0.018",
    ),
    "jpeg": ("the same", "50, 30, 15, 10, 7", "the same"),
    "defocus-blur": ("a disc with a soft edge, radius in pixels", "2, 3, 4, 5, 6", "0.009, 0.013, 0.018, 0.022, 0.027"),
    "motion-blur": (
        "to one side, fading as a Gaussian; radius and its deviation in pixels, at -45 to 45 degrees",
        "(3, 3), (5, 5), (10, 5), (10, 7), (10, 9)",
        "up to 0.013, 0.022, 0.045, 0.045, 0.045",
    ),
    "brightness-up": ("the same", "1.1, 1.2, 1.3, 1.35, 1.4", "the same"),
    "brightness-down": ("the same", "0.9, 0.8, 0.7, 0.6, 0.5", "the same"),
    "contrast-up": ("the same", "1.1, 1.15, 1.2, 1.25, 1.3", "the same"),
    "contrast-down": ("the same", "0.9, 0.8, 0.7, 0.6, 0.5", "the same"),
    "saturation": (
        "adds to the saturation of HSV, which colors what is nearly gray",
        "0.05, 0.1, 0.15, 0.17, 0.2",
        "",
    ),
    "stain-deposit": ("black marks from a set of drawn ones, up to so many", "1, 2, 3, 3, 3", ""),
    "bubble": (
        "seven or more discs of half-transparent white: largest radius in pixels, most discs",
        "(5, 10), (7, 10), (10, 10), (12, 12), (15, 12)",
        "0.022, 0.031, 0.045, 0.054, 0.067",
    ),
}
BESIDE = """## Beside MedMNIST-C's own levels

MedMNIST-C's own code (version 0.1.0 of its package) disturbs images of 224 pixels. Its levels are milder than those here,
all but JPEG's quality. [`benchmarks/medmnist_c.py`](../benchmarks/medmnist_c.py) tests a run with its code in place of
Petriscope's.

| corruption | unit here | here | MedMNIST-C: what it does | its levels | in the unit here |
|---|---|---|---|---|---|"""


def main() -> None:
    (DOCS / "stress.md").write_text(page(), encoding="utf-8")
    cell = torch.from_numpy(draw_smear(1, SIDE, 4)[0])
    for name in CORRUPTIONS:
        strip = [corrupt(cell, name, severity, torch.tensor([0]))[0].numpy() for severity in (0, *SEVERITIES)]
        save(strip, DOCS / "images" / f"stress-{name}.png")


def page() -> str:
    """The text, from the table of corruptions and their docstrings."""
    lines = [OPENING]
    for kind, heading in KINDS.items():
        lines.append(f"### {heading}\n")
        for corruption in CORRUPTIONS.values():
            if corruption.kind == kind:
                lines += section(corruption)
    rows = [f"| {' | '.join((c.name, c.unit, levels(c), *MEDMNIST_C[c.name]))} |" for c in named()]
    return "\n".join([*lines, BESIDE, *rows, ""])


def named() -> list[Corruption]:
    """Those that MedMNIST-C names for blood cells."""
    return [corruption for corruption in CORRUPTIONS.values() if corruption.medmnist_c]


def levels(corruption: Corruption) -> str:
    return ", ".join(f"{level:g}" for level in corruption.levels)


def section(corruption: Corruption) -> list[str]:
    text = re.sub(r"\s+", " ", inspect.getdoc(corruption.carry_out) or "").replace("``", "`")
    mark = " •" if corruption.medmnist_c else ""
    return [
        f"**{corruption.name}**{mark}. {text} {corruption.unit.capitalize()}: {levels(corruption)}.\n",
        f"![{corruption.name}](images/stress-{corruption.name}.png)\n",
    ]


def save(images: list[np.ndarray], path: Path) -> None:
    """Side by side in one PNG of few colors."""
    strip = np.full((SIDE, len(images) * (SIDE + GAP) - GAP, 3), 255, dtype=np.uint8)
    for place, image in enumerate(images):
        strip[:, place * (SIDE + GAP) : place * (SIDE + GAP) + SIDE] = image
    Image.fromarray(strip).quantize(COLORS, dither=Image.Dither.NONE).save(path, optimize=True)


if __name__ == "__main__":
    main()
