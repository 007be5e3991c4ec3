"""Write docs/augmentations.md and its images: every augmentation of the registry, on the same eight cells.

    python docs/make_augmentations.py

The cells are drawn by Petriscope itself (the data set `synthetic-smear`), so nothing is downloaded.
"""

from __future__ import annotations

import inspect
import re
from importlib import import_module
from itertools import groupby
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import numpy as np
import torch
from PIL import Image

from petriscope.augment import AUGMENTATIONS
from petriscope.augment.pipeline import Pipeline, to_whole
from petriscope.core.recipe import Part
from petriscope.data.sources.synthetic_smear import CLASSES, draw_smear

DOCS = Path(__file__).parent
SIDE, GAP, COLORS = 64, 4, 96

# Options of a strip that differ from the defaults, besides p: 1.
DRAWN_WITH: dict[str, dict[str, Any]] = {
    "mixup": {"alpha": 1},
    "copy-paste": {"classes": (1,)},
    "crop-around": {"classes": (1,)},
}
DARK = 110  # a pixel with less green is taken as part of a nucleus

OPENING = f"""# Augmentations

What a recipe can list under `augment`, each shown on the same eight cells with default options, except that every image
is augmented (`p: 1`) and that `mixup` has `alpha: 1`. `python docs/make_augmentations.py` writes this page from the code.

![The eight cells](images/augment-none.png)

{", ".join(CLASSES).capitalize()}.

Each image of a batch has its own random draw, and a seed gives the same draws on every machine. The geometric operations of
a recipe are multiplied into one map per image. Images whose map is exact (mirroring, quarter turns, shifts by whole pixels)
are moved by index and keep their values; the others are resampled once. The color operations become one map per image too.
Stain, noise, blur, spectrum, tone and occlusion follow in the order of the recipe, and mixing comes last. Images are
mirrored at their border. Masks move with their images, and pixels from outside the image are unlabeled in them. `mixup` and
`aug-mix` do not support masks; `copy-paste` and `crop-around` need them. In their strips below, the mask is the nucleus of
the first cell, which is pasted, and the nucleus of each cell, around which it is cropped.

Some operations of other libraries are combinations here: random crop with padding is `translate`; shift-scale-rotate is
`translate` with `whole_pixels: false`, `scale` and `rotate`, which are still resampled once.

```yaml
augment:
  - flip
  - {{name: rand-augment, operations: 2, magnitude: 9}}
  - {{name: grid-mask, ratio: 0.6, p: 0.5}}
  - {{name: cutmix, p: 0.5}}
```
"""


def main() -> None:
    (DOCS / "images").mkdir(exist_ok=True)
    (DOCS / "augmentations.md").write_text(page(), encoding="utf-8")
    cells, labels = eight_cells()
    save(cells, "none")
    for name in AUGMENTATIONS.members:
        save(augmented(name, cells, labels), name)


def page() -> str:
    """The text, from the registry and the docstrings."""
    lines = [OPENING]
    for module, names in groupby(AUGMENTATIONS.members, key=lambda name: AUGMENTATIONS.members[name].partition(":")[0]):
        heading = module.rpartition(".")[2].replace("_", " ").capitalize()
        lines += [f"## {heading}\n", f"{paragraph(import_module(module).__doc__)}\n"]
        for name in names:
            lines += section(name)
    return "\n".join(lines)


def section(name: str) -> list[str]:
    summary, meanings = parsed(inspect.getdoc(AUGMENTATIONS.find(name)) or "")
    lines = [f"### {name}\n", f"{summary}\n", f"![{name}](images/augment-{name}.png)\n"]
    lines += ["| option | values | default | |", "|---|---|---|---|"]
    for key, (annotation, default) in AUGMENTATIONS.options(name).items():
        meaning = meanings.get(key) or ("share of the images that are augmented" if key == "p" else "")
        lines.append(f"| `{key}` | {values(annotation)} | {shown(default)} | {meaning} |")
    return [*lines, ""]


def parsed(doc: str) -> tuple[str, dict[str, str]]:
    """The summary of a docstring, and its description of each option."""
    summary, _, arguments = doc.partition("\nArgs:\n")
    meanings: dict[str, str] = {}
    for entry in re.split(r"\n(?=    \w)", "\n" + arguments):
        key, colon, text = entry.strip().partition(": ")
        if colon:
            meanings[key] = paragraph(text).removesuffix(".")
    return paragraph(re.sub(r"arXiv:(\d+\.\d+)", r"[arXiv:\1](https://arxiv.org/abs/\1)", summary)), meanings


def paragraph(text: str | None) -> str:
    return re.sub(r"\s+", " ", (text or "").replace("``", "`")).strip()


def values(annotation: Any) -> str:
    """An annotation for people: ``0 to 1``, ``mean, noise or zero``."""
    if get_origin(annotation) is Literal:
        *first, last = get_args(annotation)
        return f"{', '.join(map(str, first))} or {last}"
    if get_origin(annotation) is tuple and get_args(annotation)[1] is ...:
        return f"a list, each {values(get_args(annotation)[0])}"
    if get_origin(annotation) is tuple:
        return f"two, each {values(get_args(annotation)[0])}"
    if get_origin(annotation) is not Annotated:
        return {bool: "true or false", float: "a number", int: "a whole number", str: "name"}[annotation]
    inner, *notes = get_args(annotation)
    bounds = {}
    for note in notes:
        for bound in getattr(note, "metadata", []):
            bounds |= {key: getattr(bound, key) for key in ("ge", "gt", "le", "lt") if hasattr(bound, key)}
    if not bounds:
        return values(inner)
    whole = "whole, " if inner is int else ""
    if "ge" in bounds:
        return f"{whole}{bounds['ge']:g} to {bounds['le']:g}" if "le" in bounds else f"{whole}from {bounds['ge']:g}"
    return f"{whole}above {bounds['gt']:g}" + (f", to {bounds['le']:g}" if "le" in bounds else "")


def shown(default: Any) -> str:
    if default is ...:
        return "to be given"
    if isinstance(default, tuple):
        return "[" + ", ".join(f"{value:g}" for value in default) + "]"
    if isinstance(default, bool):
        return str(default).lower()
    return f"{default:g}" if isinstance(default, float) else str(default)


def eight_cells() -> tuple[torch.Tensor, torch.Tensor]:
    """One cell per class, in the order of the classes: uint8 [8, H, W, 3] and labels [8]."""
    images, labels = draw_smear(len(CLASSES), SIDE)
    order = np.argsort(labels)
    return torch.from_numpy(images[order]), torch.from_numpy(labels[order])


def augmented(name: str, cells: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    always = {"p": 1} if "p" in AUGMENTATIONS.options(name) else {}
    dense = not getattr(AUGMENTATIONS.find(name), "for_labels", True)
    parts = [Part(name=name, **always, **DRAWN_WITH.get(name, {}))]
    targets = nuclei(cells, 1 if name == "copy-paste" else len(cells)) if dense else labels
    pipeline = Pipeline.from_recipe(parts, len(CLASSES), dense=dense)
    out, _ = pipeline(cells, targets, torch.Generator().manual_seed(2))
    return to_whole(out, torch.uint8)


def nuclei(cells: torch.Tensor, of: int) -> torch.Tensor:
    """Masks: 1 where the first ``of`` cells have their nucleus, else 0, uint8 [8, H, W]."""
    masks = (cells[..., 1] < DARK).to(torch.uint8)
    masks[of:] = 0
    return masks


def save(images: torch.Tensor, name: str) -> None:
    """Side by side in one PNG of few colors."""
    strip = np.full((SIDE, len(images) * (SIDE + GAP) - GAP, 3), 255, dtype=np.uint8)
    for place, pixels in enumerate(images.numpy()):
        strip[:, place * (SIDE + GAP) : place * (SIDE + GAP) + SIDE] = pixels
    image = Image.fromarray(strip).quantize(COLORS, dither=Image.Dither.NONE)
    image.save(DOCS / "images" / f"augment-{name}.png", optimize=True)


if __name__ == "__main__":
    main()
