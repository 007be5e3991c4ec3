"""A whole audit: read the source, run the checks, decide."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from petriscope.audit.base import Context, Finding, Listing
from petriscope.audit.checks import all_checks, all_findings
from petriscope.audit.findings import STRONGEST_FIRST, final_decisions, make_table
from petriscope.audit.joining import join
from petriscope.core.channels import colors_of, in_words, is_plain
from petriscope.core.csv_tables import csv_text
from petriscope.core.errors import RequestError, near
from petriscope.core.files import atomic, json_text, user_path, write_text
from petriscope.core.recipe import DataSection
from petriscope.core.results import SCHEMA_VERSION
from petriscope.data import sources
from petriscope.data.decisions import FILE, Decision, Decisions, ReadAs, write_decisions
from petriscope.data.fingerprint import fingerprint
from petriscope.data.imageset import ImageSet
from petriscope.data.sources.mask_values import check_numbers_used

if TYPE_CHECKING:
    import pandas as pd

    from petriscope.audit.planted import Planted

LEARNED = "learned"
SPLITS = ("all", "train", "val", "test")


@dataclass(frozen=True, eq=False)
class Audit:
    """What an audit found.

    Args:
        source: as the user named it.
        fingerprint: of the images that could be read, their targets and splits.
        table: one row per finding; see `petriscope.audit.findings.make_table`.
        decisions: one for each image with findings.
        listing: all images of the source, those that could be read first.
        images: those that could be read, in the same order.
        planted: what was found by `petriscope.audit.find_planted`.
        features: float32 [N, D], from which outliers were found; None if they were not looked for.
        notes: what the user should know, one sentence each.
    """

    source: str
    fingerprint: str
    table: pd.DataFrame
    decisions: Decisions
    listing: Listing
    images: ImageSet
    planted: Planted
    features: np.ndarray | None
    notes: tuple[str, ...]

    @property
    def summary(self) -> dict[str, Any]:
        """Counts as plain JSON: images per split, and how many have each finding and each decision, overall and per
        split."""
        decided = self.table.drop_duplicates("id")
        infos = all_findings()

        def count(table: pd.DataFrame, column: str, names: Iterable[str]) -> dict[str, int]:
            return {name: int((table[column] == name).sum()) for name in names}

        return {
            "schema_version": SCHEMA_VERSION,
            "source": self.source,
            "fingerprint": self.fingerprint,
            "n": len(self.listing),
            "classes": list(self.images.classes),
            "shape": list(self.images.shape),
            "findings": count(self.table, "finding", infos),
            "groups": {
                name: int(self.table[self.table["finding"] == name]["group"].nunique())
                for name, info in infos.items()
                if info.grouped
            },
            "decisions": count(decided, "decision", STRONGEST_FIRST),
            "per_split": {
                split: {
                    "n": int((self.listing.splits == split).sum()),
                    "findings": count(self.table[self.table["split"] == split], "finding", infos),
                    "decisions": count(decided[decided["split"] == split], "decision", STRONGEST_FIRST),
                }
                for split in SPLITS
                if split in self.listing.splits
            },
            "notes": list(self.notes),
        }

    def write(self, folder: Path) -> None:
        """Write ``findings.csv``, ``findings.parquet``, ``decisions.yaml`` and ``summary.json`` into a folder."""
        write_text(folder / "findings.csv", csv_text(self.table))
        with atomic(folder / "findings.parquet") as temporary, temporary.open("wb") as handle:
            self.table.to_parquet(handle, index=False)
        write_decisions(folder / FILE, self.decisions)
        write_text(folder / "summary.json", json_text(self.summary, indent=1))


def audit(
    source: str | Path,
    section: DataSection | None = None,
    *,
    labels: bool = True,
    features: str | None = LEARNED,
    seed: int = 0,
    quiet: bool = True,
) -> Audit:
    """Run every check that applies to the task of a source. Nothing is changed, and no splits are drawn.

    Args:
        source: anything that `petriscope.load_dataset` reads.
        section: how images are read; its ``source`` and ``audit`` are not used.
        labels: look for label errors, which trains networks.
        features: what outliers are found from: ``learned``, by a small network trained on the set itself; a run folder;
            the name of a model with published weights (``timm/NAME``); or None, which leaves outliers out.
        seed: for everything that is trained. The same source and seed give the same findings.
        quiet: show no progress.

    Raises:
        RequestError: there is no such source, or no such features.
        DataError: the source cannot be read at all.
    """
    name = str(source)
    if section is not None and section.tiles is not None:
        raise RequestError("an audit looks at images of one size, and data.tiles keeps their own; leave it out here")
    if section is not None and section.scaled:
        raise RequestError("an audit looks at images as they are; leave out data.scale")
    section = (section or DataSection()).model_copy(update={"source": name, "unreadable": "skip", "audit": None})
    extract = None if features is None else _extractor(features, seed, quiet)
    warnings: list[str] = []
    sets = sources.read_nonempty(name, section, warnings)
    check_numbers_used(sets, section)
    digests = {split: part.digests() for split, part in sets.items()}
    mark = fingerprint(sets, digests)
    images, splits = join(sets, mark)
    if images.bits == 16:
        warnings.append(
            "copies, planted images and quality are looked for in the nearest of 256 levels of each value, and not in all 16 bits"
        )
    if not is_plain(images.channels):
        warnings.append(
            f"the images have {in_words(images.channels)}: copies are looked for in all of them, and brightness, contrast and "
            f"sharpness are {'of red, green and blue' if colors_of(images.channels) else 'of their mean'}"
        )
    files = sources.list_files(name, section)
    context = Context(
        images,
        _list_all(images, splits, files),
        [digest for split in sets for digest in digests[split]],
        tuple(check for check in all_checks() if check.applies_to(images.task)),
        files,
        extract,
        labels,
        seed,
        quiet,
        # Files that cannot be read are findings, where files are listed.
        notes=[warning for warning in warnings if not files or "cannot be read" not in warning],
    )
    found = context.all_findings()
    decisions = Decisions(
        source=name, fingerprint=mark, read_as=ReadAs.of(section, images), decisions=_decide(context, found)
    )
    return Audit(
        name,
        mark,
        make_table(context.listing, found),
        decisions,
        context.listing,
        images,
        context.planted,
        context.features,
        tuple(dict.fromkeys(context.notes)),
    )


def _list_all(images: ImageSet, splits: np.ndarray, files: list[sources.ImageFile]) -> Listing:
    there = set(images.ids.tolist())
    lost = [file for file in files if file.id not in there]
    labels = np.array(images.task.names(images.targets, images.classes), dtype=object)
    return Listing(
        np.array([*images.ids.tolist(), *(file.id for file in lost)], dtype=object),
        np.array([*splits.tolist(), *(file.split for file in lost)], dtype=object),
        np.array([*labels.tolist(), *(file.label for file in lost)], dtype=object),
    )


def _extractor(features: str, seed: int, quiet: bool) -> Callable[[ImageSet], np.ndarray]:
    """How features are computed. A wrong name is refused before anything is read."""
    from petriscope.audit import embeddings
    from petriscope.models import MODELS

    if features == LEARNED:
        return lambda images: embeddings.learned_features(images, seed=seed, quiet=quiet)
    path = user_path(features)
    if path.exists():
        return lambda images: embeddings.run_features(path, images, quiet=quiet)
    if features.startswith("timm/") or features in MODELS.members:
        return lambda images: embeddings.backbone_features(features, images, quiet=quiet)
    raise RequestError(
        f"--features: {features!r} is neither {LEARNED!r}, nor a run folder, nor a model; {near(features, MODELS.members)}"
    )


def _decide(context: Context, found: list[Finding]) -> tuple[Decision, ...]:
    return tuple(
        Decision(
            id=context.listing.ids[index],
            decision=decision,
            label=suggested or None,
            reason=reason,
            digest=context.digests[index].hex() if index < len(context.digests) else None,
        )
        for index, (decision, reason, suggested) in final_decisions(found).items()
    )
