"""An audit from end to end: read all that is there, look for every fault, suggest what to do."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from petriscope.audit import findings
from petriscope.audit.duplicates import find_duplicates
from petriscope.audit.findings import KINDS, Finding, Listing, make_table
from petriscope.audit.joining import join
from petriscope.audit.mask_table import mask_findings
from petriscope.audit.quality import measure_quality
from petriscope.core.errors import DataError, RequestError, near
from petriscope.core.files import atomic, write_text
from petriscope.core.recipe import DataSection
from petriscope.data import sources
from petriscope.data.decisions import FILE, Decision, Decisions, ReadAs, write_decisions
from petriscope.data.file_check import check_files
from petriscope.data.fingerprint import fingerprint
from petriscope.data.imageset import ImageSet

if TYPE_CHECKING:
    import pandas as pd

    from petriscope.audit.planted import Planted

LEARNED = "learned"


@dataclass(frozen=True, eq=False)
class Audit:
    """What an audit found.

    Args:
        source: what the user named.
        fingerprint: of the listing, labels and splits that could be read.
        table: one row per finding; see `petriscope.audit.findings.make_table`.
        decisions: one an image that something was found about.
        listing: all of the source's, those that could be read first.
        images: those that could be read, in the same order.
        planted: None where nothing was looked for.
        features: float32 [N, D], by which outliers were found; None: they were not looked for.
        notes: what the user should know, a sentence each.
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
        """Counts, as plain JSON: images per split, and of each finding and each decision, in all and a split."""
        splits = [name for name in findings.KEPT_FIRST[::-1] if name in set(self.listing.splits.tolist())]
        decided = self.table.drop_duplicates("id")

        def count(table: pd.DataFrame, column: str, names: Any) -> dict[str, int]:
            return {name: int((table[column] == name).sum()) for name in names}

        verdicts = findings.STRONGEST_FIRST
        return {
            "source": self.source,
            "fingerprint": self.fingerprint,
            "n": len(self.listing),
            "classes": list(self.images.classes),
            "shape": list(self.images.shape),
            "findings": count(self.table, "finding", KINDS),
            "groups": {
                name: int(self.table[self.table["finding"] == name]["group"].nunique())
                for name in ("planted", "leak", "conflicting_labels", "exact_duplicate", "near_duplicate")
            },
            "decisions": count(decided, "decision", verdicts),
            "per_split": {
                split: {
                    "n": int((self.listing.splits == split).sum()),
                    "findings": count(self.table[self.table["split"] == split], "finding", KINDS),
                    "decisions": count(decided[decided["split"] == split], "decision", verdicts),
                }
                for split in splits
            },
            "notes": list(self.notes),
        }

    def write(self, folder: Path) -> None:
        """Write ``findings.csv``, ``findings.parquet``, ``decisions.yaml`` and ``summary.json`` into a folder."""
        with atomic(folder / "findings.csv") as temporary:
            self.table.to_csv(temporary, index=False)
        with atomic(folder / "findings.parquet") as temporary:
            self.table.to_parquet(temporary, index=False)
        write_decisions(folder / FILE, self.decisions)
        write_text(folder / "summary.json", json.dumps(self.summary, indent=1) + "\n")


def audit(
    source: str | Path,
    section: DataSection | None = None,
    *,
    labels: bool = True,
    features: str | None = LEARNED,
    seed: int = 0,
    quiet: bool = True,
) -> Audit:
    """Look for every fault in a source. Nothing is changed; splits are as the source has them.

    Args:
        source: anything that `petriscope.load_dataset` reads.
        section: how images become one uint8 array; its source and its audit are not used.
        labels: look for label errors, by networks trained on the rest of the set.
        features: by which outliers are found: ``learned`` by a small network on the set itself, a run folder, the name of a
            model whose published weights are taken (``timm/NAME``), or None: look for no outliers.
        seed: of what is trained. Same source, same seed, same findings.
        quiet: show no progress.

    Raises:
        RequestError: no such source, or no such features.
        DataError: the source cannot be read at all.
    """
    from petriscope.audit.planted import find_planted

    name = str(source)
    asked = section or DataSection()
    section = asked.model_copy(update={"source": name, "unreadable": "skip", "audit": None})
    extract = None if features is None else _extractor(features, seed, quiet)
    warnings: list[str] = []
    sets = sources.read_nonempty(name, section, warnings)
    digests = {split: part.digests() for split, part in sets.items()}
    mark = fingerprint(sets, digests)
    images, splits = join(sets, mark)
    files = sources.list_files(name)
    listing = _all_images(images, splits, files)
    flat = [digest for split in sets for digest in digests[split]]

    found: list[Finding] = []
    if files:
        faults = check_files(files, set(images.ids.tolist()), quiet=quiet)
        found += findings.file_findings(listing, faults)
    found += findings.quality_findings(measure_quality(images, quiet=quiet))
    faulty = {each.image for each in found}
    planted = find_planted(images, quiet=quiet)
    found += findings.planted_findings(planted)
    found += mask_findings(images)
    duplicates = find_duplicates(images, quiet=quiet)
    found += findings.duplicate_findings(listing, duplicates, flat, planted.group >= 0, faulty)
    notes = [warning for warning in warnings if "cannot be read" not in warning]
    vectors = None
    if extract is not None:
        # What is learned about a mask is its rarest class.
        labeled = replace(images, targets=images.strata)
        vectors = _unless_impossible("outliers", notes, lambda: extract(labeled))
        if vectors is not None:
            found += _find_outliers(vectors, labeled)
    if labels and not images.segments:
        found += (
            _unless_impossible("label errors", notes, lambda: _find_label_errors(listing, images, faulty, seed, quiet))
            or []
        )

    decisions = Decisions(
        source=name,
        fingerprint=mark,
        read_as=ReadAs.of(section, images),
        decisions=tuple(_decisions(listing, found, flat)),
    )
    table = make_table(listing, found)
    return Audit(name, mark, table, decisions, listing, images, planted, vectors, tuple(dict.fromkeys(notes)))


def _all_images(images: ImageSet, splits: np.ndarray, files: list[sources.ImageFile]) -> Listing:
    there = set(images.ids.tolist())
    lost = [file for file in files if file.id not in there]
    labels = np.array(images.classes, dtype=object)[images.strata]
    return Listing(
        np.array([*images.ids.tolist(), *(file.id for file in lost)], dtype=object),
        np.array([*splits.tolist(), *(file.split for file in lost)], dtype=object),
        np.array([*labels.tolist(), *(file.label for file in lost)], dtype=object),
    )


def _extractor(features: str, seed: int, quiet: bool) -> Callable[[ImageSet], np.ndarray]:
    """What makes features; a wrong name is found before anything is read."""
    from petriscope.audit import embeddings as kinds
    from petriscope.models import MODELS

    if features == LEARNED:
        return lambda images: kinds.learned_features(images, seed=seed, quiet=quiet)
    if Path(features).expanduser().exists():
        return lambda images: kinds.run_features(Path(features).expanduser(), images, quiet=quiet)
    if features.startswith("timm/") or features in MODELS.members:
        return lambda images: kinds.backbone_features(features, images, quiet=quiet)
    raise RequestError(
        f"--features: {features!r} is neither {LEARNED}, nor a run folder, nor a model; {near(features, MODELS.members)}"
    )


def _unless_impossible(what: str, notes: list[str], work: Callable[[], Any]) -> Any:
    """The result of ``work``, or None with a note where the set does not allow it."""
    try:
        return work()
    except DataError as error:
        notes.append(f"{what} were not looked for: {error}")
        return None


def _find_outliers(vectors: np.ndarray, images: ImageSet) -> list[Finding]:
    from petriscope.audit.outliers import find_outliers

    return list(findings.outlier_findings(find_outliers(vectors, images.targets)))


def _find_label_errors(listing: Listing, images: ImageSet, faulty: set[int], seed: int, quiet: bool) -> list[Finding]:
    from petriscope.audit.label_errors import find_label_errors, out_of_fold_probabilities

    probabilities = out_of_fold_probabilities(images, seed=seed, quiet=quiet)
    found = find_label_errors(images.targets, probabilities)
    return list(findings.label_findings(listing, found, images.classes, faulty))


def _decisions(listing: Listing, found: list[Finding], digests: list[bytes]) -> list[Decision]:
    final: Mapping[int, tuple[Any, str, str]] = findings.final_decisions(found)
    return [
        Decision(
            id=listing.ids[index],
            decision=decision,
            label=suggested or None,
            reason=reason,
            digest=digests[index].hex() if index < len(digests) else None,
        )
        for index, (decision, reason, suggested) in final.items()
    ]
