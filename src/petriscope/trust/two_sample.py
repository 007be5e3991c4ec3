"""Are images drawn like those of val? A two-sample test of a whole set of images, where `petriscope.trust.ood` judges one.

What was guaranteed on val holds for images drawn like val's. So before a guarantee is used, the images that it is used on
are compared with val: the features of the network, the out-of-distribution scores and the uncertainties. Such comparisons
find the shifts that matter with few images (Rabanser et al., 2019, arXiv:1810.11953).

Another mix of classes alone is no reason to withdraw a guarantee, because a ward is not the training set. So the images are
compared with what their classes lead to expect. Their mix of classes is estimated from the predicted classes and the
confusion matrix of val, by maximum likelihood (as Saerens et al., 2002, doi:10.1162/089976602753284446, do from
probabilities). For a value z per image, the difference is

    d = mean of z over the images - sum_y q_y (mean of z over the images of val of class y),

with the estimated share q_y of class y. A statistic is d^2 / (1 / n + sum_y q_y^2 / m_y) for n images and m_y of val, summed over
values. There are three: of the features, of the ranks of the scores, and of the ranks of the uncertainties. A network that was
adapted to a few images of a place has learned from all that there are to compare with, so there is one alone: of the measures of
their appearance.

What chance does to them is found out from sets that are drawn from val in the estimated mix, and compared with the rest of
val in the same way. Their mix is estimated too, by the confusion matrix of that rest: by one that the set itself is part of, it
would be known too well. The cube roots of the statistics, which are almost normal (Wilson and Hilferty, 1931, PNAS 17:684), are
taken in standard deviations over all sets. The largest of the three is compared with the largest for each drawn set, so that
three tests give no more false alarms than one (Westfall and Young, 1993, Resampling-based multiple testing, Wiley).
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from math import comb
from typing import Any

import numpy as np

from petriscope.core.channels import MOST as MOST_CHANNELS
from petriscope.core.shift_results import ClassShare, Difference, ShiftTest
from petriscope.metrics.intervals import count_groups
from petriscope.metrics.selective import uncertainty

FEWEST = 20  # images; of fewer, only large differences would be found
FEWEST_DRAWN = 15  # images of sets drawn from val, on average
MOST = 1000  # images of a set that are compared; more would find differences that are too small to matter
DRAWS = 999  # sets drawn from val
FALSE_ALARMS = 0.01  # the share of sets like val's that are taken for others, at most
LEVEL = 0.005  # the p-value for that, where the mix of classes is estimated: p-values are slightly too small then
FARTHEST = 100.0  # features beyond so many standard deviations count as that far
MIX_STEPS = 100  # of expectation maximization
UNSEEN = 1e-3  # images of a class that count as predicted as each class, beside those that are
MEASURES = ("background color", "stain", "size of the objects", "sharpness")
KINDS: dict[str, Any] = {  # of the arrays of a `Likeness` in model files
    "project": np.float32,
    "points": np.float32,
    "ood": np.float32,
    "uncertainty": np.float32,
    "predicted": np.int64,
    "appearance": np.float32,
    "target": np.int64,
    "group": np.int64,
    "center": np.float32,
}


@dataclass(frozen=True, eq=False)
class Traits:
    """What is compared of N images, without test-time augmentation.

    Args:
        points: features, or measures of the appearance, in the directions of a `Likeness`, float32 [N, R]; R may be 0.
        ood: out-of-distribution scores, float32 [N]; 0 where they are not compared, such as without a detector.
        uncertainty: 1 - confidence before temperature scaling, float32 [N]; 0 where they are not compared.
        predicted: class, int64 [N].
        appearance: color of the background per channel (0 to 255), stain, size and sharpness as
            `petriscope.data.appearance.Appearance` has them, float32 [N, C + 3]; NaN where a measure does not exist.
    """

    points: np.ndarray
    ood: np.ndarray
    uncertainty: np.ndarray
    predicted: np.ndarray
    appearance: np.ndarray

    def __len__(self) -> int:
        return len(self.predicted)

    def take(self, rows: np.ndarray) -> Traits:
        """The traits of some of the images."""
        return Traits(*(getattr(self, each.name)[rows] for each in fields(self)))


def joined(parts: list[Traits]) -> Traits:
    """The traits of the images of several batches, at least one."""
    return Traits(*(np.concatenate([getattr(part, each.name) for part in parts]) for each in fields(Traits)))


@dataclass(frozen=True, eq=False)
class Likeness:
    """What images of val are like.

    Args:
        project: from features to `Traits.points`, float32 [D, R].
        traits: of M images of val.
        target: their classes, int64 [M].
        index: their groups, int64 [M], as `petriscope.metrics.intervals.group_index` has them; None: images are independent.
        center: if the appearance alone is compared, the mean of each measure, float32 [D]. Points are then projected from the
            distances to it, and nothing that the network says is compared.
    """

    project: np.ndarray
    traits: Traits
    target: np.ndarray
    index: np.ndarray | None = None
    center: np.ndarray | None = None

    def see(self, raw: np.ndarray, features: np.ndarray, ood: np.ndarray | None, appearance: np.ndarray) -> Traits:
        """The traits of B images, from probabilities before temperature scaling, float32 [B, K], features, float32 [B, D],
        out-of-distribution scores, float32 [B], and the measures of `Traits.appearance`."""
        points = features.astype(np.float64) @ self.project if self.center is None else features[:, :0]
        return self.see_points(points, uncertainty(raw), raw.argmax(1), ood, appearance)

    def see_points(
        self,
        points: np.ndarray,
        doubt: np.ndarray,
        predicted: np.ndarray,
        ood: np.ndarray | None,
        appearance: np.ndarray,
    ) -> Traits:
        """The traits of B images, from features in the directions of ``project``, float [B, R], which do not matter with
        ``center``, and the others as in `Traits`."""
        if self.center is not None:
            return looks_of(self.project, self.center, predicted, appearance)
        return traits_of(points, doubt, predicted, ood if self.traits.ood.any() else None, appearance)

    def arrays(self) -> list[tuple[str, np.ndarray]]:
        """All arrays by name, for a model file."""
        own = {"project": self.project, "target": self.target, "group": self.index, "center": self.center}
        own |= {each.name: getattr(self.traits, each.name) for each in fields(Traits)}
        return [(name, values) for name, values in own.items() if values is not None]

    @classmethod
    def of(cls, arrays: dict[str, np.ndarray]) -> Likeness:
        """The inverse of `arrays`.

        Raises:
            KeyError: one is missing.
        """
        traits = Traits(*(arrays[each.name] for each in fields(Traits)))
        return cls(arrays["project"], traits, arrays["target"], arrays.get("group"), arrays.get("center"))

    def sound(self, classes: int) -> bool:
        """Whether the arrays fit together for a model of so many classes."""
        t, n = self.traits, len(self.target)
        flat = [t.ood, t.uncertainty, t.predicted, self.target, *([] if self.index is None else [self.index])]
        whole = [t.predicted, self.target, *([] if self.index is None else [self.index])]
        floats = [t.points, t.ood, t.uncertainty, t.appearance, self.project]
        return (
            n > 0
            and all(each.dtype.kind in "iu" for each in whole)
            and all(each.dtype.kind == "f" for each in floats)
            and (self.center is None or self.center.dtype.kind == "f")
            and all(each.shape == (n,) for each in flat)
            and self.project.ndim == 2
            and t.points.shape == (n, self.project.shape[1])
            and t.appearance.ndim == 2
            and t.appearance.shape[0] == n
            and 4 <= t.appearance.shape[1] <= MOST_CHANNELS + 3
            and all(0 <= each.min() <= each.max() < classes for each in (t.predicted, self.target))
            and (self.index is None or bool(self.index.min() >= 0))
            and (self.center is None or self.center.shape == t.appearance.shape[1:] == self.project.shape[:1])
            and all(np.isfinite(each).all() for each in (self.project, t.points, t.uncertainty))
            and (self.center is None or bool(np.isfinite(self.center).all()))
            and not np.isnan(t.ood).any()
        )


def traits_of(
    points: np.ndarray, doubt: np.ndarray, predicted: np.ndarray, ood: np.ndarray | None, appearance: np.ndarray
) -> Traits:
    """Traits as they are compared: points, float [N, R], are limited to `FARTHEST`. ``ood`` None: scores are not compared."""
    points = np.nan_to_num(points, nan=FARTHEST).clip(-FARTHEST, FARTHEST)
    scores = np.zeros(len(predicted), np.float32) if ood is None else ood
    return Traits(points.astype(np.float32), scores, doubt.astype(np.float32), predicted, appearance.astype(np.float32))


def looks_of(project: np.ndarray, center: np.ndarray, predicted: np.ndarray, appearance: np.ndarray) -> Traits:
    """Traits of which the appearance alone is compared, as its distances to ``center``."""
    points = np.nan_to_num(appearance - center, nan=0.0) @ project
    nothing = np.zeros(len(predicted), np.float32)
    points = points.clip(-FARTHEST, FARTHEST).astype(np.float32)
    return Traits(points, nothing, nothing, predicted, appearance.astype(np.float32))


def compare(
    val: Likeness, new: Traits, classes: tuple[str, ...], of: int | None = None, groups: np.ndarray | None = None
) -> ShiftTest:
    """Test whether images are drawn like those of val.

    Args:
        val: what images of val are like.
        new: traits of N images, at most `MOST`, drawn at random if there are more.
        classes: K names.
        of: how many images they were drawn from; None: N.
        groups: names of their groups, [N]. None: unknown. If val has groups, all are then taken to be of one group.
    """
    of = len(new) if of is None else of

    def untested(why: str) -> ShiftTest:
        return ShiftTest(n=len(new), of=of, val=len(val.target), level=LEVEL, not_tested=why)

    if len(new) < FEWEST:
        return untested(f"{_images(len(new))} {'is' if len(new) == 1 else 'are'} too few; {FEWEST} are needed")
    rng, cells = np.random.default_rng(0), _Cells(val, len(classes))
    level = FALSE_ALARMS if val.index is not None else LEVEL
    if val.index is None:
        mix = cells.mixes(np.ones((1, len(val.target)), np.float32), _counts(new.predicted, len(classes))[None])[0]
        drawn = _draw_images(rng, val.target, len(new), mix)
        if drawn.sum(1).mean() < FEWEST_DRAWN:
            return untested("val has too few images of the classes that these images seem to be of")
    else:
        found = _draw_groups(rng, val.index, 1 if groups is None else len(np.unique(groups)), len(new))
        if found is None:
            return untested(
                f"val has too few groups ({count_groups(val.index):,}) to tell new groups from them with "
                f"{100 * FALSE_ALARMS:g} % false alarms"
            )
        drawn = found
    of_network = val.center is None
    which = {
        "features": of_network and new.points.shape[1] > 0,
        "appearance": not of_network,
        "ood": bool(val.traits.ood.any()),
        "uncertainty": of_network,
    }
    statistics = _statistics(val, new, drawn, cells)[
        :, [which["features"] or which["appearance"], which["ood"], of_network]
    ]
    p, each = _largest(statistics)
    by = dict(zip([name for name, compared in which.items() if compared], each, strict=True))
    p_mix = None if val.index is not None else _mix_p(rng, val.traits.predicted, new.predicted, len(classes))
    return ShiftTest(
        n=len(new),
        of=of,
        val=len(val.target),
        level=level,
        p=p,
        p_features=by.get("features"),
        p_appearance=by.get("appearance"),
        p_ood=by.get("ood"),
        p_uncertainty=by.get("uncertainty"),
        withdrawn=p <= level,
        differs=_differences(val.traits, new, len(classes)),
        p_class_mix=p_mix,
        class_mix=[]
        if p_mix is None or p_mix > FALSE_ALARMS
        else _shares(val.traits.predicted, new.predicted, classes),
    )


# ------------------------------------------------------------------------------------------------------- drawn sets


def _counts(predicted: np.ndarray, classes: int) -> np.ndarray:
    """Images predicted as each class, float64 [K]."""
    return np.bincount(predicted, minlength=classes).astype(np.float64)


class _Cells:
    """How images of val are confused: the pairs of a class and a predicted class that occur, at most as many as images, so that
    memory and time do not grow with the square of the number of classes."""

    def __init__(self, val: Likeness, classes: int) -> None:
        pairs, place = np.unique(np.stack([val.target, val.traits.predicted]), axis=1, return_inverse=True)
        self.classes, (self.target, self.predicted), self.of_image = classes, pairs, place.reshape(-1)

    def mixes(self, of: np.ndarray, counts: np.ndarray) -> np.ndarray:
        """The most likely shares of the true classes of B sets, float64 [B, K], by expectation maximization; 0 for classes that
        val does not have.

        Args:
            of: the images of val whose predictions say how the classes of each set are confused, 0 or 1, [B, M].
            counts: images of each set that are predicted as each class, float64 [B, K]; of none, the shares are equal.
        """
        amounts = _sums(of, self.of_image, len(self.target))
        rows = _sums(amounts, self.target, self.classes)
        present = rows > 0
        rows = np.where(present, rows + self.classes * UNSEEN, np.inf)  # whatever was predicted can be explained
        n = np.maximum(counts.sum(1, keepdims=True), 1)
        shares = present * (counts / n + 0.1 / present.sum(1, keepdims=True))  # nearly right, and nothing is ruled out
        for _ in range(MIX_STEPS):
            each = shares / shares.sum(1, keepdims=True) / rows
            likely = _sums(each[:, self.target] * amounts, self.predicted, self.classes)
            likely += UNSEEN * each.sum(1, keepdims=True)
            ratio = counts / np.maximum(likely, 1e-12)
            found = _sums(amounts * ratio[:, self.predicted], self.target, self.classes)
            found += UNSEEN * ratio.sum(1, keepdims=True)
            shares = each * found / n + 1e-12 * present
        return shares / shares.sum(1, keepdims=True)


def _sums(values: np.ndarray, place: np.ndarray, count: int) -> np.ndarray:
    """Sums of the columns of values, [B, P], that have the same place, int64 [P]: float64 [B, count]."""
    rows = np.arange(len(values))[:, None] * count
    return np.bincount((rows + place).ravel(), values.ravel(), len(values) * count).reshape(len(values), count)


def _draw_images(rng: np.random.Generator, target: np.ndarray, n: int, shares: np.ndarray) -> np.ndarray:
    """Sets of at most n images of val, bool [DRAWS, M], in the wanted shares of classes. A set has at most half of the images
    of a class, so that others are left to compare it with."""
    counts = rng.multinomial(n, shares / shares.sum(), size=DRAWS)
    out = np.zeros((DRAWS, len(target)), bool)
    for label in np.unique(target):
        rows = np.flatnonzero(target == label)
        if not (wanted := np.minimum(counts[:, label], len(rows) // 2)).any():
            continue
        order = rng.random((DRAWS, len(rows)), dtype=np.float32).argsort(1)
        part = np.zeros((DRAWS, len(rows)), bool)
        np.put_along_axis(part, order, np.arange(len(rows)) < wanted[:, None], 1)
        out[:, rows] = part
    return out


def _draw_groups(rng: np.random.Generator, index: np.ndarray, groups: int, n: int) -> np.ndarray | None:
    """Sets of so many groups of val, at most half of them, bool [B, M]; None if there are too few for any to stand out. A
    group has no more images than one of n images in so many groups has."""
    there, most = count_groups(index), max(1, n // groups)
    groups = min(groups, there // 2)
    if groups < 1 or comb(there, groups) < round(1 / FALSE_ALARMS) - 1:
        return None
    chosen = np.arange(there)[:, None] if groups == 1 else rng.random((DRAWS, there)).argsort(1)[:, :groups]
    member = np.zeros((len(chosen), there), bool)
    np.put_along_axis(member, chosen, True, 1)
    order = np.lexsort((rng.random(len(index)), index))  # by group, at random within each
    place = np.empty(len(index), np.int64)
    place[order] = np.arange(len(index)) - np.searchsorted(index[order], index[order])
    return member[:, index] & (place < most)


# ------------------------------------------------------------------------------------------------------- statistics


def _statistics(val: Likeness, new: Traits, drawn: np.ndarray, cells: _Cells) -> np.ndarray:
    """The statistics of features, scores and uncertainties, float64 [1 + B, 3]: of the new images first, and then of each set
    drawn from val, bool [B, M], against the rest of val, which also says how classes are confused.

    Where images are independent, differences are in units of what their number makes probable. A difference between groups
    does not vanish with more images, so there it is taken as it is.
    """
    classes, n = cells.classes, len(new)
    theirs, ours = _values(val.traits, new)
    inside = drawn.astype(np.float32)
    of_class = np.eye(classes, dtype=np.float32)[val.traits.predicted]
    counts = np.concatenate([_counts(new.predicted, classes)[None], (inside @ of_class).astype(np.float64)])
    rest = np.concatenate([np.ones((1, len(val.target)), np.float32), 1 - inside])
    shares = cells.mixes(rest, counts)
    sizes = np.r_[n, inside.sum(1)].astype(np.float64)[:, None]
    apart = np.concatenate([ours.sum(0)[None], inside @ theirs]).astype(np.float64) / np.maximum(sizes, 1)
    variance = 1 / np.maximum(sizes, 1)
    for label in np.unique(val.target):
        rows = np.flatnonzero(val.target == label)
        taken = np.concatenate([np.zeros((1, len(rows)), np.float32), inside[:, rows]])  # the new images are not of val
        left = np.maximum(len(rows) - taken.sum(1, keepdims=True), 1)
        share = shares[:, [label]]
        apart -= share * (theirs[rows].sum(0) - taken @ theirs[rows]) / left
        variance += np.square(share) / left
    squares = np.square(apart) / (variance if val.index is None else 1)
    return np.stack(
        [part.sum(1) for part in np.split(squares, [squares.shape[1] - 2, squares.shape[1] - 1], axis=1)], 1
    )


def _values(val: Traits, new: Traits) -> tuple[np.ndarray, np.ndarray]:
    """The values that are compared, float32 [M, R + 2] and [N, R + 2]."""
    ranked = [_ranks(getattr(val, name), getattr(new, name)) for name in ("ood", "uncertainty")]
    parts = zip((val.points, new.points), *ranked, strict=True)
    theirs, ours = (np.column_stack(part).astype(np.float32) for part in parts)
    return theirs, ours


def _ranks(val: np.ndarray, new: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The shares of val that are smaller, counting equal ones by half, minus 1/2: float64 [m] and [n]."""
    order = np.sort(val)

    def rank(values: np.ndarray) -> np.ndarray:
        below, above = (np.searchsorted(order, values, side) for side in ("left", "right"))
        return (below + above) / (2 * len(order)) - 0.5

    return rank(val), rank(new)


def _largest(statistics: np.ndarray) -> tuple[float, list[float]]:
    """The p-value of the new images, and that by each statistic.

    Args:
        statistics: float64 [1 + B, S], of the new images first.
    """
    roots = np.cbrt(statistics)
    apart = (roots - roots.mean(0)) / np.maximum(roots.std(0), 1e-12)
    every = np.column_stack([apart.max(1), apart])
    p = (every >= every[0] - 1e-9).mean(0)  # sums in another order differ in their last bits
    return float(p[0]), [float(each) for each in p[1:]]


def _mix_p(rng: np.random.Generator, val: np.ndarray, new: np.ndarray, classes: int) -> float:
    """The p-value of Pearson's chi-squared test of two mixes of predicted classes, int64 [M] and [N], under permutation."""
    counts = np.bincount(new, minlength=classes)
    both = counts + np.bincount(val, minlength=classes)
    expected = both * len(new) / both.sum()
    drawn = rng.multivariate_hypergeometric(both, len(new), size=DRAWS)

    def chi(found: np.ndarray) -> np.ndarray:
        return (np.square(found - expected) / np.maximum(expected, 1e-12)).sum(-1)

    return float((1 + (chi(drawn) >= chi(counts) - 1e-9).sum()) / (1 + DRAWS))


# ------------------------------------------------------------------------------------------------- what differs most


def _shares(val: np.ndarray, new: np.ndarray, classes: tuple[str, ...]) -> list[ClassShare]:
    """The three predicted classes whose shares differ most."""
    before, after = (np.bincount(part, minlength=len(classes)) / len(part) for part in (val, new))
    most = np.argsort(-np.abs(after - before), kind="stable")[:3]
    return [ClassShare(name=classes[k], val=float(before[k]), here=float(after[k])) for k in most]


def _differences(val: Traits, new: Traits, classes: int) -> list[Difference]:
    """How the medians of the measures differ, the largest difference first. Images of val count so much that their mix of
    predicted classes is that of the new images."""
    counts = [np.bincount(part.predicted, minlength=classes) for part in (val, new)]
    shared = (counts[0] > 0) & (counts[1] > 0)
    weights = (np.where(shared, counts[1], 0) / np.maximum(counts[0], 1))[val.predicted]
    alike = shared[new.predicted]
    channels = new.appearance.shape[1] - len(MEASURES) + 1
    columns = [list(range(channels)), *([channels + j] for j in range(len(MEASURES) - 1))]
    out = []
    for name, places in zip(MEASURES, columns, strict=True):
        pairs = []
        for place in places:
            theirs, ours = val.appearance[:, place].astype(np.float64), new.appearance[alike, place].astype(np.float64)
            known, ours = np.isfinite(theirs) & (weights > 0), ours[np.isfinite(ours)]
            if known.sum() < 2 or len(ours) < FEWEST // 2:
                break
            low, middle, high = quantiles(theirs[known], weights[known], (0.25, 0.5, 0.75))
            median = float(np.median(ours))
            pairs.append((middle, median, deviations(median, low, middle, high)))
        if len(pairs) == len(places):
            before, after, apart = zip(*pairs, strict=True)
            out.append(Difference(measure=name, val=list(before), here=list(after), deviations=max(apart, key=abs)))
    return sorted(out, key=lambda each: -abs(each.deviations))


def deviations(value: float, low: float, median: float, high: float) -> float:
    """How far a value lies from the median of others, in their standard deviations, which are taken from their quartiles as
    those of a normal distribution. Where the others hardly differ, a thousandth of their median takes the place of that."""
    return (value - median) / max((high - low) / 1.349, 1e-3 * abs(median), 1e-6)


def quantiles(values: np.ndarray, weights: np.ndarray, shares: tuple[float, ...]) -> list[float]:
    """Quantiles of values that count with weights, both [N]."""
    order = np.argsort(values, kind="stable")
    reach = np.cumsum(weights[order])
    places = np.searchsorted(reach, np.array(shares) * reach[-1]).clip(max=len(order) - 1)
    return [float(each) for each in values[order][places]]


def _images(number: int) -> str:
    return f"{number:,} image{'' if number == 1 else 's'}"
