"""Adapt a trained network to labeled images of another place, such as another microscope, without unlearning the old ones.

The network is trained on from its weights. On average, half of a batch are images of the new place, and half are rehearsed: they
are of those that it learned from (Robins, 1995, "Catastrophic forgetting, rehearsal and pseudorehearsal", Connection Science
7:123). Batch norm sees both. The weights may then go only a part of the way from those before to those after the training, which
often is better at both places (Wortsman et al., 2022, "Robust fine-tuning of zero-shot models", arXiv:2109.01903). How long, at
which rate, which parts of the network are trained, and how far its weights go is chosen by cross-validation on the images of
the new place. So is whether to train at all.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from petriscope.core.channels import wanted
from petriscope.core.errors import Diverged
from petriscope.core.progress import say
from petriscope.core.recipe import TTA, DataSection, FinetuneSection, Part, Recipe, SourceSection
from petriscope.data.batches import Batches
from petriscope.data.domains import as_domain, share_pixels
from petriscope.data.folds import NEVER, folds_of_units
from petriscope.data.imageset import ImageSet
from petriscope.data.recognition import join_sets
from petriscope.inference.predictor import Predictor
from petriscope.metrics.classification import nll_each
from petriscope.metrics.multilabel import label_loss_each, quick_label_metrics
from petriscope.training.loop import Trainer
from petriscope.trust.multilabel import fit_labels
from petriscope.trust.temperature import fit_temperature, scale

FOLDS = 5
BATCH, STEPS = 32, 30  # images per step, and steps per epoch of an adaptation
WAYS = (0.75, 0.5, 1.0)  # how far the weights go, the most promising first
SHARE = 0.5  # of a batch that is of the new place, on average
HOME = "home"  # the domain of the images that a network learned from, if they have none


@dataclass(frozen=True)
class Setting:
    """One way of adapting.

    Args:
        train: the parts of the network that are trained, as ``finetune.train`` names them.
        lr: the learning rate.
        epochs: of `STEPS` steps; 0: the network stays as it is.
        way: how far the weights go from those before the training to those after it, above 0 to 1.
    """

    train: str
    lr: float
    epochs: int
    way: float = 1.0

    def __str__(self) -> str:
        if not self.epochs:
            return "the network as it is"
        part = "" if self.way == 1 else f", weights {100 * self.way:g} % of the way"
        return f"{self.train}, rate {self.lr:g}, {self.epochs * STEPS} steps{part}"


AS_IS = Setting("none", 0.0, 0)
SETTINGS = (Setting("all", 1e-3, 6), Setting("all", 3e-3, 6), Setting("last 50 %", 1e-3, 3))  # the most promising first


def fitting(settings: Sequence[Setting], folds: int, pace: float, limit: float) -> list[Setting]:
    """The settings that can be cross-validated in time, with the best of them trained once more on all images. If not even the
    first can, it alone, with fewer epochs.

    Args:
        settings: the most promising first.
        pace, limit: seconds that an epoch takes, and that there are.
    """
    out: list[Setting] = []
    spent = 0
    for setting in settings:
        last = max(each.epochs for each in [*out, setting])
        if pace * (spent + setting.epochs * folds + last) <= limit:
            out.append(setting)
            spent += setting.epochs * folds
    if out:
        return out
    first = settings[0]
    return [replace(first, epochs=max(1, min(first.epochs, int(limit / (pace * (folds + 1))))))]


def folds_of(targets: np.ndarray, units: np.ndarray, seed: int, has: np.ndarray | None = None) -> np.ndarray:
    """The fold of `FOLDS` that holds out each image; see `petriscope.data.folds.folds_of_units`."""
    return folds_of_units(targets, units, seed, FOLDS, has)


def joined(home: ImageSet, new: ImageSet, name: str, section: DataSection) -> tuple[ImageSet, ImageSet]:
    """Images of the old and the new place, each as images of a domain. They share one array of pixels, and those of the old
    place keep their domains if they are of several sources.

    Args:
        name: of the new domain.
        section: how those of the old place were read.
    """
    parts = share_pixels({HOME: {"train": home}, name: {"train": new}}, section.memory)
    old, added = parts[HOME]["train"], parts[name]["train"]
    grouped = home.groups is not None or new.groups is not None
    return as_old(old, section, grouped), as_domain(added, name, home.classes, grouped)


def as_old(images: ImageSet, section: DataSection, grouped: bool) -> ImageSet:
    """Images of the old place as those of domains, called as before; ``grouped``: some images are in groups, see `as_domain`."""
    if section.sources is None or images.domains is None:
        return as_domain(images, HOME, images.classes, grouped, prefix=False)
    return replace(images, groups=images.ids) if grouped and images.groups is None else images


def with_domain(recipe: Recipe, images: ImageSet, name: str, source: SourceSection) -> Recipe:
    """The recipe with one more source, whose images are drawn `SHARE` of the time. Images from elsewhere are read at its scale
    from now on, and those of other sources at the scale that they had.

    Args:
        recipe: with which the network was trained.
        images: all training images, see `joined`.
        name: of the domain.
        source: of its images; the weight is computed here.
    """
    assert images.domains is not None
    before = recipe.data.sources or {HOME: SourceSection(source=recipe.data.source or "", prefix=False)}
    if source.scale != recipe.data.scale:
        before = {
            key: each.model_copy(update={"scale": each.scale or recipe.data.scale or 1.0})
            for key, each in before.items()
        }
    domains = images.domains.tolist()
    rest = sum(before[domain].weight for domain in domains if domain != name)
    weight = SHARE / (1 - SHARE) * rest / domains.count(name)
    height, width, _ = images.shape
    changes = {
        "source": None,
        "sources": {**before, name: source.model_copy(update={"weight": weight})},
        "scale": source.scale,
        "audit": None,
        "splits": None,
        "leave_out": None if recipe.data.sources is None else recipe.data.leave_out,
        "size": (height, width),
        "channels": wanted(images.channels),
    }
    return recipe.model_copy(update={"data": recipe.data.model_copy(update=changes)})


def with_setting(recipe: Recipe, setting: Setting) -> Recipe:
    """The recipe of an adaptation: as the network was trained, but shorter and from its weights."""
    if not setting.epochs:
        return recipe
    changes = {
        "epochs": setting.epochs,
        "corrections": (),
        "ended": None,
        "batch_size": BATCH,
        "images_per_epoch": BATCH * STEPS,
        "ema": None,
        "swa": None,
        "progressive": None,
        "keep": "last",
        "patience": None,
        "compile": False,
    }
    return recipe.model_copy(
        update={
            "sampler": "none",
            "distill": None,
            "finetune": FinetuneSection(train=setting.train),
            "optimizer": Part(name="adamw", lr=setting.lr, weight_decay=0.05),
            "schedule": Part(name="cosine"),
            "training": recipe.training.model_copy(update=changes),
        }
    )


def tune(predictor: Predictor, recipe: Recipe, images: ImageSet) -> tuple[Predictor, Trainer]:
    """Train the network of a predictor on. The predictor itself does not change.

    Args:
        recipe: see `with_setting`.
        images: see `joined`.

    Returns:
        the predictor, and the trainer that made it, with its history.

    Raises:
        Diverged: the rate is too high for this network.
    """
    network = copy.deepcopy(predictor.model)
    batches = Batches(images, predictor.device, recipe.data.memory)
    trainer = Trainer(network, recipe, batches, None, predictor.normalize, quiet=True)
    network.load_state_dict(trainer.fit())
    return replace(predictor, model=network.eval(), recipe=recipe), trainer


def part_of_the_way(before: Predictor, after: Predictor, way: float) -> Predictor:
    """The predictor ``after`` a training, with weights between those ``before`` and after it; with batch norm's statistics too.

    Args:
        way: 0 to 1, all of the way.
    """
    if way == 1:
        return after
    old = before.model.state_dict()
    state = {
        name: torch.lerp(old[name], value, way) if value.is_floating_point() else value
        for name, value in after.model.state_dict().items()
    }
    network = copy.deepcopy(after.model)
    network.load_state_dict(state)
    return replace(after, model=network)


Outputs = dict[TTA, np.ndarray]  # probabilities before temperature scaling, float32 [N, K]


@dataclass(frozen=True, eq=False)
class CrossValidated:
    """The predictions of a setting for images that were held out.

    Args:
        setting: how they were adapted.
        raw: NaN for images that are never held out.
    """

    setting: Setting
    raw: Outputs

    @property
    def held_out(self) -> np.ndarray:
        """Which images were held out, int64 [M]."""
        return np.flatnonzero(np.isfinite(next(iter(self.raw.values()))).all(1))

    def judge(self, images: ImageSet, occurs: np.ndarray | None = None) -> tuple[float, float]:
        """Accuracy, or mAP of several labels, and mean negative log-likelihood of the images that were held out, for the first
        test-time augmentation. The likelihood is that after a temperature, or the scaling of each label, which is fitted on
        them, because one will be fitted in any case.

        Args:
            images: all N.
            occurs: which classes occur, bool [K]; None: all.
        """
        scaled, losses = self._scaled(images, occurs)
        right = images.targets[self.held_out]
        if not images.task.exclusive:
            return quick_label_metrics(scaled, right)["map"], float(losses.mean())
        return float((scaled.argmax(1) == right).mean()), float(losses.mean())

    def losses(self, images: ImageSet, occurs: np.ndarray | None = None) -> np.ndarray:
        """The negative log-likelihood of each image that was held out, float [M]; see `judge`."""
        return self._scaled(images, occurs)[1]

    def _scaled(self, images: ImageSet, occurs: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        rows = self.held_out
        raw, right = next(iter(self.raw.values()))[rows], images.targets[rows]
        if not images.task.exclusive:
            scaled = fit_labels(raw, right).scaled(raw)
            return scaled, label_loss_each(scaled, right)
        if occurs is not None:
            raw = raw * occurs
            raw = raw / np.maximum(raw.sum(1, keepdims=True), 1e-12)
        scaled = scale(raw, fit_temperature(raw, right))
        return scaled, nll_each(scaled, right)


def chosen_first(
    found: Sequence[CrossValidated], images: ImageSet, occurs: np.ndarray | None = None
) -> list[CrossValidated]:
    """The settings, the chosen one first and then those with the lower mean negative log-likelihood.

    Few images cannot tell settings apart that are nearly as good, and the lowest value is often luck. So the most promising is
    taken of those that are within a standard error of the lowest (Breiman et al., 1984, "Classification and regression trees").
    The network stays as it is only where no setting has a lower value.

    Args:
        found: of `cross_validate`, the most promising setting first after the network as it is.
        images, occurs: see `CrossValidated.judge`.
    """
    losses = [each.losses(images, occurs) for each in found]
    order = sorted(range(len(found)), key=lambda at: float(losses[at].mean()))
    lowest = losses[order[0]]
    as_is = next((each.mean() for each, one in zip(losses, found, strict=True) if not one.setting.epochs), np.inf)
    chosen = order[0]
    if found[chosen].setting.epochs:
        chosen = next(
            at
            for at, each in enumerate(losses)
            if each.mean() < as_is and each.mean() - lowest.mean() <= _standard_error(each - lowest)
        )
    return [found[chosen], *(found[at] for at in order if at != chosen)]


def _standard_error(values: np.ndarray) -> float:
    return float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else 0.0


def cross_validate(
    predictor: Predictor,
    old: ImageSet,
    new: ImageSet,
    name: str,
    folds: np.ndarray,
    ttas: Sequence[TTA],
    settings: Sequence[Setting] = SETTINGS,
    advance: Callable[[], object] = lambda: None,
) -> list[CrossValidated]:
    """Predict each image of the new place with networks that were adapted without it.

    Args:
        predictor: its recipe has the seed of the trainings.
        old, new: see `joined`; ``name``: of the new domain.
        folds: of the new images, see `folds_of`.
        ttas: kinds of test-time augmentation to predict with.
        advance: called after each training.

    Returns:
        one for the network as it is, and one for each setting and each of `WAYS`. A setting with which training diverges is left
        out, which is said.
    """
    empty = np.full((len(new), len(new.classes)), np.nan, dtype=np.float32)
    plain: Outputs = {tta: empty.copy() for tta in ttas}
    _keep(plain, np.flatnonzero(folds != NEVER), new, predictor)
    found = [CrossValidated(AS_IS, plain)]
    for setting in settings:
        raws: dict[float, Outputs] = {way: {tta: empty.copy() for tta in ttas} for way in WAYS}
        try:
            for fold in np.unique(folds[folds != NEVER]):
                held = np.flatnonzero(folds == fold)
                rest = join_sets([old, new.subset(np.flatnonzero(folds != fold))])
                recipe = with_setting(with_domain(predictor.recipe, rest, name, SourceSection(source="")), setting)
                tuned, _ = tune(predictor, recipe, rest)
                for way, raw in raws.items():
                    _keep(raw, held, new, part_of_the_way(predictor, tuned, way))
                advance()
        except Diverged as error:
            say(f"note: {setting}: left out, because training diverged ({error})")
            continue
        found += [CrossValidated(replace(setting, way=way), raw) for way, raw in raws.items()]
    return found


def _keep(outputs: Outputs, held: np.ndarray, new: ImageSet, predictor: Predictor) -> None:
    """Predict the images that are held out."""
    batches = Batches(new.subset(held), predictor.device, predictor.recipe.data.memory)
    for tta, raw in outputs.items():
        raw[held] = predictor.look(batches, tta)
