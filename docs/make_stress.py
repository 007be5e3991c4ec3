"""Write docs/stress.md and its images, which show every corruption of the stress test on one drawn cell.

python docs/make_stress.py
"""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from petriscope.augment import AUGMENTATIONS
from petriscope.augment.corruptions import CORRUPTIONS, SEVERITIES, Corruption, corrupt
from petriscope.augment.corruptions.together import STRONGEST
from petriscope.augment.families import FAMILIES, MEMBERS
from petriscope.data.sources.synthetic_smear import draw_smear
from petriscope.report.robustness import KINDS
from petriscope.trust.robustness import FEWEST, IMAGES, PARTS

DOCS = Path(__file__).parent
SIDE, GAP, COLORS = 72, 3, 64


def family_table() -> str:
    def listed(names: list[str]) -> str:
        return ", ".join(f"`{name}`" for name in names)

    rows = ["| family | corruptions | augmentations |", "|---|---|---|"]
    for family in FAMILIES:
        corruptions = [name for name in CORRUPTIONS if name in MEMBERS[family]]
        operations = [name for name in AUGMENTATIONS.members if name in MEMBERS[family]]
        rows.append(f"| {family} | {listed(corruptions)} | {listed(operations)} |")
    return "\n".join(rows)


OPENING = f"""# The stress test

The images of a test split come from the same microscope as the training images. The next microscope may be out of focus or
dirty, or have other lighting, staining or compression. The stress test corrupts images in {len(CORRUPTIONS)} ways at five
severities and measures how many are still classified correctly.

    petriscope evaluate RUN --stress                        # on test, {IMAGES} images in the proportions of the classes
    petriscope evaluate RUN --stress --stress-images 50     # fewer images
    petriscope evaluate RUN --split val --stress --json     # metrics for scripts, under the key stress

Training ends with a short stress test on val (`evaluation: {{stress: auto}}`: 200 images, or as few as {FEWEST} if the test would
take longer than 20 s and a tenth of the training time; `val`: {IMAGES} images, however long it takes; `off`: none).
The report has a table of all metrics, and one image under all corruptions.

## The metrics

All are balanced accuracies. Their 95 % intervals come from one bootstrap over the images. For [masks](#masks), mean IoU takes the
place of balanced accuracy.

- **clean**: the metric on the same images, not corrupted.
- **mean**: the mean over five severities of the eleven corruptions that MedMNIST-C has for blood cells (ten for gray
  images, which saturation does not change). `mean_all`: the mean over all corruptions.
- **drop**: clean minus mean. **relative drop**: the drop as a share of clean. MedMNIST-C and ImageNet-C divide errors by those
  of a reference network instead, so their metrics cannot be compared with these.
- **worst**: the corruption with the lowest mean over severities.
- **seen** and **unseen**: the means over the corruptions that the recipe trains with, and over the others. Seen are those that
  `corruption-mix` draws, and those that resemble another augmentation of the recipe (`brightness`, `rotate`, `cutout`, ...).
- **together**: two or three corruptions at once ({PARTS} passes of two and {PARTS} of three; `two_at_once`, `three_at_once`),
  drawn for each image from different [families](#families), at severities 1 to {STRONGEST}. They are applied in the order in
  which such disturbances arise: on the slide, in the light and the optics, on the sensor, in the file.
- **guarantees**: for the [guarantees fitted on val](trust.md), on the clean images, over the same corruptions as the mean, and
  under several at once (`together`): the
  share of images answered when at most 1 % errors are allowed, the share of wrong answers, and the coverage of 95 %
  prediction sets. A guarantee made on val holds for images like those of val; this shows how well it holds on others.

A corrupted image is a function of the seed, the corruption and the position of the image in its split. It does not depend on
batches, so two runs are tested on the same corrupted images. Without `--tta` there is no test-time augmentation.

## Masks

Segmentation models are tested by the same commands. The metric is mean IoU, from one confusion matrix over all images, without
unlabeled pixels and without a class called background. The accuracy of labeled pixels is shown too. In JSON,
`miou` and `pixel_accuracy` replace `balanced_accuracy` and `accuracy`, and `scenes` is the number of groups of images
(or of images, if there are no groups) that the bootstrap draws. For labels and masks,
`groups` is the number of groups, if there are any.

Rotation and translation move the mask with the image. Pixels that enter at the border are unlabeled, so the move itself
costs nothing; outlines, which are interpolated in the image but not in the mask, cost a little. All other corruptions, dirt
included, leave the mask as it is: covered pixels still count. Images are chosen in the proportions of their rarest classes.

## Training against it

`corruption-mix` ([augmentations](augmentations.md#corruption-mix)) draws corruptions at any severity. The corruptions listed
under `held_out` are never drawn, so they show how the network copes with corruptions it was not trained on. `blood/robust` and
`blood96/robust` train this way.

A model that is robust to these {len(CORRUPTIONS)} is not robust to everything. A network trained with all but three of them
had 55 to 87 % on cells in six of eight other dyes and hues, until it was also trained with `stain-jitter`, more `hue` and
`scale`, and `sharpness`. [`benchmarks/beyond.py`](../benchmarks/beyond.py) tests a run on 24 corruptions that are not in the
stress test ([results](results.md#under-corruptions)).

## Families

Every corruption, and every operation of augmentation, belongs to one family (`augment/families.py`):

{family_table()}

Operations that imitate no disturbance, such as `mixup`, belong to no family. A network that trains without a family, and is
measured on it, shows what to expect of disturbances that nobody thought of. Policies such as `corruption-mix` have the option
`left_out` for that, and the Python API offers all of it:

```python
from petriscope.augment.families import recipe_without
from petriscope.trust.left_out import left_out_test

run = petriscope.train(recipe_without(recipe, "blur"))
predictor = petriscope.load_model(run.model)
found = left_out_test(lambda images: predictor.probabilities(images, "none"), val, "blur")
print(found.metric("alone"), found.metric("together"))
```

**alone** is the mean over the corruptions of the family at five severities, **together** that of two or three at once, one of
the family and the others of other families. [`benchmarks/left_out.py`](../benchmarks/left_out.py) trains the variants of a suite
without each family, several at a time, continues where it was stopped, and prints what each variant keeps.

## The corruptions

Each is shown on one drawn cell of {SIDE} pixels, at severities 0 to 5. Those marked • are the eleven of MedMNIST-C (Di Salvo,
Doerrich and Ledig, 2024, [arXiv:2406.17536](https://arxiv.org/abs/2406.17536)), by name; their implementation and all levels are
Petriscope's own ([compared with MedMNIST-C](#beside-medmnist-cs-own-levels)). Lengths are in units of the shorter side of the
image, so a severity means the same at 28 and at 224 pixels. JPEG is the exception: its blocks always have 8 pixels, so it
harms small images more. This page is written from the code by `python docs/make_stress.py`.
"""

# MedMNIST-C 0.1.0, for blood cells: what it does, its five levels as it writes them, and the same in the unit used here.
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

The code of MedMNIST-C (version 0.1.0 of its package) corrupts images of 224 pixels. Its levels are milder than those here,
except for JPEG quality. [`benchmarks/medmnist_c.py`](../benchmarks/medmnist_c.py) tests a run with that code in place of
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
    """The text of the page, from the table of corruptions and their docstrings."""
    lines = [OPENING]
    for kind, heading in KINDS.items():
        lines.append(f"### {heading}\n")
        for corruption in CORRUPTIONS.values():
            if corruption.kind == kind:
                lines += section(corruption)
    rows = [f"| {' | '.join((c.name, c.unit, levels(c), *MEDMNIST_C[c.name]))} |" for c in named()]
    return "\n".join([*lines, BESIDE, *rows, ""])


def named() -> list[Corruption]:
    """The corruptions that MedMNIST-C has for blood cells."""
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
    """Save images side by side in one PNG with few colors."""
    strip = np.full((SIDE, len(images) * (SIDE + GAP) - GAP, 3), 255, dtype=np.uint8)
    for place, image in enumerate(images):
        strip[:, place * (SIDE + GAP) : place * (SIDE + GAP) + SIDE] = image
    Image.fromarray(strip).quantize(COLORS, dither=Image.Dither.NONE).save(path, optimize=True)


if __name__ == "__main__":
    main()
