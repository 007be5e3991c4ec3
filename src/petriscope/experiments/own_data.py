"""The data of a run, wherever they are now, and the images that its model has seen."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

import numpy as np

from petriscope.core.errors import DataError, MissingSource, RequestError
from petriscope.core.progress import say
from petriscope.core.recipe import DataSection
from petriscope.core.results import Scaling, SeenImages
from petriscope.core.scale import Scale
from petriscope.data import Dataset, ImageSet, load_dataset
from petriscope.data.aligned import lacks_color, load_aligned
from petriscope.data.index import repeats
from petriscope.data.load import recall_dataset
from petriscope.data.membership import UNKNOWN, Change, Exposure, Membership
from petriscope.inference.predictor import Predictor
from petriscope.inference.scaling import choose_scale, scale_set, sizes_in
from petriscope.run.folder import Run


@dataclass(frozen=True)
class OwnData:
    """The images of a run that are there, in the splits of the run.

    Args:
        dataset: without images that the run did not have.
        same: all images of the run are there, with their targets.
        change: how the source differs; None: the run has no record of its images.
    """

    dataset: Dataset
    same: bool
    change: Change | None = None

    @property
    def differences(self) -> str:
        """What has changed, as a sentence without its end; empty if nothing has."""
        return str(self.change or "") or ("" if self.same else "images, targets or splits differ")


def find_data(run: Run, source: str | None = None, option: str = "--data") -> OwnData:
    """Load the data of a run.

    Args:
        source: where they are now; None: where the recipe says.
        option: of the command that says where they are, for the message.

    Raises:
        RequestError: there is no such source.
        DataError: no image of the run is there.
    """
    return _find(run, source, run.membership, option)


def _find(run: Run, source: str | None, known: Membership | None, option: str = "--data") -> OwnData:
    section, about = run.recipe.data, run.environment.data
    if source is not None:
        scales = {each or 1.0 for each in section.scales.values()}
        section = section_elsewhere(section, source, about.shape)
        if section.sources is None and len(scales) > 1:
            raise RequestError(
                f"the domains of {run.folder} have different scales, so one source cannot stand for all; name those that have "
                f"moved: {option} DOMAIN=SOURCE,..."
            )
    try:
        if known is not None:
            dataset, change = recall_dataset(section, known, about.classes)
            return OwnData(dataset, dataset.fingerprint == about.fingerprint, change)
        dataset = load_dataset(section)
    except MissingSource as error:
        hint = (
            "" if source is not None else f"\nIf the data of {run.folder} have moved, name their place with {option}."
        )
        raise RequestError(f"{error}{hint}") from None
    return OwnData(dataset, dataset.fingerprint == about.fingerprint)


def section_elsewhere(section: DataSection, source: str, shape: tuple[int, int, int] | None) -> DataSection:
    """How images of another source are read, so that they have the shape (height, width, channels) of a model."""
    section = section.elsewhere(source)
    if shape is None:
        return section
    height, width, channels = shape
    named = isinstance(section.channels, tuple)
    section = section.with_channels_of_model(section.channels if named else "gray" if channels == 1 else "rgb")
    return section if section.tiles is not None else section.model_copy(update={"size": (height, width)})


def same_data(run: Run, source: str) -> Dataset | None:
    """The data of a run, if they are what a source holds: its images and targets, and no others. Else None."""
    known = run.membership  # where it is damaged, that is an error: nobody can tell then
    try:
        found = _find(run, source, known)
    except RequestError:
        return None
    return found.dataset if found.same and not found.differences else None


def whole_data(run: Run, source: str | None = None, purpose: str = "continue", option: str = "--data") -> Dataset:
    """The data of a run, all of them, as they were. New images of the source are left out, which is said.

    Args:
        purpose: what they are for, for the message.
        option: see `find_data`.

    Raises:
        RequestError: there is no such source.
        DataError: images of the run are missing or changed.
    """
    found = find_data(run, source, option)
    place = source or run.recipe.data.origin
    if not found.same:
        raise DataError(
            f"the data at {place} have changed since {run.folder} was started: {found.differences}; restore them to "
            f"{purpose}, or train a new run"
        )
    if found.differences:
        say(
            f"note: the data at {place} have changed since {run.folder} was started: {found.differences}; they are left out"
        )
    return found.dataset


def own_split(run: Run, split: str) -> Dataset:
    """The data of a run with at least one split as it was: of its images those that are still there, which is said. A run of
    an older version gets a record of its images. The caller has claimed the run.

    Raises:
        RequestError: the source is missing.
        DataError: the run has no such split, nothing is left of it, or it cannot be told which images were in it.
    """
    found, source = find_data(run), run.recipe.data.origin
    had = run.environment.data.splits
    if found.same and not found.differences:
        found.dataset.split(split)
        if found.change is None and found.dataset.membership is not None:  # of an older version
            run.write_membership(found.dataset.membership)
        return found.dataset
    what = f"the data at {source} have changed since {run.folder} was trained: {found.differences}"
    sizes = {name: len(part) for name, part in found.dataset.splits.items()}
    if found.change is None and split in found.dataset.drawn and sizes != {name: had[name].images for name in had}:
        raise DataError(
            f"{what}. The run has no record of its splits, so its {split} images cannot be told from the others; train a "
            f"new run, or evaluate images that are new with --data"
        )
    if split in had and split not in found.dataset.splits:
        raise DataError(f"{what}. None of its {had[split].images:,} {split} images is left")
    left = len(found.dataset.split(split))
    if found.change is None:
        say(f"warning: {what}; it cannot be checked whether the model learned from images of {split}")
    else:
        say(f"warning: {what}. Evaluated are the {left:,} images that were {split} then and are still the same")
    return found.dataset


def other_data(
    predictor: Predictor, data: str, split: str, quiet: bool, scale: Scale | None = None, by_labels: bool = False
) -> tuple[ImageSet, Scaling | None]:
    """A split of another source, with the image shape and the classes of the model.

    Args:
        scale: as `petriscope.core.scale.asked_scale` has it; None: as the model reads images.
        by_labels: where the scale is estimated, these images are compared with val in their own mix of classes. Metrics on
            the same images would profit from their labels.

    Returns:
        the images, scaled; and how they were scaled, which is said.
    """
    section = section_elsewhere(predictor.recipe.data, data, predictor.shape).model_copy(update={"audit": None})
    if section.sources is not None:
        raise RequestError(
            f"{data} says where the model's own data are, but what is there is not the same; to use images from elsewhere, name "
            "one source without a domain"
        )
    images, warnings = load_aligned(section, split, predictor.classes, predictor.task)
    warnings += lacks_color(images, predictor.mean, data)
    for warning in () if quiet else warnings:
        say(f"warning: {warning}")
    shares = None
    if by_labels and images.task.exclusive:  # of several labels, val is taken as it is
        shares = np.bincount(images.targets, minlength=len(predictor.classes)) / len(images)
    chosen = choose_scale(predictor, scale, lambda: sizes_in(images), shares)
    return scale_set(predictor.recipe.data, images, chosen, quiet)


def exposure_of(predictor: Predictor, run: Run | None) -> Exposure | None:
    """The images that a model has seen; None if that is unknown. For a run of an older version, it follows from the data if
    they have not changed."""
    if predictor.exposure is not None or run is None:
        return predictor.exposure
    if (known := run.membership) is not None:
        return known.exposure
    with suppress(RequestError):
        found = find_data(run)
        return found.dataset.exposure if found.same else None
    return None


def leave_out_seen(
    images: ImageSet, exposure: Exposure | None, where: str, keep: bool, only_train: bool = False
) -> tuple[ImageSet, SeenImages | None]:
    """Leave out the images that a model has seen, and say how many there are.

    Args:
        exposure: of the model; None: unknown, which is said.
        where: the source of the images, for the message.
        keep: keep them all the same.
        only_train: leave out only those that it learned from.

    Returns:
        the images that are left, and how many the model has seen; None if that is unknown.

    Raises:
        DataError: no image is left.
    """
    if exposure is None:
        say(f"note: {UNKNOWN} whether the model learned from images of {where}")
        return images, None
    roles = exposure.roles(images.digests())
    train, val = (int((roles == role).sum()) for role in ("train", "val"))
    if not train + val:
        return images, SeenImages(train=0, val=0, left_out=0)
    first = images.ids[np.flatnonzero(roles != "")[0]]
    what = f"of {len(images):,} image{'s' * (len(images) > 1)} of {where}, {exposure.sentence(train, val, first)}"
    out = np.isin(roles, ("train",) if only_train else ("train", "val")) & (not keep)
    if out.all():
        raise DataError(f"{what}; none is left. To keep the images that the model has seen: --keep-seen")
    if not out.any():
        say(f"warning: {what}; they are kept, so metrics are too optimistic")
    else:
        say(f"warning: {what}; {out.sum():,} are left out. To keep them: --keep-seen")
        images = images.subset(np.flatnonzero(~out))
    return images, SeenImages(train=train, val=val, left_out=int(out.sum()))


def without_copies(images: ImageSet, where: str, to_fit: bool) -> ImageSet:
    """The images, of which those that are exact copies of others are counted, which is said. Intervals and guarantees take images
    as independent, so a model that is to be fitted on them gets each once; and none that is there with different labels."""
    digests = images.digests()
    copies = repeats(digests)
    if not len(copies):
        return images
    if to_fit and len(torn := _of_two_labels(digests, images.targets)):
        say(
            f"warning: {len(torn):,} of {len(images):,} images of {where} are there under different labels, pixel for pixel, "
            f"such as {images.ids[torn[0]]}; they are left out, because it is not known which label is right"
        )
        if len(torn) == len(images):
            raise DataError(f"no image of {where} is left; correct the labels")
        return without_copies(images.subset(np.setdiff1d(np.arange(len(images)), torn)), where, to_fit)
    what = f"of {len(images):,} images of {where}, {len(copies):,} are exact copies of others, the first: {images.ids[copies[0]]}"
    if to_fit:
        say(f"warning: {what}; they are left out, because copies are no further evidence")
        return images.subset(np.setdiff1d(np.arange(len(images)), copies))
    say(f"warning: {what}; they are kept, but are no further evidence, so intervals are too narrow")
    return images


def _of_two_labels(digests: Sequence[bytes], targets: np.ndarray) -> np.ndarray:
    """The images of which there are copies with other targets, int64."""
    known: dict[bytes, set[bytes]] = {}
    for digest, target in zip(digests, targets, strict=True):
        known.setdefault(digest, set()).add(np.asarray(target).tobytes())
    return np.flatnonzero([len(known[digest]) > 1 for digest in digests])


@dataclass(frozen=True)
class Chosen:
    """Images for an evaluation or a calibration.

    Args:
        images: without those that the model has seen.
        own: the data of the run with these images as their split; None: the images are from elsewhere.
        seen: how many the model has seen; None: unknown.
        scaling: how images from elsewhere were scaled.
    """

    images: ImageSet
    own: Dataset | None
    seen: SeenImages | None
    scaling: Scaling | None = None


def choose_images(
    predictor: Predictor,
    run: Run | None,
    data: str | None,
    split: str,
    keep: bool,
    quiet: bool,
    to_fit: bool = False,
    scale: Scale | None = None,
) -> Chosen:
    """A split of a source, without the images that a model has seen. The run's own train and val are taken as they are.

    Args:
        run: of the model; None: there is only a model file.
        data: the source; None: the run's own. A source that holds the run's own data stands for them.
        keep: keep images that the model has seen.
        to_fit: the model is to be fitted on the images, so those of val may be among them; else it is evaluated on them.
        scale: see `other_data`. The run's own images have that of its recipe, so with another, images of ``data`` are never
            taken for the run's own.

    Raises:
        RequestError: there is no such source.
        DataError: the images cannot be used, or the model has seen all of them.
    """
    own, scaling = None, None
    if run is not None and data is None:
        own = own_split(run, split)
    elif run is not None and data is not None and scale is None:
        own = same_data(run, data)
    if own is None:
        images, scaling = other_data(predictor, str(data), split, quiet, scale)
    else:
        images = own.split(split)
    exposure = exposure_of(predictor, run)
    seen: SeenImages | None
    if own is not None and (split == "val" or (split == "train" and not to_fit)):
        if not quiet and not to_fit:
            words = "learned from" if split == "train" else "was chosen by and fitted on"
            say(f"note: the model {words} the {split} images, so metrics on them are no evidence for new images")
        seen = SeenImages.model_validate({"train": 0, "val": 0, split: len(images), "left_out": 0})
    else:
        where = str(data or predictor.recipe.data.origin) + ("" if own is None else f" ({split})")
        images, seen = leave_out_seen(images, exposure, where, keep, only_train=to_fit)
        if own is None:
            images = without_copies(images, where, to_fit)
    return Chosen(images, None if own is None else own.with_split(split, images), seen, scaling)
