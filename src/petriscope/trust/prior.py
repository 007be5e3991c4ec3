"""Which classes occur where a model is used, or the share of each: how that is asked for, and what it makes of probabilities.

A model gives p(class | image) for the class shares that it was trained on. Where the shares are others and images of each class
look the same (label shift), the probabilities are p' proportional to p times new share / old share (Saerens, Latinne and
Decaestecker, 2002, Neural Computation 14:21). Where it is only known which classes occur, those keep their ratios and the
others get 0.

The old shares are those that the probabilities imply, and these are measured on val. They are not counted in the training
images: samplers, class weights, mixing, distillation and ensembles all change what a network takes the shares to be. Alexandari,
Kundaje and Shrikumar, 2020, arXiv:1901.06852, show that this correction of the bias matters.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import logsumexp

from petriscope.core.errors import RequestError, listed, near, shown
from petriscope.core.names import place_of
from petriscope.core.results import ClassPrior
from petriscope.metrics.blocks import row_blocks
from petriscope.trust.temperature import log_probabilities

NAMED = 12  # names that are listed in a sentence
ROUNDING = 0.01  # from 1, of the sum of shares, that is not worth a word

REMARKABLE, SURE = 0.2, 4.0  # difference from a share that was given, and standard errors, from which it is doubted

Names = str | Sequence[str]
Shares = Names | Mapping[str, float]


@dataclass(frozen=True, eq=False)
class Prior:
    """What is known about the classes where a model is used.

    Args:
        classes: K names, of the model.
        occurs: which classes occur, bool [K]; two or more.
        shares: of the images, float64 [K], with sum 1, positive where the class occurs and 0 elsewhere; None: only the classes
            are known.
        sum: of the shares as they were given.
    """

    classes: tuple[str, ...]
    occurs: np.ndarray
    shares: np.ndarray | None = None
    sum: float = 1.0

    @property
    def names(self) -> list[str]:
        """The classes that occur."""
        return [name for name, there in zip(self.classes, self.occurs, strict=True) if there]

    def factors(self, implied: np.ndarray | None) -> np.ndarray:
        """What probabilities are multiplied by, up to a constant, float64 [K].

        Args:
            implied: the shares that the probabilities imply, float64 [K], see `implied_shares`; not needed without ``shares``.
        """
        if self.shares is None or implied is None:
            return self.occurs.astype(np.float64)
        return np.where(self.occurs, self.shares / implied, 0.0)

    def sentence(self) -> str:
        """What is assumed, without the period."""
        others = len(self.classes) - len(self.names)
        rest = f"; the other {others:,} of {len(self.classes):,} classes have probability 0" if others else ""
        if self.shares is None:
            return f"only these classes occur: {listed(self.names, NAMED)}{rest}"
        scaled = f" (given with sum {self.sum:g}, and divided by it)" if abs(self.sum - 1) > ROUNDING else ""
        each = [f"{self.classes[k]} {100 * self.shares[k]:.3g} %" for k in np.flatnonzero(self.occurs)]
        return f"the class shares are {listed(each, NAMED)}{scaled}{rest}"

    def cell(self) -> str:
        """The same for a cell of a table."""
        if len(self.names) > NAMED:
            return f"{len(self.names)} of {len(self.classes)} classes" + (
                "" if self.shares is None else ", with shares"
            )
        if self.shares is None:
            return f"only {'; '.join(self.names)}"
        return "; ".join(f"{self.classes[k]} {self.shares[k]:.6g}" for k in np.flatnonzero(self.occurs))

    def doubt(self, counts: np.ndarray, what: str) -> str:
        """A sentence if the classes of images are far from the shares that were given; empty if they are not, as far as can be
        told.

        Args:
            counts: images of each class, int [K].
            what: they are, such as ``are predicted as``.
        """
        n = int(counts.sum())
        if self.shares is None or not n:
            return ""
        here = counts / n
        error = np.sqrt(np.maximum(self.shares * (1 - self.shares), 1 / n) / n)
        k = int(np.abs(here - self.shares).argmax())
        apart = abs(here[k] - self.shares[k])
        if apart < REMARKABLE or apart < SURE * error[k]:
            return ""
        return (
            f"{100 * here[k]:.0f} % of {n:,} images {what} {self.classes[k]}, whose share was given as "
            f"{100 * self.shares[k]:.3g} %; if the shares are wrong, so is what follows from them"
        )

    def record(self, implied: np.ndarray | None = None, excluded: int = 0) -> ClassPrior:
        """The same for results.

        Args:
            implied: see `factors`.
            excluded: evaluated images of classes that do not occur.
        """

        def by_name(values: np.ndarray | None) -> dict[str, float] | None:
            return None if values is None else dict(zip(self.classes, map(float, values), strict=True))

        return ClassPrior(
            classes=self.names, shares=by_name(self.shares), implied=by_name(implied), excluded_images=excluded
        )


def parse_prior(model: tuple[str, ...], classes: Names | None = None, prior: Shares | None = None) -> Prior | None:
    """Read what was asked for.

    Args:
        model: the K classes of the model.
        classes: the classes that occur: names, or texts of several names separated by commas. A text that is the name of a
            class stands for it, so a name that has commas needs a text of its own.
        prior: the share of each class that occurs: a mapping, or texts such as ``a=0.7,b=0.3``, with commas as above. Shares
            are divided by their sum, and classes that are not named have none.

    Returns:
        None if neither was given.

    Raises:
        RequestError: both were given, a class is unknown or named twice, fewer than two classes occur, or a share is no
            number from 0.
    """
    if classes is None and prior is None:
        return None
    if classes is not None and prior is not None:
        raise RequestError("give either classes or prior; prior names the classes that occur, too")
    shares = np.zeros(len(model))
    named: set[int] = set()
    found = (
        ((name, 1.0) for name in _names(classes, model))
        if classes is not None
        else _shares({} if prior is None else prior, model)
    )
    option = "classes" if classes is not None else "prior"
    for name, share in found:
        place = place_of(name, model)
        if place is None:
            raise RequestError(f"{option}: the model has no class {shown(name)}; {near(name, model)}")
        if place in named:
            raise RequestError(f"{option}: {model[place]} is named twice")
        named.add(place)
        shares[place] = share
    total = sum(shares.tolist())
    if math.isinf(total):
        raise RequestError("prior: the sum of the shares is too large a number")
    shares = shares / total if total else shares
    occurs = shares > 0
    if occurs.sum() < 2:
        only = f"only {model[int(occurs.argmax())]} occurs" if occurs.any() else "no class occurs"
        raise RequestError(f"{option}: {only}, so there is nothing to predict; name two classes or more")
    return Prior(model, occurs) if classes is not None else Prior(model, occurs, shares, total)


def _texts(given: object, option: str) -> list[object]:
    """
    Raises:
        RequestError: it is neither text nor a list.
    """
    if isinstance(given, str):
        return [given]
    if isinstance(given, bytes | Mapping) or not isinstance(given, Iterable):
        hint = "; shares of classes are given as prior" if isinstance(given, Mapping) else ""
        raise RequestError(f"{option} cannot be {shown(given)}; give text or a list of texts{hint}")
    return list(given)


def _names(given: Names, model: tuple[str, ...]) -> Iterator[str]:
    for text in _texts(given, "classes"):
        if not isinstance(text, str):
            raise RequestError(f"classes are given by name; {shown(text)} is no text")
        yield from [text] if place_of(text, model) is not None else _pieces(text)


def _shares(given: Shares, model: tuple[str, ...]) -> Iterator[tuple[str, float]]:
    if isinstance(given, Mapping):
        pairs: list[tuple[str, Any]] = [(str(name), share) for name, share in given.items()]
    else:
        pairs = []
        for text in _texts(given, "prior"):
            if not isinstance(text, str):
                raise RequestError(f"prior takes texts such as {model[0]}=0.3, or a mapping; got {shown(text)}")
            pairs += _pairs(text, model)
    for name, share in pairs:
        try:
            number = float(share)
        except (TypeError, ValueError):
            number = math.nan
        if not 0 <= number < math.inf:
            raise RequestError(f"prior: the share of {name} must be a number from 0, such as 0.3; got {shown(share)}")
        yield name, number


def _pairs(text: str, model: tuple[str, ...]) -> list[tuple[str, str]]:
    whole, _, share = text.rpartition("=")
    if "," not in share and place_of(whole, model) is not None:
        return [(whole, share)]
    pairs = []
    for piece in _pieces(text):
        name, sign, share = piece.rpartition("=")
        if not sign:
            raise RequestError(f"prior takes NAME=SHARE, such as {model[0]}=0.3; got {shown(piece)}")
        pairs.append((name, share))
    return pairs


def _pieces(text: str) -> list[str]:
    return [piece for piece in text.split(",") if piece.strip()]


def reweight(probabilities: np.ndarray, factors: np.ndarray) -> np.ndarray:
    """Probabilities multiplied by factors and divided by their sum, float32 [N, K].

    Where that sum is 0, because all classes that occur have probability 0, nothing is known but the factors.

    Args:
        probabilities: float [N, K].
        factors: float64 [K], from 0.
    """
    if (factors == factors[0]).all():
        return np.asarray(probabilities, dtype=np.float32)
    out = np.empty(probabilities.shape, dtype=np.float32)
    for rows in row_blocks(len(out), 8 * probabilities.shape[1]):
        products = np.asarray(probabilities[rows], dtype=np.float64) * factors
        products[products.sum(1) == 0] = factors
        out[rows] = products / products.sum(1, keepdims=True)
    return out


def implied_shares(probabilities: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """The class shares that probabilities imply, float64 [K], with sum 1.

    If they were made for the shares q, those for the shares v of val are p v / q. So q is v exp(-b), with the b that maximizes
    the likelihood of softmax(log p + b) on val. The prior of each b is normal with mean 0 and standard deviation 1, as weak as
    that of the temperature; it keeps b finite where no image of val is in doubt. Where a class has no image in val, its share
    is not measured.

    Args:
        probabilities: of val, scaled with the temperature, float [N, K].
        targets: int64 [N].
    """
    from scipy.optimize import minimize

    classes = probabilities.shape[1]
    counts = np.bincount(targets, minlength=classes).astype(np.float64)

    def loss(bias: np.ndarray) -> tuple[float, np.ndarray]:
        value, slope = float(bias @ bias / 2 - counts @ bias), bias - counts
        for rows in row_blocks(len(targets), 8 * classes):
            logs = log_probabilities(probabilities[rows]) + bias
            whole = logsumexp(logs, axis=1, keepdims=True)
            value += float(whole.sum())
            slope = slope + np.exp(logs - whole).sum(0)
        return value, slope

    found = minimize(loss, np.zeros(classes), jac=True, method="L-BFGS-B", options={"ftol": 1e-12, "gtol": 1e-6})
    implied = np.maximum(counts, 0.5) * np.exp(-found.x)
    return implied / implied.sum()
