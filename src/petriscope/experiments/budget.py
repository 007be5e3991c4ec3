"""How long a training may be: from measured times of its steps to a number of epochs that fits into a time."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from petriscope.core.errors import RequestError
from petriscope.core.launch import beginning, processor_time

FEWEST = 12  # epochs, where there is time: val is looked at, and the plan corrected, after each
STEPS = 10  # of an epoch at least: a set of few images is repeated within one
EPOCH = 0.03  # seconds that the end of an epoch takes beside predicting val
VAL_SHARE = 0.25  # of the time of a training that predicting val after its epochs may take
MOST = 5.0  # times as many passes as are enough; more bring little
MEASURED_AT = 10_000  # images of the sets on which it was measured how many passes are enough


@dataclass(frozen=True)
class Budget:
    """Minutes that a command may take.

    Args:
        minutes: above 0.
        processor: whether minutes of the processors are meant, all cores together, rather than of the clock on the wall.

    Raises:
        RequestError: it is no such number.
    """

    minutes: float
    processor: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.minutes < math.inf:
            raise RequestError(f"minutes must be more than 0; got {self.minutes:g}")

    @property
    def seconds(self) -> float:
        return 60 * self.minutes

    def __str__(self) -> str:
        return f"{self.minutes:g} {'processor ' * self.processor}minute{'' if self.minutes == 1 else 's'}"


@dataclass(frozen=True)
class Clock:
    """What was spent of a budget since the clock was made, in seconds."""

    budget: Budget
    _began: tuple[float, float] = field(default_factory=lambda: (time.monotonic(), processor_time()))

    @classmethod
    def of_command(cls, budget: Budget) -> Clock:
        """A clock that has run since the command of this process began; from now on, if there is none."""
        return cls(budget, beginning())

    @property
    def wall(self) -> float:
        return time.monotonic() - self._began[0]

    @property
    def processor(self) -> float:
        """Seconds that this process and those that it waited for have used, all cores together."""
        return processor_time() - self._began[1]

    @property
    def spent(self) -> float:
        return self.processor if self.budget.processor else self.wall

    @property
    def left(self) -> float:
        return self.budget.seconds - self.spent


@dataclass(frozen=True)
class Pace:
    """Measured seconds.

    Args:
        step: of a training step on images of full size.
        small: of one on the smaller images of the first epochs; as ``step`` if there are none.
        predict: of the prediction of an image.
        work: multiply-adds of that.
        busy: how many times longer than on the processor work takes on the wall, because others use the machine.
    """

    step: float
    small: float
    predict: float
    work: float = 1e9
    busy: float = 1.0


@dataclass(frozen=True)
class Load:
    """What a training has to do, and how fast.

    Args:
        train, val: images.
        batch: images of a step.
        share: of the epochs that have smaller images.
        pace: of its steps.
    """

    train: int
    val: int
    batch: int
    share: float
    pace: Pace

    def steps(self, images: int) -> int:
        """The steps of an epoch of so many images; a short last batch is dropped."""
        return max(1, images // self.batch)

    def first(self, done: int, epochs: int, images: int) -> float:
        """Seconds that the first ``done`` of ``epochs`` epochs take."""
        small = min(done, int(self.share * epochs))
        steps = small * self.pace.small + (done - small) * self.pace.step
        return self.steps(images) * steps + done * self.after_epoch

    def seconds(self, epochs: int, images: int) -> float:
        """Seconds that so many epochs of so many images take."""
        return self.first(epochs, epochs, images)

    def part(self, steps: int, epoch: int, epochs: int) -> float:
        """Seconds that so many steps of an epoch take; epochs are counted from 0."""
        return steps * (self.pace.small if epoch < int(self.share * epochs) else self.pace.step)

    @property
    def after_epoch(self) -> float:
        return self.val * self.pace.predict + EPOCH


@dataclass(frozen=True)
class Length:
    """How long a training is.

    Args:
        epochs: their number.
        images: of an epoch.
        seconds: that it takes.
        passes: how often each image is seen.
    """

    epochs: int
    images: int
    seconds: float
    passes: float


def longest(load: Load, seconds: float, passes: float) -> Length:
    """The longest training that takes at most so many seconds and passes over the images; a single step if there is no time
    for more. An epoch has all images, or some of them if there is no time for `FEWEST` epochs of all, or each several times
    if they are less than `STEPS` batches."""
    images = load.train * max(1, math.ceil(STEPS * load.batch / load.train))
    most = max(1, math.ceil(passes * load.train / images))
    epochs = _fitting(lambda count: load.seconds(count, images), most, seconds)
    if epochs < min(FEWEST, most):
        epochs = FEWEST
        while epochs > 1 and (epochs * load.after_epoch > VAL_SHARE * seconds or load.seconds(epochs, 1) > seconds):
            epochs -= 1
        steps = _fitting(lambda count: load.seconds(epochs, count * load.batch), load.steps(images), seconds)
        images = min(images, max(1, steps) * load.batch)
    epochs = max(1, epochs)
    return Length(epochs, images, load.seconds(epochs, images), epochs * images / load.train)


def _fitting(cost: Callable[[int], float], most: int, limit: float) -> int:
    """The largest count from 0 to ``most`` whose cost, which grows with it, is within the limit; 0 if none is."""
    low, high = 0, most
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if cost(middle) <= limit else (low, middle - 1)
    return low


def enough(passes: float, images: int) -> float:
    """Passes over a set of so many images that are worth ``passes`` over `MEASURED_AT` images: fewer images need more passes,
    but fewer steps."""
    return min(max(passes * math.sqrt(MEASURED_AT / images), 1.0), 150.0)


def best(lengths: Sequence[Length], wanted: Sequence[float]) -> int:
    """The place of the first candidate, the most accurate ones first, that is trained for as many passes as it wants; if there
    is none, of that which comes closest."""
    shares = [length.passes / want for length, want in zip(lengths, wanted, strict=True)]
    return next(
        (place for place, share in enumerate(shares) if share >= 1),
        int(max(range(len(shares)), key=shares.__getitem__)),
    )


def corrected(load: Load, length: Length, done: int, slower: float, left: float, most: int) -> int:
    """How many epochs there is time for in all.

    Args:
        done: epochs, of at most ``most``.
        slower: how many times longer than predicted steps take.
        left: seconds until training should end.
    """

    def rest(more: int) -> float:
        epochs = done + more
        return slower * (load.seconds(epochs, length.images) - load.first(done, epochs, length.images))

    return done + _fitting(rest, max(0, most - done), left)
