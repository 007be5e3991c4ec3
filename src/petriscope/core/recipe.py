"""The recipe: one YAML file that says all of an experiment, checked before anything is done.

Sections that belong to one part of the code (``data``, ``training``, ``evaluation``) have their fields here. A part that
is chosen by name (a model, an augmentation, a loss, an optimizer, a schedule) is a `Part`: its name and its options,
which are checked against the part's own signature by `petriscope.core.registry` when it is built.
"""

from __future__ import annotations

import copy
import json
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping
from difflib import get_close_matches
from importlib import resources
from math import isfinite
from os import PathLike, fspath
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PrivateAttr,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from petriscope.core.channels import MOST
from petriscope.core.errors import RequestError, near, shortened, shown, similar
from petriscope.core.files import read_text, readable, user_path
from petriscope.core.names import tidy
from petriscope.core.scale import Scale, read_scale
from petriscope.core.yaml_text import InvalidYaml, read_yaml

MAX_RECIPE_BYTES = 1_000_000
# Files that may be given in place of a recipe by mistake.
OF_IMAGES = (".npz", ".csv", ".tsv", ".parquet", ".zip", ".tar")
MOST_PIXELS = 65_536  # of a side of an image
MOST_NAME = 100  # characters of the name of a domain or a channel
ALMOST = 0.85  # how alike two names are of which one is a slip, by difflib

Fraction = Annotated[float, Field(ge=0, lt=1)]
Positive = Annotated[int, Field(ge=1, le=1_000_000)]
Pixels = Annotated[int, Field(ge=1, le=MOST_PIXELS)]
Micrometers = Annotated[float, Field(gt=0, le=1e6)]
Enlarged = Annotated[Scale, BeforeValidator(read_scale)]
TTA = Literal["none", "mirror", "flips", "crops", "d4"]  # test-time augmentation, by the number of views
Standard = Literal["background", "stray-light", "stain"]  # see `petriscope.augment.standardize`
Sampler = Literal["none", "square-root", "weighted", "oversample"]  # see `petriscope.data.sampler`
PART_KEYS = ("optimizer.lr", "optimizer.weight_decay", "model.dropout", "model.weights", "loss.label_smoothing")

# Recipes in older run folders and model files still load: keys of the recipe, and keys at any depth of it.
OLD_FIELDS = {"balance": "sampler"}
OLD_KEYS = {"pictures_per_epoch": "images_per_epoch", "per_picture": "per_image"}
SOURCES = ["data", "sources"]  # whose keys are the names of domains, also if these are numbers
OLD_SAMPLERS = {"square-root-sampler": "square-root", "weighted-sampler": "weighted"}


def no_truth_value(cls: type[BaseModel], value: Any, info: ValidationInfo) -> Any:
    """Refuse true and false where a number is wanted: YAML reads yes and on as true, which would count as 1."""
    if isinstance(value, bool) and not _takes_bool(cls.model_fields[str(info.field_name)].annotation):
        raise ValueError(f"{str(value).lower()} is not allowed here")
    return value


def _takes_bool(kind: Any) -> bool:
    """Whether a type has bool, or True or False, in it."""
    return kind is bool or kind is Any or isinstance(kind, bool) or any(map(_takes_bool, get_args(kind)))


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    _no_truth_value = field_validator("*", mode="before")(no_truth_value)


class Part(BaseModel):
    """A named part and its options: ``{name: rotate, degrees: 10}``, or just ``rotate``."""

    model_config = ConfigDict(extra="allow", frozen=True)
    name: str

    @model_validator(mode="before")
    @classmethod
    def _from_name(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value

    @property
    def options(self) -> dict[str, Any]:
        return dict(self.__pydantic_extra__ or {})


class SourceSection(Section):
    """One of several sources: ``{source: PATH, weight: 2}``, or just the path."""

    source: str
    weight: Annotated[float, Field(gt=0, le=1e6)] = (
        1.0  # how often an image is drawn, relative to one of another source
    )
    group: str | None = None  # as `DataSection.group`, which is used where this is null
    split: Literal["train", "val", "test"] | None = None  # the only one that is used of a source that has splits
    prefix: bool = True  # ids and groups begin with the name of the domain
    scale: Enlarged | None = None  # as `DataSection.scale`, which is used where this is null

    @model_validator(mode="before")
    @classmethod
    def _from_path(cls, value: Any) -> Any:
        if isinstance(value, dict):
            return {key: fspath(each) if isinstance(each, PathLike) else each for key, each in value.items()}
        return {"source": fspath(value) if isinstance(value, PathLike) else value}

    @field_validator("group")
    @classmethod
    def _compiles(cls, value: str | None) -> str | None:
        return _pattern(value)


class CropSection(Section):
    """How objects are cut from images in which a labelling tool has drawn boxes: one image per box."""

    margin: Annotated[float, Field(ge=0, le=1)] = 0.1  # on every side, in units of the longer side of the box
    size: Literal["square", "box"] = "square"  # a square around the box, or the form of the box


class TilesSection(Section):
    """Images with masks in their own sizes: a model learns from random crops of one size, and predicts by tiles of it."""

    size: Pixels | tuple[Pixels, Pixels]  # (height, width) of a tile; one number is a square
    overlap: Annotated[float, Field(ge=0, le=0.5)] = 0.25  # of neighboring tiles, in units of their side

    @property
    def height_width(self) -> tuple[int, int]:
        return (self.size, self.size) if isinstance(self.size, int) else self.size


class StreamSection(Section):
    """Shards whose images are read and decoded while training, see `petriscope.data.streamed`."""

    window: Positive = 8192  # images that are shuffled with one another, and whose files are in memory at a time


class FoldsSection(Section):
    """Cross-validation: train and val of a source are drawn anew as folds, one of which is held out as test."""

    count: Annotated[int, Field(ge=2, le=100)] = 5
    hold_out: Positive | None = None  # the fold that is test, from 1; null: none is, and all images are train
    repeat: Positive = 1  # which drawing of folds

    @model_validator(mode="after")
    def _is_there(self) -> FoldsSection:
        if self.hold_out is not None and self.hold_out > self.count:
            raise ValueError(f"there is no fold {self.hold_out} of {self.count}")
        return self


class DataSection(Section):
    """Where the images are, and how they become one array of uint8 or uint16."""

    source: str | None = None
    sources: Annotated[dict[str, SourceSection], Field(min_length=1)] | None = (
        None  # several, by the names of their domains
    )
    leave_out: str | None = None  # a domain that is test as a whole; train and val are of the others
    _channels_of_model: bool = PrivateAttr(default=False)  # see `with_channels_of_model`
    _of_model: bool = PrivateAttr(default=False)  # see `of_model`
    task: str = "auto"  # what targets are: classification, segmentation, multilabel; auto: as the source has them
    size: Pixels | tuple[Pixels, Pixels] | None = None  # (height, width); one number is a square
    filter: Literal["nearest", "box", "bilinear", "bicubic", "lanczos", "draft"] = "bilinear"
    # auto: as they are stored; or the names of the channels, or of those to take where the source names them. Channels called
    # red, green and blue are the colors.
    channels: Literal["auto", "gray", "rgb"] | Annotated[tuple[str, ...], Field(min_length=1, max_length=MOST)] = "auto"
    bits: Annotated[int, Field(ge=8, le=16)] = 16  # significant bits of images stored with 16
    depth: Literal[8, 16] = 8  # bits per value that are kept up to the network
    range: tuple[float, float] | None = (
        None  # stored values that are black and white, of floats and whole numbers alike
    )
    # Pages, frames and positions of a file: channels of an image, or images; auto: the first, unless the file says what they are
    pages: Literal["auto", "channels", "images"] = "auto"
    projection: Literal["maximum", "mean", "middle"] | None = (
        None  # of the slices of a volume; null: the first is taken
    )
    # Where a source has them: a column, an array, a suffix in a sample of a WebDataset or a field of its JSON; null: found.
    image: str | None = None
    label: str | None = None
    layout: Literal["auto", "channels-first", "channels-last"] = "auto"  # of arrays in HDF5 and Zarr
    classes: tuple[str, ...] | None = None  # names, where the source brings only numbers; or its names in another order
    val_fraction: Fraction = 0.15
    test_fraction: Fraction = 0.15
    split_seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    folds: FoldsSection | None = None  # of a cross-validation, see `FoldsSection`
    splits: str | None = None  # a run whose images keep their splits; only images that it did not have are drawn
    group: str | None = None  # column of a table, or a pattern for paths, that says which images belong together
    block: Positive | None = None  # so many consecutive images belong together, where the source has no groups
    ignore: str | Annotated[int, Field(ge=0, le=255)] | None = None  # of masks: the class that says "unlabeled"
    # of masks: the stored values, or colors, of the classes in order; null: class numbers
    mask_values: tuple[int, ...] | tuple[tuple[int, int, int], ...] | None = None
    crop: CropSection | None = None  # of boxes of a labelling tool: how each becomes an image of its own
    tiles: TilesSection | None = None  # of masks: images keep their own sizes, see `TilesSection`
    only: str | None = None  # of masks: the class to tell from all others, which become one
    drop_single_class: bool = False  # of masks: leave out training images whose mask has one value alone
    unreadable: Literal["stop", "skip"] = "stop"
    audit: str | None = None  # folder of an audit, or its decisions.yaml: what to leave out and to relabel
    memory: Literal["auto", "resident", "mapped"] = "auto"
    stream: StreamSection | None = None  # of shards: images are neither held in memory nor kept decoded on the disk
    # Times that objects are enlarged, or micrometers per pixel of the files, such as 0.1um; also of images from elsewhere.
    scale: Enlarged | None = None
    # Field of view of the images that a model takes, in micrometers (height, width); null: where there are micrometers per
    # pixel, that of most images. One number is a square.
    field: Micrometers | tuple[Micrometers, Micrometers] | None = None
    standardize: tuple[Standard, ...] = ()  # what is made alike for images of all microscopes, before normalization
    normalize: Literal["auto", "train", "imagenet"] = "auto"  # auto: what the model's weights expect, else train's own

    @property
    def height_width(self) -> tuple[int, int] | None:
        return (self.size, self.size) if isinstance(self.size, int) else self.size

    def shape_of_model(self, shape: tuple[int, int, int]) -> tuple[int, int, int]:
        """(height, width, channels) of what a model sees at a time of images of a shape: a tile, or the whole image."""
        return shape if self.tiles is None else (*self.tiles.height_width, shape[2])

    @property
    def field_of_view(self) -> tuple[float, float] | None:
        """``field`` as (height, width), in micrometers."""
        return (self.field, self.field) if isinstance(self.field, float) else self.field

    @property
    def scales(self) -> dict[str, Scale | None]:
        """The scale of each source by its domain; of a source alone, by the empty string."""
        if self.sources is None:
            return {"": self.scale}
        return {name: each.scale or self.scale for name, each in self.sources.items()}

    @property
    def scaled(self) -> dict[str, Scale]:
        """The scales that change images, by domain; that of a source alone, and of images from elsewhere, by the empty string."""
        known = {"": self.scale, **self.scales}
        return {name: each for name, each in known.items() if each is not None and each != 1}

    @property
    def origin(self) -> str:
        """The source, or the domains and their sources, in words; empty if there is none."""
        if self.sources is None:
            return self.source or ""
        return ", ".join(f"{name}={each.source}" for name, each in self.sources.items())

    @property
    def by_domain(self) -> dict[str, DataSection]:
        """How each of several sources is read, by the names of their domains, in the order of these: the order in which a
        recipe lists them makes no difference."""
        return {
            name: self.model_copy(
                update={
                    "source": each.source,
                    "sources": None,
                    "group": each.group or self.group,
                    "scale": each.scale or self.scale,
                    "leave_out": None,
                }
            )
            for name, each in sorted((self.sources or {}).items())
        }

    @property
    def asks_for_gray(self) -> bool:
        """Whether somebody wants gray images, so that lost colors are no news."""
        return self.channels == "gray" and not self._channels_of_model

    def with_channels_of_model(self, channels: str | tuple[str, ...]) -> DataSection:
        """The same data with the channels that a model takes, which nobody may have asked for."""
        section = self.model_copy(update={"channels": channels})
        section._channels_of_model = not self.asks_for_gray
        return section

    @property
    def of_model(self) -> bool:
        """Whether this is how the data of a model were read, while another source is read now, whose columns may have other
        names."""
        return self._of_model

    def elsewhere(self, place: str) -> DataSection:
        """How another source is read for the model of this section."""
        section = self.moved(place)
        section._of_model = True
        return section

    def moved(self, place: str) -> DataSection:
        """The same data in another place: a source; or, where there are several, ``DOMAIN=SOURCE,...`` for those that have
        moved."""
        words = place.split(",") if self.sources is not None else []
        named = dict(word.strip().split("=", 1) for word in words if "=" in word)
        if self.sources is None or len(named) < len(words) or not named.keys() <= self.sources.keys():
            return self.model_copy(update={"source": place, "sources": None})
        moved = {name: self.sources[name].model_copy(update={"source": named[name]}) for name in named}
        return self.model_copy(update={"sources": {**self.sources, **moved}})

    @field_validator("source", "audit", "splits", mode="before")
    @classmethod
    def _as_text(cls, value: Any) -> Any:
        return fspath(value) if isinstance(value, PathLike) else value

    @field_validator("classes", "ignore", "only", mode="after")
    @classmethod
    def _tidied(cls, value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(map(tidy, value))
        return tidy(value) if isinstance(value, str) else value

    @field_validator("channels", mode="after")
    @classmethod
    def _channels_named(cls, value: Any) -> Any:
        if not isinstance(value, tuple):
            return value
        names = tuple(map(tidy, value))
        if not all(names) or len({name.casefold() for name in names}) < len(names) or max(map(len, names)) > MOST_NAME:
            raise ValueError("each channel needs a name of its own, such as [red, green, blue, infrared]")
        return names

    @field_validator("range")
    @classmethod
    def _ascends(cls, value: tuple[float, float] | None) -> tuple[float, float] | None:
        if value is not None and not (isfinite(value[0]) and isfinite(value[1]) and value[0] < value[1]):
            raise ValueError("it has a lower and a higher value, such as [0, 4095]")
        return value

    @field_validator("only", "classes", mode="before")
    @classmethod
    def _named(cls, value: Any) -> Any:
        if isinstance(value, list | tuple):
            return tuple(map(cls._named, value))
        return str(value) if isinstance(value, int) and not isinstance(value, bool) else value

    @field_validator("mask_values", mode="before")
    @classmethod
    def _are_values(cls, value: Any) -> Any:
        def whole(number: Any, most: int) -> bool:
            return type(number) is int and 0 <= number <= most

        if value is None:
            return None
        if isinstance(value, list | tuple) and 0 < len(value) <= 255:
            out = tuple(tuple(each) if isinstance(each, list | tuple) else each for each in value)
            numbers = all(whole(each, 2**32 - 1) for each in out)
            colors = all(
                isinstance(each, tuple) and len(each) == 3 and all(whole(c, 255) for c in each) for each in out
            )
            if (numbers or colors) and len({*out}) == len(out):
                return out
        raise ValueError(
            "it must list a number per class, such as [0, 255], or a color per class, such as [[0, 0, 0], [255, 0, 0]], each once"
        )

    @field_validator("group")
    @classmethod
    def _compiles(cls, value: str | None) -> str | None:
        return _pattern(value)

    @field_validator("tiles", mode="before")
    @classmethod
    def _of_size(cls, value: Any) -> Any:
        return {"size": value} if isinstance(value, int | list | tuple) and not isinstance(value, bool) else value

    @field_validator("stream", mode="before")
    @classmethod
    def _with_defaults(cls, value: Any) -> Any:
        return ({} if value else None) if isinstance(value, bool) else value

    @model_validator(mode="after")
    def _stream_fits(self) -> DataSection:
        if self.stream is not None:
            others = {key: getattr(self, key) for key in ("sources", "tiles", "crop", "scale")}
            others["memory=resident"] = True if self.memory == "resident" else None
            if found := [key for key, value in others.items() if value is not None]:
                raise ValueError(
                    f"data.stream reads images from their shards while training, so data.{found[0]} cannot be set beside it; "
                    "remove one"
                )
        return self

    @model_validator(mode="after")
    def _tiles_fit(self) -> DataSection:
        if self.tiles is not None:
            others = {"size": self.size, "sources": self.sources, "crop": self.crop, "scale": self.scale}
            others["drop_single_class"] = self.drop_single_class or None
            if found := [key for key, value in others.items() if value is not None]:
                raise ValueError(
                    f"data.tiles keeps images in their own sizes, so data.{found[0]} cannot be set beside it; remove one"
                )
        return self

    @model_validator(mode="after")
    def _draws_once(self) -> DataSection:
        for key in ("splits", "leave_out"):
            if self.folds is not None and getattr(self, key) is not None:
                raise ValueError(f"data.folds and data.{key} both say which images are held out; remove one")
        if self.folds is not None and self.stream is not None:
            raise ValueError(
                "data.stream reads images while training, so they cannot be drawn into data.folds; remove one"
            )
        return self

    @field_validator("sources", mode="before")
    @classmethod
    def _name_domains(cls, value: Any) -> Any:
        if value is None:
            return None
        if not isinstance(value, dict):
            raise ValueError("it maps the name of each domain to its source, such as {blood: cells/, bccd: other.csv}")
        out = {}
        for key, each in value.items():
            name = tidy(str(key))
            if not name or len(name) > MOST_NAME or re.search("[/=,]", name):
                raise ValueError(f"the domain {shown(key)} must have a name without / = and commas")
            if name in out:
                raise ValueError(f"the domain {shown(name)} is there twice")
            out[name] = each
        return out

    @field_validator("leave_out", mode="before")
    @classmethod
    def _is_text(cls, value: Any) -> Any:
        return tidy(str(value)) if isinstance(value, (str, int)) and not isinstance(value, bool) else value

    @model_validator(mode="after")
    def _has_one_kind_of_source(self) -> DataSection:
        if self.sources is not None:
            if self.source is not None:
                raise ValueError(
                    f"there are both data.source, {shown(self.source)}, and data.sources; keep one, and set the other to null"
                )
            if self.audit is not None:
                raise ValueError("the decisions of an audit are about one data.source, and there are data.sources")
            if self.leave_out is not None and self.leave_out not in self.sources:
                raise ValueError(f"data.leave_out is no domain of data.sources; {near(self.leave_out, self.sources)}")
        return self


def _pattern(value: str | None) -> str | None:
    try:
        re.compile(value or "")
    except re.error as error:
        raise ValueError(f"{value!r} is no regular expression: {error}") from None
    return value


class ProgressiveSection(Section):
    """Smaller images in the first epochs: see `petriscope.training.progressive`."""

    size: Pixels  # of the shorter side
    share: Annotated[float, Field(gt=0, lt=1)] = 0.5  # of the epochs

    def epochs(self, total: int) -> int:
        """How many of so many epochs."""
        return int(self.share * total)


class CorrectionSection(Section):
    """Another number of epochs than was planned: what `petriscope.experiments.auto` found while it trained."""

    epoch: Positive  # after so many, the number was corrected
    before: Positive  # epochs that were planned until then


class EndedSection(Section):
    """Where a budget ended training within an epoch, the last one."""

    epoch: Positive  # counted from 1
    steps: Positive  # of it that were done


class TrainingSection(Section):
    """How long, in what batches and numbers, and which weights are kept."""

    epochs: Positive = 20
    # Plans before the last, which is `epochs`. The schedule until then was theirs, so training repeats them.
    corrections: tuple[CorrectionSection, ...] = ()
    ended: EndedSection | None = None  # null: the last epoch has all its steps
    batch_size: Positive = 128
    device: str = "auto"
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    channels_last: bool = True
    compile: bool = False
    images_per_epoch: Annotated[int, Field(ge=1, le=20_000_000)] | None = (
        None  # null: every image once, or as the sampler says
    )
    ema: Annotated[float, Field(gt=0, lt=1)] | None = 0.998  # decay a step; null: no averaging
    swa: Annotated[float, Field(gt=0, lt=1)] | None = None  # share of the epochs, the last, whose weights are averaged
    progressive: ProgressiveSection | None = None  # null: all epochs on images of their own size
    l1: Annotated[float, Field(ge=0, le=1e9)] = 0.0
    l2: Annotated[float, Field(ge=0, le=1e9)] = 0.0
    clip_grad_norm: Annotated[float, Field(gt=0, le=1e9)] | None = None
    monitor: str = "auto"  # a metric that the task watches after every epoch, or loss; auto: its first
    keep: Literal["best", "last"] = "best"
    patience: Positive | None = None  # epochs without a better monitored metric before training stops
    checkpoint_seconds: Annotated[float, Field(ge=0, le=1e9)] = 60.0
    track: tuple[
        Part, ...
    ] = ()  # trackers that the run is sent to, see `petriscope.run.trackers`; weights do not depend on it

    def epochs_at(self, epoch: int) -> int:
        """The number of epochs that was planned in an epoch, counted from 0."""
        return next((each.before for each in self.corrections if epoch < each.epoch), self.epochs)

    def small_epochs(self, epoch: int) -> int:
        """How many epochs of smaller images were planned in an epoch, counted from 0. Images that have grown do not shrink."""
        small = 0
        if self.progressive is None:
            return small
        for start in (0, *(each.epoch for each in self.corrections)):
            if start <= epoch and (not start or start < small):
                small = max(self.progressive.epochs(self.epochs_at(start)), start)
        return small

    @model_validator(mode="after")
    def _corrects_in_order(self) -> TrainingSection:
        plans = [*(each.before for each in self.corrections), self.epochs]
        ends = [each.epoch for each in self.corrections]
        reached = all(plan >= end for end in ends for plan in plans[ends.index(end) :])
        if not reached or sorted(set(ends)) != ends:
            raise ValueError(
                "training.corrections must be in the order of their epochs, and no plan may end before them; to train without "
                "them, set training.corrections=[]"
            )
        if self.ended is not None and self.ended.epoch != self.epochs:
            raise ValueError(
                f"training.ended says that epoch {self.ended.epoch} was the last, and training.epochs is {self.epochs}; for "
                "whole epochs, set training.ended=null"
            )
        return self

    @field_validator("track", mode="before")
    @classmethod
    def _one_or_more(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str | dict) else () if value is None else value

    @field_validator("track")
    @classmethod
    def _each_once(cls, value: tuple[Part, ...]) -> tuple[Part, ...]:
        if len({part.name for part in value}) < len(value):
            raise ValueError("a tracker can be named once")
        return value


class StageSection(Section):
    """A later stage of fine-tuning."""

    epoch: Positive  # from this one on, counted from 0
    train: str
    lr: Annotated[float, Field(gt=0, le=1e9)] = 1.0  # factor on the rate


class FinetuneSection(Section):
    """What of the model is trained: see `petriscope.training.finetune`."""

    train: str = "all"  # head; last 2 blocks; last 140 layers; last 30 %; names, such as layer3, layer4
    then: tuple[StageSection, ...] = ()
    unfreeze_every: Positive | None = None  # epochs after which one more block is trained, from the head down
    lr_decay: Annotated[float, Field(gt=0, le=1)] = 1.0  # the rate of a block, in units of the next one's


class DistillSection(Section):
    """Learning from trained runs beside the labels. Hinton et al., 2015, arXiv:1503.02531."""

    teachers: Annotated[tuple[str, ...], Field(min_length=1)]  # runs, or model files; the mean of their answers
    weight: Annotated[float, Field(gt=0, le=1)] = 0.5  # of the teachers; the labels have the rest
    temperature: Annotated[float, Field(gt=0, le=1e6)] = 2.0

    @field_validator("teachers", mode="before")
    @classmethod
    def _one_or_more(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value


class EvaluationSection(Section):
    tta: TTA = "none"
    augment_val: tuple[Part, ...] = ()  # falls on val while training chooses by it; final metrics are of plain images
    batch_size: Positive = 512
    bootstrap: Annotated[int, Field(ge=100, le=100_000)] = 1000
    stress: Literal["auto", "val", "off"] = "auto"  # test of disturbed val images after training; auto: kept short

    @field_validator("stress", mode="before")
    @classmethod
    def _off(cls, value: Any) -> Any:
        return "off" if value is False else value  # YAML reads a bare off as false


class Recipe(Section):
    """All of an experiment. Every field has a default; nothing is required but a source of data."""

    name: str = "custom"
    about: str = ""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    data: DataSection = DataSection()
    sampler: Sampler = "none"
    augment: tuple[Part, ...] = ()
    model: Part = Part(name="simple-cnn")
    finetune: FinetuneSection = FinetuneSection()
    distill: DistillSection | None = None
    loss: Part = Part(name="cross-entropy")
    optimizer: Part = Part(name="adamw")
    schedule: Part = Part(name="cosine")
    training: TrainingSection = TrainingSection()
    evaluation: EvaluationSection = EvaluationSection()

    def to_yaml(self) -> str:
        """The recipe with all its keys.

        Raises:
            RequestError: a name in it is not UTF-8, such as that of a folder from another system.
        """
        tree = self.model_dump(mode="json")
        if found := re.search('"([^"]*[\ud800-\udfff][^"]*)"', json.dumps(tree, ensure_ascii=False)):
            raise RequestError(f"the name {readable(found[1])} is not UTF-8, so no recipe can hold it; rename it")
        return yaml.safe_dump(tree, sort_keys=False, allow_unicode=True)


def flattened(tree: Any, prefix: str = "") -> dict[str, Any]:
    """The values of nested mappings and lists by their dotted keys: ``{"augment.0.name": "flip"}``."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else None
    if items is None:
        return {prefix: tree}
    out: dict[str, Any] = {}
    for key, value in items:
        out |= flattened(value, f"{prefix}.{key}" if prefix else str(key))
    return out


def load_recipe(reference: str | Path, settings: tuple[str, ...] | list[str] = (), **overrides: Any) -> Recipe:
    """Load a shipped recipe by name, or a YAML file by path.

    Args:
        reference: a name such as ``blood/fast``, or a path to a YAML file.
        settings: ``KEY=VALUE`` strings, the key dotted (``optimizer.lr=0.01``, ``augment.0.p=1``), the value YAML.
        overrides: top-level fields, merged last.

    Raises:
        RequestError: the recipe, a key or a value is unknown or wrong; the message names the near ones.
    """
    tree = _resolve(str(reference), Path.cwd(), ())
    for setting in settings:
        _apply(tree, setting)
    tree = _merge(tree, upgraded(overrides))
    tree.setdefault("name", str(reference))
    return check_recipe(tree, str(reference))


def recipe_of(tree: Mapping[str, Any], settings: Iterable[str], where: str = "recipe") -> Recipe:
    """The recipe of some keys, with ``KEY=VALUE`` settings as of `load_recipe` over them.

    Raises:
        RequestError: a key or a value is unknown or wrong; the message names the near ones.
    """
    changed = copy.deepcopy(dict(tree))
    for setting in settings:
        _apply(changed, setting)
    return check_recipe(changed, where)


def check_recipe(tree: Any, where: str = "recipe") -> Recipe:
    """Check a recipe that was read, with the names of today or of older versions.

    Raises:
        RequestError: a key or a value is unknown or wrong; the message names the near ones.
    """
    if not isinstance(tree, dict):
        raise RequestError(f"{where}: a recipe is a mapping of keys to values, such as 'seed: 1', not {shown(tree)}")
    try:
        return Recipe.model_validate(upgraded(tree))
    except ValidationError as error:
        raise RequestError(explain(error, Recipe, where, _keys_of_parts(tree))) from None
    except RecursionError:
        raise RequestError(f"{where}: it is nested too deeply") from None


def upgraded(tree: dict[str, Any]) -> dict[str, Any]:
    """A recipe, or a part of one, with renamed keys and values as they are called today.

    An old key beside its new one stays as it is, and the check refuses it.
    """
    tree = _with_keys(_with_old_keys_renamed(tree), OLD_FIELDS)
    if isinstance(name := tree.get("sampler"), str):
        tree["sampler"] = OLD_SAMPLERS.get(name, name)
    data = tree.get("data")
    if isinstance(data, dict) and isinstance(several := data.get("sources"), dict):
        # In the long form, in which recipes and settings merge.
        several = {str(key): {"source": each} if isinstance(each, str) else each for key, each in several.items()}
        tree["data"] = {**data, "sources": several}
    return tree


def _with_old_keys_renamed(value: Any) -> Any:
    if isinstance(value, dict):
        return _with_keys({key: _with_old_keys_renamed(each) for key, each in value.items()}, OLD_KEYS)
    return [_with_old_keys_renamed(each) for each in value] if isinstance(value, list | tuple) else value


def _with_keys(tree: dict[str, Any], names: dict[str, str]) -> dict[str, Any]:
    return {key if names.get(key, key) in tree else names[key]: value for key, value in tree.items()}


def data_section(source: str, settings: tuple[str, ...] | list[str] = ()) -> DataSection:
    """The section ``data`` for a source alone. ``settings``: ``data.KEY=VALUE`` strings.

    Raises:
        RequestError: an unknown key, a wrong value, or a key of another section.
    """
    tree: dict[str, Any] = {}
    for setting in settings:
        if not setting.strip().startswith("data."):
            raise RequestError(f"--set {setting}: here only the keys of data can be set, such as data.size=64")
        _apply(tree, setting)
    return check_recipe(_merge(tree, {"data": {"source": source}}), "--set").data


def with_values(recipe: Recipe, values: Mapping[str, Any], where: str = "recipe") -> Recipe:
    """The recipe with other values of dotted keys. An entry of ``augment`` that becomes None is left out.

    Raises:
        RequestError: a key or a value is unknown or wrong; the message names the near ones.
    """
    tree = recipe.model_dump(mode="json")
    for key in sorted(values, key=lambda key: key.count(".")):  # a part before its options
        _put(tree, key, copy.deepcopy(values[key]), where)
    tree["augment"] = [part for part in tree["augment"] or () if part is not None]
    return check_recipe(tree, where)


def recipe_names() -> list[str]:
    """The names of the recipes that ship."""
    root = resources.files("petriscope") / "recipes"
    names = []
    for entry in root.iterdir():
        if entry.is_dir():
            names += [f"{entry.name}/{f.name[:-5]}" for f in entry.iterdir() if f.name.endswith(".yaml")]
        elif entry.name.endswith(".yaml"):
            names.append(entry.name[:-5])
    return sorted(names)


def explain(error: ValidationError, model: type[BaseModel], where: str, more: Iterable[str] = ()) -> str:
    """Turn pydantic's errors into sentences: which key, what is wrong with it, what is near.

    Args:
        more: dotted keys that may be meant beside those of the model.
    """
    lines = []
    for item in error.errors():
        path = [str(step) for step in item["loc"] if not str(step).startswith(("function-", "constrained-"))]
        key = shortened(".".join(path))
        if item["type"] == "extra_forbidden":
            lines.append(f"{where}: unknown key {key!r}; {_near_key(path, model, more)}")
        elif item["type"] == "literal_error":
            expected = [
                word.strip("'") for word in re.findall(r"'[^']*'", str(item.get("ctx", {}).get("expected", "")))
            ]
            said = shown(item["input"])
            hint = near(said.strip("'"), expected)
            lines.append(f"{where}: {key} cannot be {said}; {hint}")
        else:
            what = item["msg"].removeprefix("Value error, ")
            lines.append(f"{where}: {key or 'recipe'}: {what} (got {shown(item['input'])})")
    return "\n".join(dict.fromkeys(lines))


def _near_key(path: list[str], model: type[BaseModel], more: Iterable[str]) -> str:
    """A hint for an unknown key: the same name in another section, or a similar one beside it, or elsewhere."""
    name, beside = path[-1], _fields_at(model, path[:-1])
    elsewhere: dict[str, list[str]] = {}
    for key in sorted({*_keys(model), *more} - {".".join(path)}):
        elsewhere.setdefault(key.rpartition(".")[2], []).append(key)
    if name not in elsewhere and (similar(name, beside) or not similar(name, elsewhere)):
        return near(name, beside)
    meant = get_close_matches(name, beside, n=1, cutoff=ALMOST)
    meant += [key for each in ([name] if name in elsewhere else similar(name, elsewhere)) for key in elsewhere[each]]
    return "did you mean " + " or ".join(meant[:3]) + "?"


def _keys(node: Any, before: str = "") -> Iterator[str]:
    """The dotted keys of a schema, or of a mapping."""
    if isinstance(node, type) and issubclass(node, BaseModel):
        below: dict[Any, Any] = {name: _section(field.annotation) for name, field in node.model_fields.items()}
    elif isinstance(node, dict):
        below = node
    else:
        return
    for key, each in below.items():
        yield f"{before}{key}"
        yield from _keys(each, f"{before}{key}.")


def _keys_of_parts(tree: dict[str, Any]) -> list[str]:
    """The dotted keys of the options of parts: those in a recipe, and the most usual."""
    return [*PART_KEYS, *_keys({name: tree.get(name) for name in sorted(_PARTS)})]


def _section(annotation: Any) -> Any:
    """The schema of a field that is a section, or that may be None instead."""
    inner = [each for each in get_args(annotation) if each is not type(None)]
    return inner[0] if len(inner) == 1 else annotation


def _fields_at(model: type[BaseModel], path: list[str]) -> list[str]:
    steps = iter(path)
    for step in steps:
        field = model.model_fields.get(step)
        section = None if field is None else _section(field.annotation)
        if get_origin(section) is Annotated:
            section = get_args(section)[0]
        if get_origin(section) is dict:  # of sections by name
            next(steps, None)
            section = get_args(section)[1]
        if not (isinstance(section, type) and issubclass(section, BaseModel)):
            return []
        model = section
    return list(model.model_fields)


def _resolve(reference: str, beside: Path, chain: tuple[str, ...]) -> dict[str, Any]:
    """Read a recipe and lay it over the one it extends."""
    text, label, folder = _read(reference, beside)
    if label in chain or len(chain) > 50:
        raise RequestError("recipes extend one another in a circle: " + " -> ".join((*chain[-3:], label)))
    try:
        tree = read_yaml(text)
    except InvalidYaml as error:
        raise RequestError(f"{label}: not readable as YAML: {error}") from None
    tree = {} if tree is None else tree
    if not isinstance(tree, dict) or not all(isinstance(key, str) for key in tree):
        raise RequestError(f"{label}: a recipe is a mapping of keys to values, such as 'seed: 1'")
    tree = upgraded(tree)
    base = tree.pop("extends", None)
    if base is None:
        return tree
    if not isinstance(base, str):
        raise RequestError(f"{label}: extends names one recipe, not {shown(base)}")
    try:
        extended = _resolve(base, folder, (*chain, label))
    except RequestError as error:
        raise error if chain else RequestError(f"{label} extends {shown(base)}: {error}") from None
    return _merge({k: v for k, v in extended.items() if k not in ("name", "about")}, tree)


def _read(reference: str, beside: Path) -> tuple[str, str, Path]:
    path = user_path(reference, beside)
    if reference not in recipe_names() and (path.is_dir() or (path.is_file() and path.suffix.lower() in OF_IMAGES)):
        if (path / "recipe.yaml").is_file():
            raise RequestError(f"{path} is a run, not a recipe; its recipe is {path / 'recipe.yaml'}")
        raise RequestError(f"{path} is not a recipe; if it has the images, give it as --data {shlex.quote(reference)}")
    if path.suffix in (".yaml", ".yml") or path.is_file():
        if not path.is_file():
            raise RequestError(f"no recipe file {path}")
        return read_text(path, MAX_RECIPE_BYTES, "a recipe"), str(path), path.parent
    names = recipe_names()
    if reference not in names:
        raise RequestError(f"no recipe {shown(reference)}; {near(reference, names)} (or give a path ending in .yaml)")
    shipped = resources.files("petriscope") / "recipes" / f"{reference}.yaml"
    return shipped.read_text(encoding="utf-8"), reference, beside


def _merge(base: dict[str, Any], top: dict[str, Any]) -> dict[str, Any]:
    """Lay ``top`` over ``base``: mappings merge, all else is replaced. A part of another name brings its own options."""
    out = dict(base)
    for key, value in top.items():
        old = out.get(key)
        if isinstance(old, str) and isinstance(value, dict) and value.get("name", old) == old and key in _PARTS:
            out[key] = {"name": old, **value}
        elif (
            isinstance(old, dict) and isinstance(value, dict) and value.get("name", old.get("name")) == old.get("name")
        ):
            out[key] = _merge(old, value)
        else:
            out[key] = value
    return out


_PARTS = {name for name, field in Recipe.model_fields.items() if field.annotation is Part}


def read_setting(setting: str) -> tuple[str, Any]:
    """The key and the value of ``KEY=VALUE``, the value YAML.

    Raises:
        RequestError: it is no setting.
    """
    key, sign, text = setting.partition("=")
    if not sign or not key.strip():
        raise RequestError(f"--set takes KEY=VALUE, such as optimizer.lr=0.01; got {shortened(setting)!r}")
    try:
        return key.strip(), read_yaml(text) if text.strip() else None
    except InvalidYaml as error:
        raise RequestError(f"--set {shortened(setting)}: the value is not readable as YAML: {error}") from None


def _apply(tree: dict[str, Any], setting: str) -> None:
    key, value = read_setting(setting)
    _put(tree, key, value, f"--set {shortened(setting)}")


def _put(tree: dict[str, Any], key: str, value: Any, where: str) -> None:
    """Set the value at a dotted key; the nodes on the way to it are copied."""
    steps = [OLD_KEYS.get(step, step) for step in key.split(".")]
    steps[0] = OLD_FIELDS.get(steps[0], steps[0])
    if steps[0] not in Recipe.model_fields:
        hint = _near_key([steps[0]], Recipe, _keys_of_parts(tree))
        raise RequestError(f"{where}: unknown key {shown(steps[0])}; {hint}")
    node: Any = tree
    for depth, step in enumerate(steps):
        last = depth == len(steps) - 1
        if isinstance(node, list):
            if not step.isdecimal() or len(step) > 9 or int(step) > len(node):
                raise RequestError(
                    f"{where}: {'.'.join(steps[:depth])} has {len(node)} entries, counted from 0; {len(node)} adds one"
                )
            index: Any = int(step)
            if index == len(node):
                node.append(None)
        else:
            index = step
        if last:
            node[index] = value
            return
        child = node[index] if isinstance(node, list) else node.get(index)
        domain = steps[:depth] == SOURCES
        if isinstance(child, str):  # a part written as its bare name, or a source as its place
            child = {"source" if domain else "name": child}
        elif child is None and depth == 0 and step in _PARTS:
            child = {"name": Recipe.model_fields[step].default.name}
        elif child is None:
            child = [] if steps[depth + 1].isdecimal() and steps[: depth + 1] != SOURCES else {}
        elif isinstance(child, dict):
            child = dict(child)
        elif isinstance(child, list):
            child = list(child)
        else:
            raise RequestError(f"{where}: {'.'.join(steps[: depth + 1])} is {shown(child)} and has no keys below it")
        node[index] = child
        node = child
