"""Labels that are probably wrong, judged by networks that were trained on the other images."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from petriscope.audit.base import Check, Context, Finding, FindingInfo, Listing

if TYPE_CHECKING:
    from petriscope.audit.label_errors import LabelErrors

LABEL_ERROR = FindingInfo(
    "label_error",
    "Networks that were not trained on the image predict a different class.",
    family="labels",
    title="Suspected label errors",
)
RELABEL_FROM = 0.9  # probability of a wrong label from which relabeling is suggested instead of a review


class WrongLabels(Check):
    findings = (LABEL_ERROR,)
    tasks = ("classification", "multilabel")
    order = 30

    def run(self, context: Context) -> Iterator[Finding]:
        # torch is imported only if networks are trained.
        from petriscope.audit import label_errors

        if not context.labels:
            return
        images = context.images
        probabilities = context.unless_impossible(
            "label errors",
            lambda: label_errors.out_of_fold_probabilities(images, seed=context.seed, quiet=context.quiet),
        )
        if probabilities is not None and not images.task.exclusive:
            each = [label_errors.find_binary_errors(images.targets[:, k], p) for k, p in enumerate(probabilities.T)]
            yield from findings_of_sets(context.listing, each, images.classes)
        elif probabilities is not None:
            found = label_errors.find_label_errors(images.targets, probabilities)
            yield from findings_of_labels(context.listing, found, images.classes, context.faulty)


def findings_of_labels(
    listing: Listing, found: LabelErrors, classes: Sequence[str], faulty: Collection[int] = ()
) -> Iterator[Finding]:
    """``faulty``: images whose faults may mislead a network; they are not relabeled."""
    for index in np.flatnonzero(found.flagged).tolist():
        suggested, score = classes[found.suggested[index]], float(found.score[index])
        sure = score >= RELABEL_FROM and index not in faulty
        yield LABEL_ERROR.of(
            index,
            f"labeled {listing.labels[index]}, looks like {suggested}; wrong with probability {score:.2f}",
            score,
            decision="relabel" if sure else "review",
            reason=f"looks like {suggested}" if sure else f"may be {suggested}",
            suggested=suggested,
        )


def findings_of_sets(listing: Listing, found: Sequence[LabelErrors], classes: Sequence[str]) -> Iterator[Finding]:
    """One finding for each image of which labels are probably missing or wrong; these are never changed without a person.

    Args:
        found: for each class, whether images have it.
    """
    score = np.stack([each.score for each in found], 1)
    flagged = np.stack([each.flagged for each in found], 1)
    for index in np.flatnonzero(flagged.any(1)).tolist():
        words = []
        for k in np.flatnonzero(flagged[index])[np.argsort(-score[index, flagged[index]], kind="stable")].tolist():
            is_missing = found[k].suggested[index] == 1
            words.append(
                f"{classes[k]} may be {'missing' if is_missing else 'wrong'} (probability {score[index, k]:.2f})"
            )
        yield LABEL_ERROR.of(
            index,
            f"labeled {listing.labels[index]}; {', '.join(words)}",
            float(score[index].max()),
            decision="review",
            reason=words[0],
        )
