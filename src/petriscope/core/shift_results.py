"""The result of a comparison of images with those of val. It is part of `petriscope.core.results.Results`, and plain, so that it
can be made without pydantic."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Difference:
    """How a measure of images differs from that of val; see `petriscope.trust.two_sample.MEASURES`.

    Args:
        val, here: medians, one per channel or one.
        deviations: the difference in standard deviations of val, with its sign; of channels, the largest.
    """

    measure: str
    val: list[float]
    here: list[float]
    deviations: float


@dataclass(frozen=True)
class ClassShare:
    """The share of images that are predicted as a class, of val and of other images."""

    name: str
    val: float
    here: float


@dataclass(frozen=True)
class ShiftTest:
    """Whether images are drawn like those of val; see `petriscope.trust.two_sample`.

    Args:
        n: images that were compared, of ``of`` images; ``val``: images of val that they were compared with.
        copies: images that are equal to one of these, and were left out, since they are no new evidence.
        level: guarantees are withdrawn where ``p`` is at most this.
        not_tested: why there was no test; None: there was one.
        p: the p-value; ``p_features``, ``p_appearance``, ``p_ood``, ``p_uncertainty``: by one statistic alone.
        withdrawn: whether guarantees made on val are withdrawn for these images.
        differs: the measures that differ most first.
        p_class_mix: of a test of the shares of predicted classes; ``class_mix``: the three that differ most if they do. They
            are no reason to withdraw guarantees.
    """

    n: int
    of: int
    val: int
    level: float
    not_tested: str | None = None
    p: float | None = None
    p_features: float | None = None
    p_appearance: float | None = None
    p_ood: float | None = None
    p_uncertainty: float | None = None
    withdrawn: bool = False
    differs: list[Difference] = field(default_factory=list)
    p_class_mix: float | None = None
    class_mix: list[ClassShare] = field(default_factory=list)
    copies: int = 0
