"""The protocol of a task. A task knows arrays and tensors alone; what it takes to train, judge and compare follows from it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import numpy as np

from petriscope.core.errors import RequestError
from petriscope.metrics.passes import PassMetrics
from petriscope.metrics.statistics import Sample

if TYPE_CHECKING:  # torch is imported where it is used: reading data needs the task, and no torch
    import pandas as pd
    from torch import Tensor

PredictedBatches = Iterable[tuple[np.ndarray, "Tensor", "Tensor"]]  # indices, log-probabilities [B, K, ...], targets


class Labeled(Protocol):
    """What a task is told of a split; `petriscope.data.imageset.ImageSet` has it."""

    @property
    def targets(self) -> np.ndarray: ...
    @property
    def classes(self) -> tuple[str, ...]: ...
    @property
    def ids(self) -> np.ndarray: ...
    @property
    def groups(self) -> np.ndarray | None: ...
    def __len__(self) -> int: ...


@dataclass(frozen=True)
class MetricInfo:
    """A metric as results spell it and as people read it.

    Args:
        key: in results and recipes.
        name, meaning: for pages; the meaning without a full stop.
        percent: whether it is a share, which is written in percent.
        higher_is_better: whether more of it is better.
    """

    key: str
    name: str
    meaning: str
    percent: bool = True
    higher_is_better: bool = True


class Task(ABC):
    """What targets are, and what follows from it.

    The methods that raise `RequestError` here are about what only some tasks can do.
    """

    name: ClassVar[str]
    about: ClassVar[str]  # what its targets are called in messages, in the plural: labels, masks
    targets_are: ClassVar[str]  # their dtype and shape, for messages
    dtype: ClassVar[str]  # in which targets are hashed
    dense: ClassVar[bool] = False  # targets have the height and width of their images, and models give logits per pixel
    exclusive: ClassVar[bool] = True  # an image, or a pixel, has one class; else it has any number of them
    loss_names: ClassVar[Mapping[str, str]] = {}  # losses that stand for others where a recipe names them
    counted: ClassVar[str] = "images"  # what classes are counted in
    monitors: ClassVar[tuple[str, ...]]  # metrics that training may watch; the first is the default
    metrics: ClassVar[tuple[MetricInfo, ...]]  # of an evaluation, the one that counts most first
    per_class: ClassVar[MetricInfo | None] = None  # a share per class that sums up an evaluation on the terminal
    compared: ClassVar[tuple[str, ...]] = ()  # metrics that runs can be compared by; the first is the default
    calibrates: ClassVar[bool] = False  # a temperature, thresholds and prediction sets can be fitted on val
    has_stress_test: ClassVar[bool] = False  # the stress test knows how to judge it
    judges_subsets: ClassVar[bool] = False  # some of the images of a split can be judged on their own

    def info(self, key: str) -> MetricInfo:
        """How people read a metric; one that the task does not list is named after its key."""
        for info in self.metrics:
            if info.key == key:
                return info
        name = key.replace("_", " ")
        return MetricInfo(key, name[:1].upper() + name[1:], "", percent=key != "loss", higher_is_better=key != "loss")

    # ------------------------------------------------------------------------------------------------- targets

    @abstractmethod
    def accepts(self, targets: np.ndarray) -> bool:
        """Whether an array may hold targets of this task, by its dtype and number of axes."""

    @abstractmethod
    def check(self, targets: np.ndarray, classes: Sequence[str], shape: tuple[int, int, int], ids: np.ndarray) -> None:
        """Refuse targets that do not fit their images, [H, W, C], or their classes.

        Raises:
            DataError: which image's target, and why.
        """

    @abstractmethod
    def amounts(self, targets: np.ndarray, classes: int) -> np.ndarray:
        """How much each image has of each class, in `counted`, int64 [N, K]."""

    def counts(self, targets: np.ndarray, classes: int) -> np.ndarray:
        """The same over all images, int64 [K]."""
        return self.amounts(targets, classes).sum(0)

    @abstractmethod
    def strata(self, targets: np.ndarray, classes: int) -> np.ndarray:
        """The class that each image counts as where classes are to be balanced, int64 [N]."""

    def split_amounts(self, targets: np.ndarray, classes: int) -> np.ndarray:
        """What is shared out evenly where groups are drawn into splits, whole numbers [N, A]."""
        return self.amounts(targets, classes)

    def loss_counts(self, targets: np.ndarray, classes: int) -> np.ndarray:
        """What losses compute class weights from: images per class, int64 [K], or amounts per image, int64 [N, K]."""
        return self.counts(targets, classes)

    def relabel(self, targets: np.ndarray, table: np.ndarray) -> np.ndarray:
        """Targets whose class k has become class ``table[k]``, int64 [K]; no image may have a class that becomes -1."""
        raise RequestError(f"{self.about} cannot be matched to the classes of another source")

    def names(self, targets: np.ndarray, classes: Sequence[str]) -> list[str]:
        """What each image is, for people: the class that it counts as, or its labels."""
        return [classes[label] for label in self.strata(targets, len(classes)).tolist()]

    def single_class(self, targets: np.ndarray) -> np.ndarray:
        """Which images have one class alone, although they could have several, bool [N]."""
        raise RequestError(f"data.drop_single_class is about masks, and the targets are {self.about}")

    def one_vs_rest(self, targets: np.ndarray, index: int) -> np.ndarray:
        """Targets of two classes: 1 for the class ``index``, 0 for all others."""
        raise RequestError(f"data.only is about masks, and the targets are {self.about}")

    # ------------------------------------------------------------------------------------------------ training

    def loss_targets(self, targets: Tensor) -> Tensor:
        """Targets as augmentation gives them, in the form that losses take."""
        return targets

    def log_probabilities(self, logits: Tensor) -> Tensor:
        """What a network gives, [B, K, ...], as logarithms of probabilities of the same shape."""
        return logits.log_softmax(1)

    def probabilities(self, logits: Tensor) -> Tensor:
        """What a network gives, [B, K, ...], as probabilities of the same shape."""
        return logits.softmax(1)

    @abstractmethod
    def hits(self, logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """How many predictions of a batch are right, and how many could be: two scalars.

        Args:
            logits: float [B, K] or [B, K, H, W].
            targets: as `loss_targets` gives them; shares of classes, float [B, K], where images were mixed.
        """

    # ------------------------------------------------------------------------------------------------- judging

    @abstractmethod
    def collect(self, batches: PredictedBatches, count: int, classes: int, full: bool = False) -> Any:
        """What is kept of a network's predictions over ``count`` images, to compute metrics from.

        Args:
            full: keep also what only the metrics of an evaluation need.
        """

    @abstractmethod
    def quick(self, outputs: Any, images: Labeled) -> dict[str, float]:
        """The `monitors`, from what `collect` gives."""

    def score(self, outputs: Any, images: Labeled) -> float:
        """The metric that networks are chosen by, the more the better."""
        raise RequestError(f"models of the task {self.name} cannot be joined")

    @abstractmethod
    def judge(self, outputs: Any, images: Labeled, resamples: int) -> dict[str, Any]:
        """All metrics of an evaluation as `petriscope.core.results.Evaluation` reads them: ``n``; each metric, and its
        interval as ``<name>_ci95``; ``per_class``; ``confusion``."""

    def judge_subset(
        self, outputs: Any, images: Labeled, rows: np.ndarray, groups: np.ndarray | None, resamples: int
    ) -> dict[str, Any]:
        """A few metrics of some of the images, as `petriscope.core.results.Subset` reads them: ``n``; ``groups``, where
        intervals are over groups; and each metric, with the first of `metrics` and its interval among them.

        Args:
            outputs, images: of the whole split.
            rows: the images, int64 [n], at least one.
            groups: the groups of these, strings [n]; None: intervals are over images.
        """
        raise RequestError(f"results of the task {self.name} cannot be given by a column")

    @abstractmethod
    def table(self, outputs: Any, images: Labeled, split: str) -> pd.DataFrame:
        """One row per image: id, split, and what `sample` needs."""

    # ---------------------------------------------------------------------------------------------- comparing

    def sample(self, tables: Sequence[Mapping[str, np.ndarray]], metric: str) -> Sample:
        """A metric of several networks over the same images, ready for paired tests.

        Args:
            tables: columns of `table`, of each network, in the same order of images.
        """
        raise RequestError(f"runs of the task {self.name} cannot be compared yet")

    def compares(self, column: str) -> bool:
        """Whether `sample` needs a column of `table`, beside id and split."""
        return True

    def same_truth(self, columns: Iterable[str]) -> list[str]:
        """The columns of `table` that hold targets, which runs compared must share."""
        return [column for column in columns if column == "target"]

    # --------------------------------------------------------------------------------------------- robustness

    def chosen(self, probabilities: np.ndarray) -> np.ndarray:
        """What the stress test takes as the prediction, from probabilities, float32 [B, K, ...]: the most probable class."""
        return probabilities.argmax(1)

    def mark(self, predicted: np.ndarray, targets: np.ndarray, classes: int) -> np.ndarray:
        """What is kept of each image in one pass of the stress test, [B, ...].

        Args:
            predicted: what `chosen` gives: classes, int64 [B] or [B, H, W].
        """
        raise RequestError(f"there is no stress test for the task {self.name}")

    def judge_passes(self, marks: np.ndarray, images: Labeled, resamples: int) -> PassMetrics:
        """The metric of every pass over the same images, from what `mark` kept, [P, N, ...]."""
        raise RequestError(f"there is no stress test for the task {self.name}")

    def batch_size(self, largest: int, shape: tuple[int, int, int]) -> int:
        """Images whose predictions are held at a time, at most ``largest``."""
        return largest


def gather(batches: PredictedBatches) -> np.ndarray:
    """The probabilities of all images of a split in memory, float32 [N, K, ...]."""
    import torch

    return torch.cat([log_p.exp().cpu() for _, log_p, _ in batches]).numpy()
