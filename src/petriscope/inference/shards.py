"""Predictions of a shard of many images, as a Parquet file.

Answers follow from probabilities and out-of-distribution scores alone. Where something is guaranteed, a shard is therefore
predicted first, without answers, and answered in a second pass, when all images have been compared with val: no file ever has
answers under a guarantee that is withdrawn.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

from petriscope.core.errors import RequestError
from petriscope.core.files import atomic, json_text, parse_json, parsing, readable
from petriscope.core.recipe import TTA
from petriscope.core.results import Result, validated
from petriscope.core.shift_results import ShiftTest
from petriscope.data.contents import Contents
from petriscope.data.in_memory import AnyFile
from petriscope.inference.answers import Answering, Outside
from petriscope.inference.decoding import decoded_blocks, digests_of
from petriscope.inference.drawn import Drawn, keys_of
from petriscope.inference.likeness import SHOWN
from petriscope.inference.predictor import Predictor
from petriscope.inference.table import Seen, Wanted
from petriscope.tasks import in_room

FACTS = b"petriscope"  # the key of `Facts` in the metadata of a file
ROWS = 1 << 14  # of a row group
PEAKS = 10_000  # images of a shard whose brightness is kept, to say whether they are nearly black


class Facts(Result):
    """What is counted in a shard.

    Args:
        images: rows; ``unreadable``: of them, without a prediction, the first of which is ``first_unreadable``.
        far: images that are out of distribution.
        confidence: mean of the highest probabilities; None: nothing was predicted.
        answers: how many images have each answer; ``abstained``: how many have none.
        answered: whether the file has answers.
        learned, fitted: images that the model was trained on, or that were in its val; the first is ``first_seen``.
        outside: images that look like classes which do not occur, the first of which is ``first_outside``.
        notes: what the files hold beside the images that were read, a sentence each.
        test: the comparison of the shard with val; None: nothing is guaranteed, so it was not compared.
        withdrawn: guarantees are withdrawn for this shard.
        units: the first unit of the listing that it has, and the one after its last; None: written by an older version.
    """

    images: int = 0
    unreadable: int = 0
    first_unreadable: str | None = None
    far: int = 0
    confidence: float | None = None
    answers: dict[str, int] = Field(default_factory=dict)
    abstained: int = 0
    answered: bool = False
    learned: int = 0
    fitted: int = 0
    first_seen: str | None = None
    outside: int = 0
    first_outside: str | None = None
    notes: list[str] = Field(default_factory=list)
    test: ShiftTest | None = None
    withdrawn: bool = False
    units: tuple[int, int] | None = None


def how_to_answer(predictor: Predictor, wanted: Wanted) -> Answering:
    """How images are answered, as the task of a model requires.

    Raises:
        RequestError: the model predicts masks, or cannot give what is wanted.
    """
    if predictor.task.dense:
        raise RequestError(
            "--shards is for models for labels; masks are written as files of their own, so name a folder alone"
        )
    found: Answering = in_room(predictor.task, "inference").answering(predictor, wanted)
    return found


def predict_shard(
    predictor: Predictor,
    blocks: Iterable[Sequence[AnyFile]],
    tta: TTA,
    out: Path,
    answering: Answering | None,
    drawn: Path | None = None,
    note: Callable[[int], object] | None = None,
    left_out: Callable[[], list[str]] = list,
    threads: int | None = None,
    units: tuple[int, int] | None = None,
) -> Facts:
    """Predict images and write one row each, atomically: image, error, ood, and one probability per class (``p_<class>``).

    Args:
        answering: adds the fields of answers; None: that is done later, by `answer_shard`.
        drawn: a file for the sample of the images that is to be compared with val; None: they are not compared.
        note: called with the number of images that were predicted since.
        left_out: called at the end, for more notes.
        threads: that decode; None: one per core.
        units: see `Facts`.
    """
    held = Contents(predictor.reading.bits, predictor.reading.gray)
    seen, outside, sample = Seen(predictor.exposure), Outside(), Drawn()
    counts, confidence = Counter[str](), 0.0
    first_unreadable: str | None = None
    with _written(out, predictor, answering) as table:
        for block, images in decoded_blocks(predictor, blocks, held, threads=threads):
            good = np.array([not isinstance(image, str) for image in images], dtype=bool)
            names = [readable(str(path)) for path in block]
            errors = [image if isinstance(image, str) else None for image in images]
            read = [image for image in images if not isinstance(image, str)]
            some = [path for path, fine in zip(block, good, strict=True) if fine]
            p = np.empty((0, len(predictor.classes)), np.float32)
            ood: np.ndarray | None = None
            if read:
                digests = digests_of(read)
                new = seen.note(some, digests)
                batch = np.stack([image.pixels for image in read])
                if drawn is not None and predictor.likeness is not None:
                    keys = keys_of(digests)
                    rows = np.flatnonzero(new)
                    rows = rows[sample.wanted(keys[rows])]
                    rows = rows[np.unique(keys[rows], return_index=True)[1]]  # ascending, copies once
                    found, traits = predictor.predict_and_compare(batch, predictor.likeness, rows, tta)
                    sample.add(int(new.sum()), keys[rows], traits, batch[rows[:SHOWN]])
                else:
                    found = predictor.predict(batch, tta)
                p, ood = found.probabilities, found.ood
                if found.outside is not None:
                    outside.note(some, found.outside)
                confidence += float(p.max(1).sum(dtype=np.float64))
                counts["far"] += 0 if ood is None else int((~(ood <= 1)).sum())
            for error in errors:
                first_unreadable = first_unreadable or error
            counts.update(images=len(block), unreadable=len(block) - len(read))
            table.add(names, errors, good, p, ood)
            for peaks in held.peaks.values():
                del peaks[PEAKS:]
            if note is not None:
                note(len(block))
        predicted = counts["images"] - counts["unreadable"]
        test = None
        if drawn is not None:
            sample.write(drawn)
            test = sample.compared(predictor.likeness, predictor.classes).test
        table.facts = Facts(
            images=counts["images"],
            unreadable=counts["unreadable"],
            first_unreadable=first_unreadable,
            far=counts["far"],
            confidence=confidence / predicted if predicted else None,
            answers=dict(table.answers),
            abstained=table.abstained,
            answered=answering is not None,
            learned=seen.counts["train"],
            fitted=seen.counts["val"],
            first_seen=None if seen.first is None else readable(str(seen.first)),
            outside=outside.count,
            first_outside=None if outside.first is None else readable(str(outside.first)),
            notes=[*held.warnings(), *left_out()],
            test=test,
            units=units,
        )
    return table.facts


def answer_shard(
    path: Path, out: Path, predictor: Predictor, answering: Answering, rules: Any, withdrawn: bool
) -> Facts:
    """Write the rows of a shard that was predicted with answers, atomically.

    Args:
        path: of the file without answers.
        rules: by which they are answered.
        withdrawn: guarantees are withdrawn for this shard.
    """
    import pyarrow.parquet as pq

    facts = read_facts(path)
    with _written(out, predictor, answering, rules) as table, parsing(path, REPEAT), pq.ParquetFile(path) as file:
        for batch in file.iter_batches(ROWS):
            errors = batch.column("error").to_pylist()
            good = np.array([error is None for error in errors], dtype=bool)
            each = [batch.column(name).to_numpy(zero_copy_only=False)[good] for name in _probabilities(predictor)]
            column = batch.column("ood")
            ood = None if column.null_count == len(column) else column.to_numpy(zero_copy_only=False)[good]
            table.add(batch.column("image").to_pylist(), errors, good, np.stack(each, 1).astype(np.float32), ood)
        found = {"answers": dict(table.answers), "abstained": table.abstained, "answered": True, "withdrawn": withdrawn}
        table.facts = facts.model_copy(update=found)
    return table.facts


REPEAT = "remove it, and give the same command again"


def read_facts(path: Path, units: tuple[int, int] | None = None, whole: bool = False) -> Facts:
    """
    Args:
        units: that it should have; None: whatever it has.
        whole: read its rows, too, and compare their checksums.

    Raises:
        RequestError: the file is damaged, was not written as a shard, or is another one.
    """
    import pyarrow.parquet as pq

    with parsing(path, REPEAT):
        if not path.is_file():
            raise ValueError("it is not a file")
        with pq.ParquetFile(path, page_checksum_verification=whole) as file:
            facts: Facts = validated(Facts, parse_json((file.metadata.metadata or {})[FACTS]), str(path))
            if file.metadata.num_rows != facts.images:
                raise ValueError(f"it has {file.metadata.num_rows:,} rows for {facts.images:,} images")
            if None not in (units, facts.units) and units != facts.units:
                raise ValueError("it is another shard")
            for _ in file.iter_batches(ROWS) if whole else ():
                pass
    return facts


def _probabilities(predictor: Predictor) -> list[str]:
    return [f"p_{name}" for name in predictor.classes]


@contextmanager
def _written(path: Path, predictor: Predictor, answering: Answering | None, rules: Any = None) -> Iterator[_Table]:
    """A Parquet file of predictions that is written in parts, and replaces another when all are there.

    Args:
        answering: None: without answers. ``rules``: None: those of its plan.
    """
    import pyarrow.parquet as pq

    with atomic(path) as temporary:
        table = _Table(predictor, answering, rules)
        with pq.ParquetWriter(temporary, table.schema, write_page_checksum=True) as writer:
            table.writer = writer
            yield table
            table.write()
            writer.add_key_value_metadata({FACTS: json_text(table.facts.model_dump(mode="json")).encode()})


class _Table:
    """The rows of a file.

    Args:
        facts: set at the end.
        answers, abstained: as of `Facts`, of what was added so far.
    """

    facts: Facts
    writer: Any

    def __init__(self, predictor: Predictor, answering: Answering | None, rules: Any) -> None:
        import pyarrow as pa

        self.answering = answering
        self.rules = answering.plan if rules is None and answering is not None else rules
        self.probabilities = _probabilities(predictor)
        self.answers, self.abstained = Counter[str](), 0
        self.waiting: list[Any] = []
        self.rows = 0
        number, text = pa.float32(), pa.string()
        said = {} if answering is None else dict.fromkeys(answering.columns, text)
        said |= {"confidence": number} if "confidence" in said else {}
        kinds = {"image": text, "error": text, **said, "ood": number, **dict.fromkeys(self.probabilities, number)}
        self.schema = pa.schema(list(kinds.items()))

    def add(
        self,
        names: Sequence[str],
        errors: Sequence[str | None],
        good: np.ndarray,
        probabilities: np.ndarray,
        ood: np.ndarray | None,
    ) -> None:
        """Add rows.

        Args:
            names, errors: of N images.
            good: which of them were predicted, bool [N].
            probabilities, ood: of these, float32 [P, K] and [P]; ``ood`` None: there are no scores.
        """
        import pyarrow as pa

        def spread(values: np.ndarray | None) -> Any:
            out = np.zeros(len(good), np.float32)
            if values is not None:
                out[good] = values
            return pa.array(out, mask=~good if values is not None else np.ones(len(good), bool))

        columns: dict[str, Any] = {"image": names, "error": errors, "ood": spread(ood)}
        columns |= {name: spread(probabilities[:, k]) for k, name in enumerate(self.probabilities)}
        if self.answering is not None:
            said: Iterator[Mapping[str, Any]] = iter(self.answering.rows(probabilities, ood, self.rules))
            rows = [next(said) if fine else None for fine in good]
            for name in self.answering.columns:
                columns[name] = [None if row is None else row[name] for row in rows]
            for row in rows:
                if row is not None:
                    given, abstained = self.answering.counted(row)
                    self.answers.update(given)
                    self.abstained += abstained
        self.waiting.append(pa.table([columns[name] for name in self.schema.names], schema=self.schema))
        self.rows += len(names)
        if self.rows >= ROWS:
            self.write()

    def write(self) -> None:
        """Write what was added since."""
        import pyarrow as pa

        if self.waiting:
            self.writer.write_table(pa.concat_tables(self.waiting))
        self.waiting, self.rows = [], 0
