"""The scale at which images from elsewhere are read for a model: as was asked for, or estimated, and what is said of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from petriscope.core.errors import RequestError
from petriscope.core.progress import progress, say
from petriscope.core.recipe import DataSection
from petriscope.core.results import ScaleEstimate, Scaling
from petriscope.core.scale import ESTIMATED, Scale, in_words, micrometers
from petriscope.data.domains import at_scale
from petriscope.data.imageset import ImageSet
from petriscope.data.in_memory import AnyFile
from petriscope.data.rescale import set_factors
from petriscope.inference.decoding import decoded
from petriscope.inference.fit import CHUNK, appearances
from petriscope.inference.likeness import OLDER
from petriscope.inference.predictor import Predictor
from petriscope.inference.sampling import sample_rows
from petriscope.trust.object_size import SIZE, class_weights, estimate_scale
from petriscope.trust.shift import appearance_of

MOST = 2000  # images that are measured


@dataclass(frozen=True)
class ChosenScale:
    """The scale of images from elsewhere.

    Args:
        scale: None: there is none.
        estimate: how it was estimated; None: it was not.
        asked: False: it is that of the recipe.
    """

    scale: Scale | None
    estimate: ScaleEstimate | None = None
    asked: bool = True


def choose_scale(
    predictor: Predictor, asked: Scale | None, sizes: Callable[[], np.ndarray], shares: np.ndarray | None = None
) -> ChosenScale:
    """The scale for images from elsewhere.

    Args:
        asked: as `petriscope.core.scale.asked_scale` has it; None: as the model reads images.
        sizes: measures the size of the object in each image as it is, float [N].
        shares: of the classes among these images, float64 [K]; None: as was said of them, see `Predictor.under`, else as in val.

    Raises:
        RequestError: it cannot be estimated, or does not fit the model.
    """
    if asked != ESTIMATED:
        own = predictor.recipe.data.scale
        if asked is not None:
            predictor.at_scale(asked)  # refused if it does not fit
        return ChosenScale(own if asked is None else asked, asked=asked is not None)
    predictor.at_scale(2)  # refused before anything is measured
    return estimated(predictor, sizes(), shares)


def estimated(predictor: Predictor, sizes: np.ndarray, shares: np.ndarray | None = None) -> ChosenScale:
    """The estimated scale of images by the sizes of their objects; see `choose_scale`."""
    likeness, reweighting = predictor.trust.likeness, predictor.trust.reweighting
    if likeness is None:
        raise RequestError(f"the scale cannot be estimated: {OLDER}")
    if shares is None and reweighting is not None:
        prior = reweighting.prior
        shares = prior.shares
        weights = (
            prior.occurs[likeness.target].astype(np.float64) if shares is None else class_weights(likeness, shares)
        )
    else:
        weights = None if shares is None else class_weights(likeness, shares)
    found = estimate_scale(likeness.traits.appearance[:, SIZE], sizes, weights)
    return ChosenScale(found.factor, found)


def sizes_in(images: ImageSet) -> np.ndarray:
    """The size of the object in some images of a set, float32 [N]."""
    return appearances(images.subset(sample_rows(len(images), MOST)))[:, SIZE]


def sizes_in_files(predictor: Predictor, paths: Sequence[AnyFile], quiet: bool) -> np.ndarray:
    """The size of the object in some image files, as they are, float32 [N]. Files that cannot be read are left out."""
    chosen = [paths[row] for row in sample_rows(len(paths), MOST)]
    found = [np.empty(0, np.float32)]
    with progress("measuring objects", len(chosen)) as bar:
        for block, images in decoded(predictor.at_scale(None), chosen, CHUNK, tell=False):
            good = [image.pixels for image in images if not isinstance(image, str)]
            found += [appearance_of(torch.from_numpy(np.stack(good)))[:, SIZE]] if good else []
            if not quiet:
                bar.advance(len(block))
    return np.concatenate(found)


def scale_set(data: DataSection, images: ImageSet, chosen: ChosenScale, quiet: bool) -> tuple[ImageSet, Scaling | None]:
    """Images of a source at a scale, which keep their digests; and a record of it, which is said.

    Args:
        data: has the field of view, and says where images are kept.
    """
    if (scale := chosen.scale) is None:
        return images, None
    field, notes = data.field_of_view, list[str]()
    factors = set_factors(images, scale, field)
    out = at_scale({"": {"": images}}, {"": scale}, field, data.memory, notes)[""][""]
    each = np.sqrt(factors.prod(1)) if len(factors) else np.ones(1)
    low, factor, high = (float(value) for value in np.quantile(each, (0, 0.5, 1)))
    for note in () if quiet else [sentence(chosen, factor), *notes]:
        say(f"note: {note}")
    return out, Scaling(scale=scale, factor=factor, smallest=low, largest=high, estimate=chosen.estimate)


def sentence(chosen: ChosenScale, factor: float | None = None) -> str:
    """How images are scaled, as a sentence without its end.

    Args:
        factor: for micrometers per pixel, how many times objects are enlarged; None: that is not known.
    """
    scale, found = chosen.scale, chosen.estimate
    assert scale is not None
    if micrometers(scale) is not None:
        then = "" if factor is None else f": objects are scaled {in_words(factor)}"
        words = f"images of {in_words(scale)} are brought to the model's field of view{then}"
    else:
        words = "objects are left as they are" if scale == 1 else f"objects are scaled {in_words(scale)}"
    if found is not None:
        words += (
            f", which was estimated: their median size is {found.known:.3g} of the shorter side in those to compare with "
            f"({found.known_n:,} images) and {found.here:.3g} here ({found.here_n:,})"
        )
    return words if chosen.asked else f"{words}, as this model reads images; a scale of 1 leaves them as they are"
