"""Prediction of any number of images in shards: a folder that any number of processes, on any number of machines, work on.

    job.json           what is predicted, and with which model; written once, when the listing is complete
    listing.parquet    the images, see `petriscope.data.sources.units`
    pending/           shards that are predicted and not answered yet, and samples of them; removed at the end
    shard-00000.parquet ...
    summary.json       written when all shards are there

Who works on a shard holds its lock, which the system frees when the process ends, and a shard appears by a rename when it is
whole. So a process that is killed loses the shard that it was at, and the next one takes it up.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from os import PathLike
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, field_validator

from petriscope.core.device import choose_device, cores
from petriscope.core.errors import Interrupted, PetriscopeError, RequestError
from petriscope.core.files import (
    check_files,
    json_text,
    locked,
    parse_json,
    parsing,
    path_text,
    read_text,
    sweep,
    user_path,
    write_text,
)
from petriscope.core.progress import Progress, progress, say
from petriscope.core.recipe import TTA
from petriscope.core.results import Result, validated
from petriscope.core.scale import ESTIMATED, asked_scale
from petriscope.core.shift_results import ShiftTest
from petriscope.core.version import __version__
from petriscope.data.index import content_digest
from petriscope.data.omissions import LeftOut
from petriscope.data.sources.units import Listing, Source, read_blocks, split_evenly, write_listing
from petriscope.experiments.beside_val import write_compared
from petriscope.experiments.parallel import LOOK_EVERY
from petriscope.experiments.pools import Command, Pool, open_pool
from petriscope.experiments.pools import Job as Started
from petriscope.inference.answers import Answering, Outside
from petriscope.inference.drawn import Drawn
from petriscope.inference.exported import open_model
from petriscope.inference.likeness import Compared
from petriscope.inference.package import MANIFEST, is_package
from petriscope.inference.predictor import Predictor, model_path
from petriscope.inference.scaling import ChosenScale, sentence
from petriscope.inference.shards import Facts, answer_shard, how_to_answer, predict_shard, read_facts
from petriscope.inference.table import Seen, Wanted
from petriscope.training.loop import interruptible
from petriscope.trust.prior import Names, Shares, parse_prior
from petriscope.trust.verdict import NOTHING, UNCLAIMED, verdict

JOB, LISTING, SUMMARY, PENDING = "job.json", "listing.parquet", "summary.json", "pending"
LOCKS = "locks"
MOST_SHARDS = 100_000
MOST_BYTES = 1 << 30  # of a file of a job
ODD = 3.0  # standard deviations from which the share of out-of-distribution images of a shard is named


class Options(Result):
    """How images are predicted, as it was asked for; see `petriscope.api.predict`."""

    tta: TTA | None = None
    max_error: float | None = None
    set_coverage: float | None = None
    classes: str | list[str] | None = None
    prior: str | list[str] | dict[str, float] | None = None
    without_guarantee: bool = False
    scale: float | str | None = None

    @property
    def guarantees(self) -> bool:
        """Whether something is to be guaranteed."""
        return self.max_error is not None or self.set_coverage is not None


class Job(Result):
    """The contents of ``job.json``.

    Args:
        version: of Petriscope.
        model: the path of the run, the model file or the package; ``digest``: of the model file, or of the manifest.
        sources: paths or addresses.
        asked: the number of shards that were asked for.
        options: how images are predicted.
        starts: the unit that each shard begins with, and the number of units.
        images: their number; None: it is not known before they are read.
        notes: what was left out, a sentence each.
    """

    version: str
    model: str
    digest: str
    sources: list[str]
    asked: int
    options: Options
    starts: list[int]
    images: Annotated[int, Field(ge=0)] | None = None
    notes: list[str] = Field(default_factory=list)

    @field_validator("starts")
    @classmethod
    def _ascend(cls, value: list[int]) -> list[int]:
        if len(value) < 2 or value[0] != 0 or any(one > other for one, other in pairwise(value)):
            raise ValueError("they must ascend from 0, for one shard or more")
        return value


class Shard(Result):
    """A shard in ``summary.json``.

    Args:
        file: its name.
        far: the share of its images that are out of distribution.
        facts: what is counted in it.
    """

    file: str
    far: float
    facts: Facts


class Summary(Result):
    """The contents of ``summary.json``.

    Args:
        images, unreadable, far, confidence, answers, abstained: as of `Facts`, of all images.
        test: the comparison of all images with val; None: nothing is guaranteed, so they were not compared.
        withdrawn: shards for which guarantees are withdrawn: all, or those that alone are not like val.
        shards: each of them, in order, so that drift shows.
    """

    images: int
    unreadable: int
    far: int
    confidence: float | None
    answers: dict[str, int]
    abstained: int
    test: ShiftTest | None
    withdrawn: int
    shards: list[Shard]


@dataclass(frozen=True)
class Work:
    """A folder in which images are predicted in shards, and the model.

    Args:
        folder: of the job.
        job: what is to be done.
        device: see `petriscope.core.device.choose_device`.
        threads: that decode; None: one per core.
    """

    folder: Path
    job: Job
    device: str
    threads: int | None = None

    @cached_property
    def predictor(self) -> Predictor:
        return _open(self.job.model, self.job.options, self.device)

    @cached_property
    def answering(self) -> Answering:
        asked = self.job.options
        return how_to_answer(self.predictor, Wanted(None, self.tta, asked.max_error, asked.set_coverage, True))

    @property
    def tta(self) -> TTA:
        return self.job.options.tta or self.predictor.recipe.evaluation.tta

    @property
    def count(self) -> int:
        return len(self.job.starts) - 1

    @property
    def sources(self) -> list[Source]:
        return [Source(name) for name in self.job.sources]

    def final(self, number: int) -> Path:
        return self.folder / _name(number)

    def pending(self, number: int) -> Path:
        return self.folder / PENDING / _name(number)

    def units(self, number: int) -> tuple[int, int]:
        return self.job.starts[number], self.job.starts[number + 1]

    def sample(self, number: int) -> Path:
        return self.pending(number).with_suffix(".npz")

    def is_predicted(self, number: int, exists: Callable[[Path], bool] = Path.is_file) -> bool:
        """Whether a shard has its rows and, if all images are still to be compared with val, its sample.

        Args:
            exists: tells of a path in the folder whether it is there.
        """
        if not (exists(self.final(number)) or exists(self.pending(number))):
            return False
        return not self.job.options.guarantees or exists(self.folder / SUMMARY) or exists(self.sample(number))

    @property
    def missing(self) -> list[int]:
        """The shards that are not predicted. To list the folders once takes less time than to look for each file."""
        there = {*self.folder.iterdir(), *(self.folder / PENDING).glob("*")}
        return [number for number in range(self.count) if not self.is_predicted(number, there.__contains__)]

    @property
    def is_finished(self) -> bool:
        return (self.folder / SUMMARY).is_file()

    @contextmanager
    def claimed(self, number: int) -> Iterator[bool]:
        """Work on a shard alone; False: another process does."""
        try:
            with locked(self.folder / LOCKS / f"{number}.lock", _refuse):
                yield True
        except _Busy:
            yield False

    # ----------------------------------------------------------------------------------------------------------- steps

    def predict(self, bar: Progress | None = None) -> None:
        """Predict the shards that nobody has predicted or is predicting."""
        for number in range(self.count):
            if not self.is_predicted(number):
                with self.claimed(number) as mine:
                    if mine and not self.is_predicted(number):
                        self._predict(number, bar)

    def _predict(self, number: int, bar: Progress | None) -> None:
        withheld = self.job.options.guarantees
        self.final(number).unlink(missing_ok=True)  # its sample is missing
        left_out, done = LeftOut(), 0

        def note(count: int) -> None:
            nonlocal done
            done += count
            if bar is not None:
                bar.advance(0, f"{done:,} images of shard {number}")

        start, stop = self.units(number)
        data = self.predictor.recipe.data
        blocks = read_blocks(
            self.folder / LISTING, start, stop, self.sources, self.predictor.reading.pages, data.image, left_out
        )
        out = self.pending(number) if withheld else self.final(number)
        where = self.job.sources[0] if len(self.job.sources) == 1 else "the sources"
        predict_shard(
            self.predictor,
            blocks,
            self.tta,
            out,
            None if withheld else self.answering,
            self.sample(number) if withheld else None,
            note,
            lambda: left_out.sentences(where),
            self.threads,
            (start, stop),
        )
        if bar is not None:
            bar.advance(1)

    def compare(self) -> Compared | None:
        """Compare all images with val; None if nothing is to be guaranteed."""
        if not self.job.options.guarantees:
            return None
        every = Drawn()
        for number in range(self.count):
            every.merge(Drawn.read(self.sample(number)))
        return every.compared(self.predictor.likeness, self.predictor.classes)

    def answer(self, compared: Compared, bar: Progress) -> None:
        """Answer the shards that were predicted without answers."""
        for number in range(self.count):
            if not self.final(number).is_file():
                test = read_facts(self.pending(number), self.units(number)).test
                withdrawn = compared.test.withdrawn or (test is not None and test.withdrawn)
                rules = self.answering.plan
                if withdrawn:
                    rules = rules.without_guarantee(answer=self.job.options.without_guarantee)
                answer_shard(self.pending(number), self.final(number), self.predictor, self.answering, rules, withdrawn)
            bar.advance()

    def summarize(self, test: ShiftTest | None) -> Summary:
        """Write the summary, and remove what is no longer needed."""
        shards, counts, answers, confidence = list[Shard](), Counter[str](), Counter[str](), 0.0
        for number in range(self.count):
            facts = read_facts(self.final(number), self.units(number))
            predicted = facts.images - facts.unreadable
            shards.append(Shard(file=_name(number), far=facts.far / max(predicted, 1), facts=facts))
            counts.update(
                images=facts.images,
                unreadable=facts.unreadable,
                far=facts.far,
                abstained=facts.abstained,
                withdrawn=facts.withdrawn,
            )
            answers.update(facts.answers)
            confidence += (facts.confidence or 0.0) * predicted
        predicted = counts["images"] - counts["unreadable"]
        made = Summary(
            images=counts["images"],
            unreadable=counts["unreadable"],
            far=counts["far"],
            confidence=confidence / predicted if predicted else None,
            answers=dict(answers.most_common()),
            abstained=counts["abstained"],
            test=test,
            withdrawn=counts["withdrawn"],
            shards=shards,
        )
        write_text(self.folder / SUMMARY, json_text(made.model_dump(mode="json"), indent=1))
        return made

    def check_finished(self) -> None:
        """Look whether a finished job still has its shards. If one is gone, the summary is taken back, so that the job goes on.

        Raises:
            RequestError: a shard is damaged.
        """
        there = {*self.folder.iterdir()}
        gone = [number for number in range(self.count) if self.final(number) not in there]
        with progress("looking at shards", self.count - len(gone)) as bar:
            for number in sorted({*range(self.count)}.difference(gone)):
                read_facts(self.final(number), self.units(number), whole=True)
                bar.advance()
        if gone:
            say(
                f"warning: {len(gone):,} of {self.count:,} shards are not in {self.folder} any more, the first: "
                f"{_name(gone[0])}; what is missing is predicted again"
            )
            (self.folder / SUMMARY).unlink(missing_ok=True)

    def clean(self) -> None:
        """Remove what a finished job does not need, and what killed processes left."""
        for name in (PENDING, LOCKS):
            shutil.rmtree(self.folder / name, ignore_errors=True)
        sweep(self.folder, age=0)


class _Busy(Exception):
    """Another process holds the lock."""


def _refuse() -> None:
    raise _Busy


def _name(number: int) -> str:
    return f"shard-{number:05d}.parquet"


def _open(model: str, asked: Options, device: str) -> Predictor:
    predictor = open_model(model, device)
    predictor = predictor.under(parse_prior(predictor.classes, asked.classes, asked.prior))
    scale = asked_scale(asked.scale)
    return predictor if scale is None else predictor.at_scale(scale)


def predict_in_shards(
    model: str | PathLike[str],
    sources: Sequence[str],
    out: str | PathLike[str],
    shards: int,
    jobs: int | None = None,
    device: str = "auto",
    quiet: bool = False,
    tta: TTA | None = None,
    max_error: float | None = None,
    set_coverage: float | None = None,
    classes: Names | None = None,
    prior: Shares | None = None,
    without_guarantee: bool = False,
    scale: float | str | None = None,
    on: str | None = None,
    cpus: int = 1,
    gpus: float | None = None,
) -> Summary:
    """Predict the images of sources in shards, as `petriscope.api.predict_in_shards` says."""
    if not 1 <= shards <= MOST_SHARDS:
        raise RequestError(f"the number of shards must be from 1 to {MOST_SHARDS:,}, not {shards:,}")
    if asked_scale(scale) == ESTIMATED:
        raise RequestError(
            "with --shards, the scale is not estimated; predict some of the images without --shards, and give the number "
            "that is said there"
        )
    options = Options(
        tta=tta,
        max_error=max_error,
        set_coverage=set_coverage,
        classes=_plain(classes),
        prior=_plain(prior),
        without_guarantee=without_guarantee,
        scale=asked_scale(scale),
    )
    folder, path = Path(path_text(out)), user_path(model).absolute()
    _check_free(folder)
    asked = {
        "version": __version__,
        "digest": _digest(path),
        "sources": [Source.given(each).name for each in sources],
        "asked": shards,
        "options": options,
    }
    begun = (folder / JOB).is_file()
    if not begun:
        _begin(folder, str(path), asked, device)
    work = _resumed(folder, asked, device)
    if begun and not quiet:
        say(
            f"note: {folder} was begun before, and its images are those that were listed then; images that were added or changed "
            "since are not looked for"
        )
    if not quiet:
        _say_first(work)
    if work.is_finished:
        work.check_finished()
    if not work.is_finished:
        try:
            _run(work, jobs, on, cpus, gpus, quiet)
        except KeyboardInterrupt:
            raise Interrupted("interrupted; the same command goes on from there") from None
    work.clean()
    summary = _read(work.folder / SUMMARY, Summary)
    if not quiet:
        say_summary(work, summary)
    return summary


def work_on(folder: Path, device: str, threads: int | None = None) -> None:
    """Predict shards of a job that was begun in a folder, as one of several processes."""
    Work(folder, _read(folder / JOB, Job), device, threads).predict()


def _plain(given: Names | Shares | None) -> Any:
    if given is None or isinstance(given, str):
        return given
    return dict(given) if isinstance(given, Mapping) else list(given)


def _digest(path: Path) -> str:
    file = path / MANIFEST if is_package(path) else model_path(path)
    if not file.is_file():
        raise RequestError(f"no model at {file}; a run folder has one once training has finished")
    with parsing(file):
        return content_digest(file)


def _read(path: Path, kind: Any) -> Any:
    with parsing(path, "remove the folder, and begin again"):
        return validated(kind, parse_json(read_text(path, MOST_BYTES, "the file of a job")), str(path))


def _check_free(folder: Path) -> None:
    """Refuse a folder that has something else."""
    if folder.exists() and not folder.is_dir():
        raise RequestError(f"{folder} is a file; with --shards, --out is a folder")
    check_files(folder, (JOB, LISTING, SUMMARY))
    if folder.is_dir() and not (folder / JOB).is_file():
        others = [each.name for each in folder.iterdir() if not each.name.startswith(".") and each.name != LISTING]
        if others:
            raise RequestError(f"{folder} has other files, such as {others[0]}; choose a new folder as --out")


def _begin(folder: Path, model: str, asked: Mapping[str, Any], device: str) -> None:
    """List the images and write the job, unless another process does."""
    work = Work(folder, Job(model=model, starts=[0, 0], **asked), device)
    _ = work.answering  # whatever is wrong with the request is said before anything is made
    lock = folder / ".lock"
    with locked(lock, lambda: say(f"another process lists the images for {folder}; waiting for its end")):
        if (folder / JOB).is_file():
            return
        try:
            listing = write_listing(folder / LISTING, work.sources, work.predictor.recipe.data.image)
            starts = split_evenly(folder / LISTING, listing, min(asked["asked"], listing.units))
            job = Job(model=model, starts=starts, images=listing.images, notes=list(listing.notes), **asked)
            write_text(folder / JOB, json_text(job.model_dump(mode="json")))
        except BaseException:
            with suppress(OSError):
                (folder / LISTING).unlink(missing_ok=True)
                lock.unlink()
                folder.rmdir()
            raise
    for note in _notes_of(listing, asked["asked"], len(starts) - 1):
        say(note)


def _notes_of(listing: Listing, asked: int, shards: int) -> list[str]:
    few = (
        [f"note: {shards:,} shards, not {asked:,}: the source has {listing.units:,} parts that are read one by one"]
        if shards < asked
        else []
    )
    return [*listing.notes, *few]


def _resumed(folder: Path, asked: Mapping[str, Any], device: str) -> Work:
    job: Job = _read(folder / JOB, Job)
    words = {"version": "version of Petriscope", "digest": "model", "sources": "source", "asked": "number of shards"}
    other = [word for key, word in words.items() if getattr(job, key) != asked[key]]
    for key in Options.model_fields:
        if getattr(job.options, key) != getattr(asked["options"], key):
            other.append(f"--{key.replace('_', '-')}")
    if other:
        raise RequestError(
            f"{folder} was begun with another {' and another '.join(other)}; give the command that it was begun with, or "
            "choose another --out"
        )
    return Work(folder, job, device)


def _say_first(work: Work) -> None:
    predictor, asked = work.predictor, work.job.options
    known = parse_prior(predictor.classes, asked.classes, asked.prior)
    notes = [] if known is None else [known.sentence()]
    if predictor.recipe.data.crop is not None:
        notes.append(
            "the model learned from objects that were cut out of images (data.crop); an image here must show one object"
        )
    if (scale := predictor.recipe.data.scale) is not None:
        notes.append(sentence(ChosenScale(scale, asked=asked.scale is not None)))
    for each in notes:
        say(f"note: {each}")


def _run(work: Work, jobs: int | None, on: str | None, cpus: int, gpus: float | None, quiet: bool) -> None:
    """Predict all shards, here or in processes of their own, and answer and summarize them."""
    waiting = work.missing
    if on is None:
        most = 1 if choose_device(work.device).type != "cpu" else cores()
        jobs = max(1, min(jobs or most, len(waiting)))
    with (
        open_pool(on, jobs, cpus, gpus) if waiting else nullcontext() as pool,
        progress("predicting", work.count, "shards") as bar,
    ):
        bar.start_from(work.count - len(waiting))
        if pool is not None:
            _in_processes(work, pool, min(jobs or pool.room(work.device), len(waiting)), bar, quiet)
        work.predict(None if quiet else bar)
    while missing := work.missing:
        say(f"other processes work on {len(missing):,} shards; waiting for their end")
        with locked(work.folder / LOCKS / f"{missing[0]}.lock", lambda: None):
            pass
        work.predict()
    with locked(work.folder / ".lock", lambda: say("another process writes the answers; waiting for its end")):
        if work.is_finished:
            return
        compared = work.compare()
        if compared is not None:
            _say_verdict(work, compared, quiet)
            with progress("answering", work.count, "shards") as bar:
                work.answer(compared, bar)
        work.summarize(None if compared is None else compared.test)


def _say_verdict(work: Work, compared: Compared, quiet: bool) -> None:
    """That guarantees are withdrawn is always said, anything else unless ``quiet``."""
    asked, test = work.job.options, compared.test
    then = UNCLAIMED if asked.without_guarantee else NOTHING
    how = work.answering
    said = verdict(test, then=then, mix_given=how.mix_given, adapts=how.adapts)
    for each in said if test.withdrawn or not quiet else ():
        say(each)
    if test.withdrawn:
        model, source = work.job.model, work.job.sources[0]
        write_compared(
            work.folder / "shift.html", compared, work.predictor.classes, model, source, None, work.predictor.channels
        )
        return
    alone = [number for number in range(work.count) if _withdrawn(work, number)]
    if alone:
        first = read_facts(work.pending(alone[0]) if work.pending(alone[0]).is_file() else work.final(alone[0])).test
        assert first is not None
        say(
            f"of {work.count:,} shards, {len(alone):,} are not like val by themselves, the first: {_name(alone[0])}. For these, "
            f"and not for the others: {verdict(first, then=then, mix_given=how.mix_given, adapts=how.adapts)[0]}"
        )
    for note in () if quiet else how.plan.notes:
        say(note)


def _withdrawn(work: Work, number: int) -> bool:
    path = work.pending(number) if work.pending(number).is_file() else work.final(number)
    test = read_facts(path).test
    return test is not None and test.withdrawn


def _in_processes(work: Work, pool: Pool, jobs: int, bar: Progress, quiet: bool) -> None:
    """Let several processes predict shards.

    Raises:
        PetriscopeError: one of them failed; the message is what it said.
        Interrupted: Ctrl-C or SIGTERM.
    """
    folder = work.folder.absolute()
    words = ("work-on-shards", str(folder), "--device", work.device, "--threads", str(pool.threads))
    named = [work.job.model, *work.job.sources]
    with pool.scratch(folder, named, [work.device]) as scratch, interruptible() as stop:
        started: list[Started] = []
        try:
            for number in range(jobs):
                started.append(pool.start(Command(words, scratch / f"{number}.log", device=work.device)))
            ended: list[Started] = []
            while len(ended) < jobs:
                ended = pool.wait(started, LOOK_EVERY)
                if stop.is_set():
                    raise Interrupted("interrupted; the same command goes on from there")
                if not quiet:
                    bar.advance(max(work.count - len(work.missing) - bar.done, 0))
                if said := next((error for job in ended if (error := job.error()) is not None), None):
                    raise PetriscopeError(f"{said}; the same command goes on from there")
        finally:
            pool.stop(started)


def say_summary(work: Work, summary: Summary) -> None:
    """Say what came out, and how far shards differ."""
    n, predicted = summary.images, summary.images - summary.unreadable
    say(f"{n:,} images in {work.count:,} shards in {work.folder}: {summary.abstained:,} without an answer")
    for name, count in summary.answers.items():
        say(f"  {name}  {count:,}  ({100 * count / max(predicted, 1):.1f} %)")
    facts = [shard.facts for shard in summary.shards]
    share = summary.far / max(predicted, 1)
    shares = [shard.far for shard in summary.shards]
    odd = [shard.file for shard in summary.shards if _is_odd(shard, share)]
    say(
        f"out of distribution: {100 * share:.1f} %, by shard {100 * min(shares):.1f} to {100 * max(shares):.1f} %"
        + (f"; more than chance explains in {len(odd):,}, the first: {odd[0]}" if odd else "")
    )
    if noted := [shard for shard in summary.shards if shard.facts.notes]:
        for note in noted[0].facts.notes:
            say(f"warning: {noted[0].file}: {note}")
        if len(noted) > 1:
            say(f"warning: so or alike in {len(noted):,} shards; {SUMMARY} has the notes of each")
    seen = Seen(work.predictor.exposure)
    seen.counts = {"train": sum(f.learned for f in facts), "val": sum(f.fitted for f in facts)}
    seen.counts[""] = predicted - sum(seen.counts.values())
    seen.first = next((each.first_seen for each in facts if each.first_seen), None)
    seen.tell()
    outside = Outside()
    outside.images, outside.count = predicted, sum(each.outside for each in facts)
    outside.first = next((each.first_outside for each in facts if each.first_outside), None)
    outside.tell()


def _is_odd(shard: Shard, share: float) -> bool:
    """Whether more images of a shard are out of distribution than chance explains."""
    count = max(shard.facts.images - shard.facts.unreadable, 1)
    return shard.far - share > ODD * max(share * (1 - share) / count, 1 / count**2) ** 0.5
