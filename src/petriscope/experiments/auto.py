"""Training without a recipe: look at the data, time candidate networks, plan within a budget, and keep to it.

What is planned is an ordinary recipe. How fast this machine is decides which, so another machine may plan otherwise; but the
recipe in the run, with the corrections that were made while it trained, leads to the same weights.
"""

from __future__ import annotations

import math
import shlex
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch

from petriscope.core.device import choose_device, choose_format, enough_memory
from petriscope.core.errors import RequestError, command
from petriscope.core.files import path_text
from petriscope.core.launch import launch
from petriscope.core.progress import duration, say
from petriscope.core.recipe import Recipe, recipe_of
from petriscope.core.results import Budgeted
from petriscope.data import Dataset, ImageSet, load_dataset
from petriscope.experiments.budget import MOST, Budget, Clock, Length, Load, Pace, best, corrected, enough, longest
from petriscope.experiments.calibrate import short_name
from petriscope.experiments.candidates import PRETRAINED, Candidate, batch_of, has_weights, ladder, size_at, tree_of
from petriscope.experiments.orientation import Orientation, find_orientation
from petriscope.experiments.survey import Survey, fractions, look_at_files, look_at_images
from petriscope.experiments.train import Limits, begin, nothing_made, resumable, tell_audited, train_to_report
from petriscope.explain.classification import BUDGET as EXPLAINED
from petriscope.inference.fit import DETECTOR_IMAGES
from petriscope.inference.tta import predict_batches, views_of
from petriscope.models import sketch_model
from petriscope.models.cost import multiply_adds, parameters
from petriscope.report.standing import left_out
from petriscope.run.folder import Run, check_free
from petriscope.run.trackers import check_trackers
from petriscope.run.trackers.process import tracked
from petriscope.tasks import find_task
from petriscope.training.build import build_trainer, check_memory, check_parts
from petriscope.training.loop import Trainer

MINUTES = 20.0
AIM = 0.97  # of the budget: where all should end
EARLY, LATE = 0.92, 1.02  # of the budget: an end that is foreseen outside of these is corrected
TOO_LATE = 1.08  # likewise, at any time
LAST = 1.05  # of the budget: training is ended within an epoch where what follows for certain would end later
POSSIBLE = 1.1  # likewise: where a single step and what follows for certain would, nothing is begun
AGAIN = 0.1  # of the epochs, before the first correction and between two
NOTICED = 0.02  # of the budget: what is planned to take less does not show how fast the machine is
LOOKING = 0.04  # of the budget, for the small network that is asked about orientation
TIMING = 0.015  # of the budget, for timing a candidate, unless its steps take longer
SLOW = 3.0  # times as long as that, for a single step: no more are timed
WARM, TIMED = 2, 3  # steps that are not timed, because the first are slow, and that are, at least
HOPELESS = 0.3  # share of the passes that are enough; where fewer fit, what is more accurate and slower is not timed
IMBALANCE = (
    10  # times as many images in the largest class as in the smallest, from where rare ones are drawn more often
)
CAMERA = 192  # pixels: how large files are to be read, which takes long, is chosen before they are
TINY = 8.0  # times smaller than in their files, from where it is said what that means
READING = 0.1  # of the budget, for reading images twice: once to look at them, and once in the size that is chosen
AFTERWARDS = 12.0  # seconds that explanations, timing and the report take, whatever the network
CERTAIN = 3.0  # of these, for what is never left out: fits, metrics and the report; on idle processors
REPORT = 3.0  # of these, for the report
DISTURBED = 200 * 85  # predictions of the stress test
DISTURBING = 1e-7  # seconds to disturb a pixel
FEWEST_SEEN = 256  # images that the out-of-distribution detector is fitted on, where there is no time for more
DETECTING = 0.1  # of the budget, for that at most
VIEWS = (
    0.15  # likewise, for predicting val with test-time augmentation, which is left out of the plan if it takes longer
)
BUSIEST = 5.0  # times as long on the wall as on the processor, at most
MOST_EXPLAINED = 10_000  # predictions for explanations of small networks
RESERVED = 0.4  # of the budget at most, for what follows training: a network that has learned nothing needs no report
FEW = 500  # images, below which cross-validation is proposed, since a test split says little
FOLDS = 5  # that are proposed
STRESS = 0.08  # of the budget, for the stress test at most
LEAST_STRESS = 5.0  # seconds that it may take in any case, if they are left


@dataclass(frozen=True)
class AutoPlan:
    """What was planned.

    Args:
        recipe: an ordinary one.
        lines: the plan in words, five lines.
        notes: what else the user should know, a sentence each.
        dataset: the images, as the recipe reads them.
        load, length: what training does, and for how long.
        after: seconds that are kept for what follows training.
        most: epochs; more bring little.
        fixed: whether the user has set the number of epochs, which is then kept to.
        certain: seconds that takes of what follows training what is never left out.
        impossible: why the budget cannot be kept, and what to give; None: it can.
        slower: how many times longer than measured steps took in an earlier training.
    """

    recipe: Recipe
    lines: tuple[str, ...]
    notes: tuple[str, ...]
    dataset: Dataset
    load: Load
    length: Length
    after: float
    most: int
    fixed: bool
    certain: float = 0.0
    impossible: str | None = None
    slower: float = 1.0


@dataclass(frozen=True)
class _Images:
    """What is known of the images when candidates are timed.

    Args:
        train, val: their number.
        size: height and width in their files, typically.
        channels, classes, dense: as they are, or as it is guessed before they are read.
        rare: whether some classes are much rarer than others.
    """

    train: int
    val: int
    size: tuple[float, float]
    channels: int = 3
    classes: int = 10
    dense: bool = False
    rare: bool = False

    @property
    def side(self) -> float:
        return math.sqrt(self.size[0] * self.size[1])


@dataclass(frozen=True)
class _Option:
    """A candidate as a recipe, and what its timing gave."""

    recipe: Recipe
    size: tuple[int, int]
    passes: float
    load: Load
    length: Length
    after: float
    certain: float


@enough_memory()
def train_in_time(
    data: str | PathLike[str],
    out: str | Path | None = None,
    budget: Budget | None = None,
    settings: Sequence[str] = (),
    seed: int = 0,
    audit: str | None = None,
    quiet: bool = False,
) -> Run:
    """Train on a source without a recipe, so that all ends within a budget, with val evaluated, a short stress test and a
    report. Test is not read.

    Args:
        data: the source.
        out: the folder to make; default ``runs/auto-<source>-seed<N>``.
        budget: default `MINUTES` on the wall.
        settings: ``KEY=VALUE`` of a recipe; the rest is planned around them.
        audit: the folder of an audit, whose decisions are carried out.
        quiet: show no progress.

    Returns:
        the run. Its recipe is what was planned, with what was corrected while it trained: it leads to the same weights.

    Raises:
        RequestError: the source, the settings or the folder cannot be used; nothing was made.
        Interrupted: Ctrl-C; `petriscope.experiments.train.resume` goes on as planned, without looking at the time.
    """
    if (processes := launch().size) > 1:
        raise RequestError(
            f"a training without a recipe measures and plans in one process, and torchrun started {processes}; start petriscope "
            "without torchrun, or name a recipe"
        )
    clock = Clock.of_command(budget or Budget(MINUTES))
    folder = None if out is None else Path(out)
    check_free(folder)
    with nothing_made():
        found = plan(data, clock, settings, seed, audit)
    if not quiet:
        for line in found.lines:
            say(line)
        for sentence in (*found.notes, *found.dataset.warnings):
            say(f"warning: {sentence}")
    if found.impossible is not None and not found.fixed:
        raise RequestError(found.impossible)
    run, _ = train_planned(found, clock, folder, quiet)
    if not quiet:
        say(f"{took(clock)}, of a budget of {clock.budget}")
    return run


def train_planned(found: AutoPlan, clock: Clock, folder: Path | None, quiet: bool) -> tuple[Run, float]:
    """Train as planned, and keep to the budget of the clock, whose time runs already.

    Args:
        folder: to make; None: as `petriscope.experiments.train.train` names it.

    Returns:
        the run, and how many times longer than planned its steps took.
    """
    with nothing_made():
        device = choose_device(found.recipe.training.device)
        run, trainer, normalize, _ = begin(found.recipe, found.dataset, device, folder, quiet)
    if not quiet:
        say(f"run in {run.folder}")
        tell_audited(run, found.dataset)
    keeper = _Keeper(run, trainer, found, clock, quiet)
    given = Budgeted(minutes=clock.budget.minutes, processor=clock.budget.processor, plan=list(found.lines))
    with resumable(run), run.claimed(), tracked(run, quiet):
        run.add_results(budget=given)
        train_to_report(run, trainer, normalize, found.dataset, quiet, keeper.limits)
        spent = {"wall_seconds": round(clock.wall, 1), "processor_seconds": round(clock.processor, 1)}
        run.add_results(budget=given.model_copy(update={**spent, "detector_images": keeper.seen}))
    for sentence, again in left_out(run.results, run.recipe, shlex.quote(str(run.folder))):
        say(f"note: {sentence}; to make up for it: {again}")
    return run, keeper.slower


def train_fold(found: AutoPlan, recipe: Recipe, clock: Clock, folder: Path, quiet: bool) -> float:
    """Train one of several trainings that were planned together.

    Args:
        found: the plan; ``recipe``: that of this one, which has other images.

    Returns:
        how many times longer than planned its steps took, for the plan of the next.
    """
    with nothing_made():
        dataset = load_dataset(recipe.data)
    train, settings = dataset.split("train"), recipe.training
    load = replace(found.load, train=len(train), val=0 if dataset.val is None else len(dataset.val))
    after, sure = keep_for(load.pace, load.train, load.val, dataset.shape[:2], recipe, clock.budget.seconds)
    images = settings.images_per_epoch or len(train)

    def length(epochs: int) -> Length:
        return Length(epochs, images, load.seconds(epochs, images), epochs * images / len(train))

    epochs, longer = settings.epochs, max(1.0, found.slower)
    if not found.fixed:
        left = (
            AIM * clock.budget.seconds
            - clock.spent
            - max(sure * longer, min(after * longer, RESERVED * clock.budget.seconds))
        )
        epochs = max(1, corrected(load, length(epochs), 0, found.slower, left, epochs))
        recipe = recipe.model_copy(update={"training": settings.model_copy(update={"epochs": epochs})})
    one = replace(
        found,
        recipe=recipe,
        notes=(),
        dataset=dataset,
        load=load,
        length=length(epochs),
        after=after,
        most=epochs,  # none is trained longer than others because it comes later
        certain=sure,
    )
    return train_planned(one, clock, folder, quiet)[1]


def took(clock: Clock) -> str:
    """What was spent, in words."""
    return f"all took {duration(clock.wall)}, and {duration(clock.processor)} of the processors"


def name_of(source: str) -> str:
    """What a recipe that is planned for a source is called."""
    return f"auto-{short_name(source)}"


def plan(
    data: str | PathLike[str],
    clock: Clock,
    settings: Sequence[str] = (),
    seed: int = 0,
    audit: str | None = None,
    folds: int | None = None,
    share: float = 1.0,
) -> AutoPlan:
    """Plan a training; see `train_in_time`. Nothing is written but what reading images puts into the cache.

    Args:
        folds: plan for the first of so many folds of a cross-validation; None: for the splits of the source.
        share: of how many such trainings the budget is.

    Raises:
        RequestError, DataError: the source or the settings cannot be used.
    """
    source = path_text(data)
    base: dict[str, Any] = {
        "name": name_of(source),
        "about": f"planned by petriscope train --data for {clock.budget}",
        "seed": seed,
        "data": {"source": source, "audit": audit},
    }
    if folds is not None:
        base["data"]["folds"] = {"count": folds, "hold_out": 1}
    planner = _Planner(base, tuple(settings), clock, share)
    return planner.plan()


class _Planner:
    """Plans by a recipe that has only its data so far.

    Args:
        base: its keys.
        settings: of the user.
        clock: what is spent so far.
        share: of how many trainings the budget is.
    """

    def __init__(self, base: dict[str, Any], settings: tuple[str, ...], clock: Clock, share: float) -> None:
        self.base, self.settings, self.clock, self.share = base, settings, clock, share
        asked = self._recipe({})
        check_trackers(asked.training.track)
        self.device = choose_device(asked.training.device)
        self.gpu = self.device.type != "cpu"
        self.given = {key.partition("=")[0].strip() for key in settings}
        self.fixed_size = asked.data.size is not None
        self.model = asked.model.name if {"model", "model.name"} & self.given else None
        self.weights = has_weights()

    def _recipe(self, tree: dict[str, Any]) -> Recipe:
        """The base with more keys, and the settings of the user over all."""
        data = {**self.base["data"], **tree.get("data", {})}
        return recipe_of({**self.base, **tree, "data": data}, self.settings, "--set")

    def _load(self) -> Dataset:
        return load_dataset(self._recipe({}).data)

    def plan(self) -> AutoPlan:
        asked, dataset = self._recipe({}).data, None
        seen = look_at_files(asked)
        if seen is None:
            dataset = self._load()
            seen = look_at_images(dataset)
        images = _Images(max(1, int(0.7 * seen.count)), int(0.15 * seen.count), seen.typical, dense=seen.masks)
        budget = self.clock.budget.seconds
        if seen.reading > budget:
            say(
                f"reading {seen.count:,} images takes about {duration(seen.reading)}, if they are not kept in the cache, and the "
                f"budget is {self.clock.budget}"
            )
        once = images.side > CAMERA or 2 * seen.reading > READING * budget
        if dataset is None and once and not self.fixed_size:
            chosen = self._choose(images, Orientation())
            self.base["data"]["size"], self.fixed_size = list(chosen.size), True
        elif dataset is None and not self.fixed_size and seen.mixed:
            self.base["data"]["size"] = list(size_at(*seen.typical, CAMERA))  # in the proportions that most have
        dataset = dataset or self._load()
        dataset.split("train")
        shares, notes = fractions(dataset, {key.removeprefix("data.") for key in self.given})
        if shares:
            self.base["data"] |= shares
            dataset = self._load()
            notes += fractions(dataset, shares)[1]
        return self._plan_for(dataset, seen, notes)

    def _plan_for(self, dataset: Dataset, seen: Survey, notes: list[str]) -> AutoPlan:
        train, task, shape = dataset.split("train"), dataset.task, dataset.shape
        if self.clock.left < CERTAIN and "training.epochs" not in self.given:
            raise RequestError(self._impossible(self.clock.spent + CERTAIN, CERTAIN))
        orientation = Orientation(why="as augment is set")
        if not any(key.partition(".")[0] == "augment" for key in self.given):
            limit = LOOKING * self.clock.budget.seconds
            orientation = find_orientation(train, self.device, limit, lambda: self.clock.spent)
        counts = train.counts
        rare = bool(counts.max() > IMBALANCE * counts.min())
        images = _Images(
            len(train),
            0 if dataset.val is None else len(dataset.val),
            shape[:2],
            shape[2],
            len(dataset.classes),
            task.dense,
            rare,
        )
        chosen = self._choose(images, orientation)
        if chosen.size != shape[:2] and not self.fixed_size:
            self.base["data"]["size"] = list(chosen.size)
            dataset = self._load()
        # Pixels have changed, and so may what is known of them; the recipe is made of all keys again.
        tree = chosen.recipe.model_dump(mode="json")
        length, most = chosen.length, self._most(chosen)
        training = {"epochs": length.epochs}
        if length.images != len(train):
            training["images_per_epoch"] = length.images
        tree["training"] |= training
        recipe = self._recipe({**tree, "data": {}})
        epochs = recipe.training.epochs
        fixed = epochs != length.epochs or "training.epochs" in self.given
        if fixed:
            length = replace(length, epochs=epochs, seconds=chosen.load.seconds(epochs, length.images))
        total, budget = self.clock.spent + self.share * (length.seconds + chosen.after), self.clock.budget
        impossible, least = None, self.clock.spent + self.share * (chosen.load.seconds(1, 1) + chosen.certain)
        if least > POSSIBLE * budget.seconds:
            impossible = self._impossible(least, self.share * chosen.certain)
            notes.append(impossible)
        elif total > TOO_LATE * budget.seconds:
            notes.append(f"training is as long as it is set, and all takes about {duration(total)}, more than {budget}")
        shrunk = math.sqrt(math.prod(seen.typical) / math.prod(dataset.shape[:2]))
        if shrunk >= TINY:
            notes.append(
                f"images are read {shrunk:.0f} times smaller than in their files, so what is smaller there than about "
                f"{shrunk:.0f} pixels is lost; more time makes larger ones possible, or --set data.size=N sets the size"
            )
        if (few := self._few(dataset)) is not None:
            notes.append(few)
        lines = self._lines(dataset, seen, orientation, recipe, chosen, length, fixed)
        return AutoPlan(
            recipe,
            tuple(lines),
            tuple(notes),
            dataset,
            chosen.load,
            length,
            chosen.after,
            most,
            fixed,
            chosen.certain,
            impossible,
        )

    def _impossible(self, least: float, certain: float) -> str:
        """Why the budget cannot be kept.

        Args:
            least: seconds that all takes with a single step of training; ``certain``: of these, what follows it.
        """
        budget = self.clock.budget
        option = "--processor-minutes" if budget.processor else "--minutes"
        wanted = math.ceil(10 * (2 * least + 5) / 60) / 10
        return (
            f"{budget} cannot be kept: starting, reading the images and planning took {duration(self.clock.spent)}, and "
            f"calibration, metrics and the report take about {duration(certain)} here, whatever is trained. Give {option} "
            f"{wanted:g} or more; images that were read are kept in the cache, so the same command reads them faster now"
        )

    def _few(self, dataset: Dataset) -> str | None:
        """A proposal for few images."""
        count = sum(map(len, dataset.splits.values()))
        given = dataset.test is not None and "test" not in dataset.drawn
        if count >= FEW or given or "val" not in dataset.drawn or dataset.val is None:
            return None
        why = f"no images but the {len(dataset.val)} of val judge the network"
        if dataset.test is not None:
            why = f"a test split of {len(dataset.test)} images says little"
        words = ["train", "--data", self.base["data"]["source"], "--folds", str(FOLDS)]
        for setting in self.settings:
            words += ["--set", setting]
        words += [
            "--processor-minutes" if self.clock.budget.processor else "--minutes",
            f"{self.clock.budget.minutes:g}",
        ]
        much = "with smaller networks or fewer epochs in the same time"
        return f"{why}. Cross-validation judges by all {count}, {much}: {command(*words)}"

    def _most(self, option: _Option) -> int:
        """Epochs of which more bring little."""
        return longest(option.load, math.inf, MOST * option.passes).epochs

    def _choose(self, images: _Images, orientation: Orientation) -> _Option:
        """The best candidate for images, all of which are timed from the fastest on until one is far too slow."""
        turns = orientation.turns and abs(images.size[0] - images.size[1]) < 1
        weights = self.weights or "model.weights" in self.given
        rungs = ladder(images.side, images.dense, turns, self.gpu, weights)
        if self.model is not None:  # at each size
            sizes = {each.side: each for each in reversed(rungs)}
            rungs = [replace(each, model={"name": self.model}) for each in reversed(sizes.values())]
        elif "model.weights" in self.given:
            rungs = [each for each in rungs if each.model["name"] == PRETRAINED[0]] or rungs[-1:]
        if self.fixed_size:  # all of the size that images have
            rungs = [replace(each, side=math.ceil(images.side)) for each in rungs]
        options: list[_Option] = []
        for candidate in reversed(rungs):
            option = self._timed(candidate, images, orientation)
            if option is None:
                break
            options.insert(0, option)
            if option.length.passes < HOPELESS * option.passes:
                break
        if not options:
            raise RequestError(
                "the memory is not enough for any network on these images; give a smaller --set data.size=N"
            )
        return options[best([each.length for each in options], [each.passes for each in options])]

    def _timed(self, candidate: Candidate, images: _Images, orientation: Orientation) -> _Option | None:
        """A candidate with its pace on this machine; None if the memory is not enough for it."""
        size = size_at(*images.size, candidate.side)
        batch = batch_of(images.train, images.dense)
        tree = tree_of(candidate, size, orientation, batch, images.classes, images.rare)
        recipe = self._recipe(tree)
        check_parts(recipe)
        drawn = Dataset(train=_drawn(recipe.training.batch_size, size, images))
        try:
            check_memory(recipe, drawn, self.device)
        except RequestError:
            return None
        settings = recipe.training
        pace = measure(recipe, drawn, self.device, self.clock, TIMING * self.clock.budget.seconds / self.share)
        share = 0.0 if settings.progressive is None else settings.progressive.share
        load = Load(images.train, images.val, min(settings.batch_size, images.train), share, pace)
        budget = self.clock.budget.seconds / self.share
        views = len(views_of(recipe.evaluation.tta, size))
        if (views + 1) * images.val * pace.predict > VIEWS * budget:
            recipe = self._recipe({**tree, "evaluation": {**tree["evaluation"], "tta": "none"}})
        after, sure = keep_for(pace, images.train, images.val, size, recipe, budget)
        seconds = AIM * budget - self.clock.spent / self.share - after
        passes = enough(candidate.passes, images.train)
        return _Option(recipe, size, passes, load, longest(load, seconds, MOST * passes), after, sure)

    def _lines(
        self,
        dataset: Dataset,
        seen: Survey,
        orientation: Orientation,
        recipe: Recipe,
        chosen: _Option,
        length: Length,
        fixed: bool,
    ) -> list[str]:
        """The plan in five lines."""
        train, (height, width, channels), settings = dataset.split("train"), dataset.shape, recipe.training
        sizes = ", ".join(f"{name} {len(part):,}" for name, part in dataset.splits.items())
        few, many = int(train.counts.min()), int(train.counts.max())
        grouped = "" if train.groups is None else f", {len(np.unique(train.groups)):,} groups in train"
        each = f"{few:,}" if few == many else f"{few:,} to {many:,}"
        native = " x ".join(f"{round(side):,}" for side in seen.typical)
        read = "as they are" if (height, width) == tuple(map(round, seen.typical)) else f"from files of about {native}"
        squashed = seen.squashed((height, width))
        about = {1: "gray", 3: "color"}.get(channels, f"{channels} channels")
        model = recipe.model
        start = "from scratch"
        if (weights := model.options.get("weights", "none")) != "none":
            start = f"from {weights} weights" if weights == "pretrained" else f"from the weights {weights}"
        elif min(height, width) >= 48 and not dataset.task.dense:
            start = f"from scratch, since no weights of {PRETRAINED[0]} are on this machine"
        pace, device = chosen.load.pace, f"{self.device} ({choose_format(settings.precision, self.device)}"
        threads = torch.get_num_threads()
        device += f", {threads} thread{'s' * (threads > 1)})" if self.device.type == "cpu" else ")"
        count = parameters(sketch_model(model, len(dataset.classes), dataset.shape))
        small = settings.small_epochs(0)
        grown = f", the first {small} on images of {settings.progressive.size} pixels" if settings.progressive else ""
        pick = "; rare classes are drawn more often" if recipe.sampler != "none" else ""
        enough_said = ""
        if fixed:
            enough_said = "; the number is set, and kept to whatever the time"
        elif settings.epochs >= self._most(chosen):
            enough_said = "; more would bring little"
        total = self.clock.spent + self.share * (length.seconds + chosen.after)
        so_far = f"{'all trainings ' if self.share > 1 else ''}with the {duration(self.clock.spent)} so far"
        often = ""
        if length.images > len(train):
            often = f", each of the {len(train):,} {length.images // len(train)} times"
        elif length.images < len(train):
            often = f", a part of the {len(train):,}"
        return [
            f"data      {sizes} images, {len(dataset.classes)} classes, {each} {dataset.task.counted} each in train{grouped}",
            f"images    {height} x {width}, {about}, {read}; {orientation}" + (f"; {squashed}" if squashed else ""),
            f"network   {model.name}, {count:,} parameters, {start}; {1000 * pace.step:.0f} ms per step of "
            f"{settings.batch_size} on {device}",
            f"training  {settings.epochs} epoch{'s' * (settings.epochs > 1)} of {length.images:,} images{often}{grown}, about "
            f"{duration(length.seconds)}"
            f"{pick}{enough_said}",
            f"then      calibration, metrics, explanations, stress test and report, about {duration(chosen.after)}; "
            f"{so_far} about {duration(total)} of {self.clock.budget}",
        ]


def _drawn(batch: int, size: tuple[int, int], images: _Images) -> ImageSet:
    """Random images to time steps with."""
    rng = np.random.default_rng(0)
    count = min(batch, images.train)
    pixels = rng.integers(0, 256, (count, *size, images.channels), dtype=np.uint8)
    classes = tuple(str(number) for number in range(images.classes))
    targets: np.ndarray = np.arange(count, dtype=np.int64) % images.classes
    if images.dense:
        targets = rng.integers(0, images.classes, (count, *size), dtype=np.uint8)
    ids = np.arange(count).astype(str)
    task = find_task("segmentation" if images.dense else "classification")
    return ImageSet(pixels, targets, classes, ids, task=task)


def measure(recipe: Recipe, dataset: Dataset, device: torch.device, clock: Clock, seconds: float) -> Pace:
    """Time training steps on the images of ``dataset.train``, one batch, and their prediction, by the budget's clock.

    Args:
        seconds: that timing may take, about; at least `TIMED` steps are timed.
    """
    wall, processor = clock.wall, clock.processor
    trainer, _ = build_trainer(recipe, dataset, device, quiet=True)
    batch = trainer.train.take(np.arange(len(dataset.split("train"))))

    def step() -> float:
        began = clock.spent
        trainer.train_step(*batch).cpu()  # which waits for the device
        return clock.spent - began

    def typical() -> float:
        for _ in range(WARM):
            if (took := step()) > SLOW * seconds:
                return took  # there is no time to look more closely
        times: list[float] = []
        while len(times) < TIMED or sum(times) < seconds / 3:
            times.append(step())
        return max(statistics.median(times), 1e-6)

    small = typical()
    if trainer.progressive is not None:
        trainer.at.epoch = trainer.progressive.epochs
        whole = typical()
    else:
        whole = small
    times = []
    for _ in range(TIMED):  # the first is slow
        began = clock.spent
        for _, log_p, _ in predict_batches(trainer.model, trainer.train, trainer.normalize, trainer.format):
            log_p.cpu()
        times.append(clock.spent - began)
        if sum(times) > SLOW * seconds:
            break
    predict = max(statistics.median(times) / len(batch[1]), 1e-9)
    busy = 1.0
    if not clock.budget.processor:
        busy = min(max((clock.wall - wall) / max(clock.processor - processor, 1e-6), 1.0), BUSIEST)
    return Pace(whole, small, predict, multiply_adds(trainer.model, dataset.shape), busy)


def keep_for(
    pace: Pace, train: int, val: int, size: tuple[int, int], recipe: Recipe, budget: float
) -> tuple[float, float]:
    """Seconds that are kept for what follows training, see `afterwards`; and those of them that what is never left out takes."""
    sure = certain(pace, train, val, size, recipe)
    return max(sure, min(afterwards(pace, train, val, size, recipe, budget), RESERVED * budget)), sure


def certain(pace: Pace, train: int, val: int, size: tuple[int, int], recipe: Recipe) -> float:
    """Seconds that what is never left out takes, about; see `afterwards`."""
    views = len(views_of(recipe.evaluation.tta, size))
    looks = val * (views + 2 * (views > 1)) + 3 * min(train, FEWEST_SEEN) * bool(val)
    return CERTAIN * pace.busy + looks * pace.predict


def afterwards(pace: Pace, train: int, val: int, size: tuple[int, int], recipe: Recipe, budget: float) -> float:
    """Seconds that calibration, evaluation, the stress test and the report take, about.

    Args:
        train, val: images.
        size: height and width.
        budget: seconds.
    """
    if not val:
        return AFTERWARDS
    views = len(views_of(recipe.evaluation.tta, size))
    looks = (
        2 * min(train, DETECTOR_IMAGES) + val * (3 + 2 * views) + min(max(EXPLAINED / pace.work, val), MOST_EXPLAINED)
    )
    disturbed = min(1.0, val / 200) * DISTURBED * (pace.predict + DISTURBING * size[0] * size[1])
    stress = 0.0 if recipe.evaluation.stress == "off" else min(disturbed, max(STRESS * budget, LEAST_STRESS))
    return AFTERWARDS + looks * pace.predict + stress


class _Keeper:
    """Keeps a training to its budget: looks at the time after every epoch, and corrects the number of epochs; ends it within an
    epoch if it has to; and says how long what follows may take."""

    def __init__(self, run: Run, trainer: Trainer, found: AutoPlan, clock: Clock, quiet: bool) -> None:
        self.run, self.trainer, self.plan, self.clock, self.quiet = run, trainer, found, clock, quiet
        self.began = self.before = clock.spent
        self.measured = 0  # epochs done at `before`
        # Times longer than predicted that steps take, the mean of what was and what the last epoch shows.
        self.slower = found.slower
        self.looked = 0  # epochs done when the number was corrected
        self.seen: int | None = None  # images that the detector is fitted on, if they are fewer than else

    def look(self) -> None:
        """Correct the number of epochs, if what is left of the budget asks for it."""
        trainer, plan, now = self.trainer, self.plan, self.clock.spent
        done, epochs, images = trainer.at.epoch, trainer.settings.epochs, plan.length.images
        if (ended := trainer.settings.ended) is not None:
            self.run.write_recipe(trainer.recipe)
            if not self.quiet:
                say(
                    f"the time is over: training ends after {ended.steps} steps of epoch {done}, written into the recipe"
                )
            return
        expected = plan.load.first(done, epochs, images) - plan.load.first(self.measured, epochs, images)
        if expected > NOTICED * self.clock.budget.seconds or done >= epochs:
            self.slower, self.before, self.measured = (self.slower + (now - self.before) / expected) / 2, now, done
        if plan.fixed or done >= epochs:
            return
        rest = self.slower * (plan.load.seconds(epochs, images) - plan.load.first(done, epochs, images))
        budget = self.clock.budget.seconds
        longer = max(1.0, self.slower)
        after = max(plan.certain * longer, min(plan.after * longer, RESERVED * budget))
        end = (now + rest + after) / budget
        due = done - self.looked >= max(1, round(AGAIN * epochs))
        more = end < EARLY and epochs < plan.most and done <= epochs / 2
        if not (end > TOO_LATE or (due and (end > LATE or more))):
            return
        wanted = max(corrected(plan.load, plan.length, done, self.slower, AIM * budget - now - after, plan.most), done)
        if wanted == epochs:
            return
        self.looked = done
        trainer.correct(wanted)
        self.run.write_recipe(trainer.recipe)
        if not self.quiet:
            say(
                f"an epoch takes {self.slower:.2f} times as long as planned, and all would take {duration(end * budget)} of "
                f"{duration(budget)}: {wanted} epochs instead of {epochs}, written into the recipe"
            )

    def is_late(self) -> bool:
        """Whether what follows training for certain would end too late if there was another step."""
        plan, at, now, budget = self.plan, self.trainer.at, self.clock.spent, self.clock.budget.seconds
        if plan.fixed:
            return False
        epochs, images = self.trainer.settings.epochs, plan.length.images
        expected = plan.load.first(at.epoch, epochs, images) - plan.load.first(self.measured, epochs, images)
        expected += plan.load.part(at.batch, at.epoch, epochs)
        # Of a short time, a step that others delayed would be most.
        slower = max(self.slower, 1 + (now - self.before - expected) / max(expected, NOTICED * budget))
        return now + plan.certain * max(1.0, slower) + plan.load.after_epoch * slower > LAST * budget

    def left(self) -> float:
        """What of the budget is left for explanations, so that there is time for the report."""
        return self.clock.left - REPORT * max(1.0, self.slower)

    def detector_images(self) -> int:
        """How many images the out-of-distribution detector can be fitted on. As many are predicted three times."""
        longer, budget = max(1.0, self.slower), self.clock.budget.seconds
        seconds = min(DETECTING * budget, (self.clock.left - self.plan.certain * longer) / 2)
        most = int(max(seconds, 0.0) / (3 * self.plan.load.pace.predict * longer))
        most = min(max(most, FEWEST_SEEN), DETECTOR_IMAGES)
        self.seen = most if most < min(self.plan.load.train, DETECTOR_IMAGES) else None
        return most

    def stress_seconds(self) -> float:
        """What the stress test may take."""
        cores = torch.get_num_threads() if self.clock.budget.processor else 1
        return max(0.0, min(max(STRESS * self.clock.budget.seconds, LEAST_STRESS), self.left() - 1) / cores)

    def before_report(self, run: Run) -> None:
        """Record what the report says."""
        given = run.results.budget
        assert given is not None
        run.add_results(budget=given.model_copy(update={"detector_images": self.seen}))

    @property
    def limits(self) -> Limits:
        return Limits(self.look, self.is_late, self.stress_seconds, self.left, self.detector_images, self.before_report)
