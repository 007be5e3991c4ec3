"""The run folder: everything that came out of a recipe, in files that can be read without Petriscope."""

from __future__ import annotations

import io
import os
import platform
import shlex
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib import import_module, metadata
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zipfile import ZipFile

import numpy as np

from petriscope.core.csv_tables import csv_text, read_csv
from petriscope.core.device import cores
from petriscope.core.errors import RequestError, command, hide_password
from petriscope.core.files import (
    TEMPORARY,
    atomic,
    check_files,
    json_text,
    locked,
    new_folder,
    parse_json,
    parsing,
    read_text,
    slug,
    sweep,
    user_path,
    write_text,
)
from petriscope.core.launch import launch
from petriscope.core.progress import say
from petriscope.core.recipe import Recipe, load_recipe
from petriscope.core.results import (
    SCHEMA_VERSION,
    DataInfo,
    Environment,
    Epoch,
    Hardware,
    Result,
    Results,
    SplitInfo,
    read_environment,
    read_epoch,
    read_results,
)
from petriscope.core.version import __version__
from petriscope.data.imageset import Dataset
from petriscope.data.membership import FILE as SPLITS_FILE
from petriscope.data.membership import Membership
from petriscope.data.recognition import membership_of

if TYPE_CHECKING:
    import pandas as pd

MOST_BYTES = 2**30  # of a file in a run folder, unpacked
CROSS_VALIDATED = "final"  # in the folder of a cross-validation, the run of its model
FILES = (
    "metrics.jsonl",
    "model.safetensors",
    "results.json",
    "predictions.parquet",
    SPLITS_FILE,
    "gallery.npz",
    "audited.csv",
    "report.html",
    ".lock",
)  # that a run may have, beside those by which it is known
PACKAGES = ("torch", "timm", "numpy", "pillow", "scikit-learn")


@dataclass(frozen=True)
class Run:
    """A run folder.

    - ``recipe.yaml``: the resolved recipe;
    - ``environment.json``: versions, hardware, data and their fingerprint;
    - ``splits.parquet``: the split, id and content digest of every image; not in runs of older versions;
    - ``metrics.jsonl``: one line per epoch;
    - ``model.safetensors``: the model, with all that prediction needs;
    - ``checkpoint/``: all that resuming needs, until the run is finished;
    - ``results.json``: training summary, cost, metrics per split;
    - ``predictions.parquet``: one row per image;
    - ``gallery/``: the images in the report;
    - ``audited.csv``: one row per image that an audit's decisions left out or relabeled; only if there were decisions;
    - ``report.html``.
    """

    folder: Path

    def __fspath__(self) -> str:
        """A run can stand wherever its folder can: ``petriscope.evaluate(run)``."""
        return str(self.folder)

    def _repr_html_(self) -> str:
        """What a notebook shows: the metrics as they are on the page, by `petriscope.report`, which is above this room."""
        html: str = import_module("petriscope.report.notebook").run_html(self)
        return html

    @property
    def recipe(self) -> Recipe:
        path = self.folder / "recipe.yaml"
        recipe = load_recipe(path)
        if lacking := [key for key in ("data", "model", "training") if key not in recipe.model_fields_set]:
            raise RequestError(
                f"{path} is damaged: it lacks {', '.join(lacking)}, and the recipe of a run has all keys"
            )
        return recipe

    @property
    def environment(self) -> Environment:
        path = self.folder / "environment.json"
        return read_environment(_read_json(path), str(path))

    @property
    def history(self) -> list[Epoch]:
        """The contents of ``metrics.jsonl``, one entry per epoch."""
        path = self.folder / "metrics.jsonl"
        if not path.is_file():
            return []
        epochs = []
        for number, line in enumerate(read_text(path, MOST_BYTES, "the history of a run").split("\n"), 1):
            if line.strip():
                where = f"line {number} of {path}"
                with parsing(where):
                    epochs.append(read_epoch(parse_json(line), where))
        return epochs

    @property
    def results(self) -> Results:
        """Training summary, cost, and the evaluations so far."""
        path, task = self.folder / "results.json", self.environment.data.task
        return read_results(_read_json(path), task, str(path)) if path.is_file() else Results(task=task)

    @property
    def finished(self) -> bool:
        return self.results.training is not None

    @property
    def predictions(self) -> pd.DataFrame:
        """One row per evaluated image. Classification: id, split, target, predicted, confidence, and one probability per
        class (``p_<class>``). Segmentation: see `petriscope.metrics.segmentation.mask_table`."""
        return self.read_predictions(lambda _: True)

    def read_predictions(self, wanted: Callable[[str], bool]) -> pd.DataFrame:
        """The columns of `predictions` whose names are ``wanted``. Others, which may be one per class, are not read."""
        import pandas as pd
        from pyarrow.parquet import read_schema

        path = self.folder / "predictions.parquet"
        if not path.is_file():
            return pd.DataFrame({"split": []})
        with parsing(path, self._evaluate_again), path.open("rb") as handle:
            table = pd.read_parquet(handle, columns=[name for name in read_schema(handle).names if wanted(name)])
            for name in ("id", "split"):
                if table[name].isna().any():
                    raise ValueError(f"rows without {name}")
                table[name] = table[name].astype(str)
            for name in table.columns:  # Arrow would find out only later that a text is none
                if not pd.api.types.is_numeric_dtype(table[name]):
                    table[name] = table[name].astype(object)
                if (name == "confidence" or name.startswith("p_")) and not table[name].between(0, 1.001).all():
                    raise ValueError(f"{name} has values that are no probability")
            return table

    @property
    def _evaluate_again(self) -> str:
        return f"delete it, and evaluate again: {command('evaluate', self.folder)}"

    @property
    def membership(self) -> Membership | None:
        """Which image is in which split; None for a run of an older version, which did not record it."""
        path = self.folder / SPLITS_FILE
        if not path.is_file():
            return None
        with parsing(
            path, "delete it, and what the model has seen is found out from the data if they have not changed"
        ):
            return Membership.read(path)

    @property
    def audited(self) -> pd.DataFrame:
        """The images that an audit's decisions left out or relabeled: id, split, label, decision, new_label, reason."""
        import pandas as pd

        path = self.folder / "audited.csv"
        if not path.is_file():
            return pd.DataFrame({"decision": []})
        with parsing(path):
            return read_csv(path)

    @property
    def gallery(self) -> dict[str, np.ndarray]:
        """The images in the report, by name: all arrays of the files in ``gallery/``. Runs of schema version 1 have one
        file, ``gallery.npz``.

        - ``augmented`` uint8 [P, V, H, W, C]: images and their augmented versions; ``augmented_masks`` uint8 [P, V, H, W];
        - ``mistakes_<split>`` uint8 [M, H, W, C] and ``mistakes_<split>_ids``, the most confident first;
        - ``disturbed`` uint8 [P, 4, H, W, C]: one image under each of ``disturbed_names`` at severities 0, 1, 3 and 5;
        - ``reconstructions_<split>`` uint8 [P, 2, H, W, C]: images and their reconstructions by an autoencoder; ``_ids``;
        - ``segments_<split>_images`` uint8 [G, H, W, C]; ``_truth``, ``_predicted`` (class indices, 255 is unlabeled) and
          ``_confidence`` (255 is certain) uint8 [G, H, W]; ``_ids``; ``_miou`` float [G]; ``_rank`` (best, median, worst);
        - errors and explanations, see `petriscope.experiments.classification.record` and
          `petriscope.experiments.segmentation.record`.
        """
        out: dict[str, np.ndarray] = {}
        for path in self.gallery_files:
            out |= read_gallery(path)
        return out

    @property
    def gallery_files(self) -> list[Path]:
        return [
            path
            for path in (self.folder / "gallery.npz", *sorted((self.folder / "gallery").glob("*.npz")))
            if path.is_file()
        ]

    @property
    def checkpoint(self) -> Path:
        return self.folder / "checkpoint" / "state.safetensors"

    @property
    def model(self) -> Path:
        return self.folder / "model.safetensors"

    @contextmanager
    def claimed(self) -> Iterator[None]:
        """Work on the run alone: hold a lock on its folder, which ends with the process, and remove what killed processes left
        there. A process that works on a finished run is waited for.

        Raises:
            RequestError: another process is training the run.
            PetriscopeError: the folder may not be written.
        """

        def busy() -> None:
            if not self.finished:
                raise RequestError(f"another process is training {self.folder}; wait until it ends, or stop it")
            say(f"another process works on {self.folder}; waiting for its end")

        with locked(self.folder / ".lock", busy):
            for folder in (self.folder, self.checkpoint.parent, self.folder / "gallery"):
                sweep(folder, age=0)
            yield

    def finish(self) -> None:
        """Remove what only an unfinished run needs. A checkpoint takes several times the space of the weights."""
        shutil.rmtree(self.checkpoint.parent, ignore_errors=True)

    def write_recipe(self, recipe: Recipe) -> None:
        write_text(self.folder / "recipe.yaml", recipe.to_yaml())

    def write_history(self, history: list[dict[str, Any]]) -> None:
        write_text(self.folder / "metrics.jsonl", "".join(map(json_text, history)))

    def add_results(self, **sections: Result | Mapping[str, Result | None]) -> None:
        """Add sections of `Results`, or replace them."""
        kept = {"schema_version": SCHEMA_VERSION, "task": self.environment.data.task, **self.results.as_json()}
        for key, section in sections.items():
            if isinstance(section, Result):
                kept[key] = section.as_json()
            else:
                kept[key] = {name: None if part is None else part.as_json() for name, part in section.items()}
        write_text(self.folder / "results.json", json_text(kept, indent=1))

    def add_predictions(self, split: str, table: pd.DataFrame) -> None:
        """Add the rows of a split, or replace them."""
        import pandas as pd

        before = self.predictions
        kept = before[before["split"] != split]
        path = self.folder / "predictions.parquet"
        with parsing(path, self._evaluate_again):  # the rows that are kept may have columns of other types
            table = pd.concat([kept, table], ignore_index=True) if len(kept) else table
            with atomic(path) as temporary, temporary.open("wb") as handle:
                table.to_parquet(handle, index=False)

    def write_membership(self, membership: Membership) -> None:
        with atomic(self.folder / SPLITS_FILE) as temporary:
            membership.write(temporary)

    def write_gallery(self, name: str, **arrays: np.ndarray) -> None:
        """Write ``gallery/<name>.npz``, or replace it. Without arrays, nothing is written."""
        if arrays:
            packed = io.BytesIO()  # a zip file that cannot be written to its end complains when it is forgotten
            np.savez_compressed(packed, **arrays)  # type: ignore[arg-type]
            with atomic(self.folder / "gallery" / f"{name}.npz") as temporary:
                temporary.write_bytes(packed.getbuffer())


class ReadOnlyRun(Run):
    """The folder of a run as those of several processes see it that leave writing to the first: they do what it does, and what
    they would add is left out."""

    def add_results(self, **sections: Result | Mapping[str, Result | None]) -> None:
        """Left to the first process."""

    def add_predictions(self, split: str, table: pd.DataFrame) -> None:
        """Left to the first process."""

    def write_gallery(self, name: str, **arrays: np.ndarray) -> None:
        """Left to the first process."""


def open_run(folder: str | PathLike[str]) -> Run:
    """The run in a folder.

    Raises:
        RequestError: there is no run there.
    """
    run = Run(user_path(folder))
    if is_run(run.folder):
        check_files(run.folder, FILES)
        return run
    hint = "recipe.yaml or environment.json is missing"
    if (run.folder / "recipe.yaml").is_file() and run.recipe.data.folds is not None:
        made = run.folder / CROSS_VALIDATED
        hint = f"it is a cross-validation, whose model is {made}"
        if not is_run(made):
            hint = "it is a cross-validation that is not finished; the command that began it goes on with it"
    raise RequestError(f"{folder} is not a run folder: {hint}")


def is_run(path: str | PathLike[str]) -> bool:
    """Whether a path is a run folder."""
    return all((user_path(path) / name).is_file() for name in ("recipe.yaml", "environment.json"))


def create_run(folder: Path | None, recipe: Recipe, dataset: Dataset, **facts: Any) -> Run:
    """Make a run folder. It appears under its name only when these files are complete.

    Args:
        folder: None: `default_folder`, with a number appended if it exists.
        facts: further fields of `Environment`: device, precision, parameters, normalize, members.

    Raises:
        RequestError: the folder exists and is not empty.
        PetriscopeError: the disk is full or may not be written.
    """
    check_free(folder)
    with new_folder(folder or default_folder(recipe), numbered=folder is None) as (staging, made):
        begin_run(staging, recipe, dataset, **facts)
    return Run(made)


def begin_run(folder: Path, recipe: Recipe, dataset: Dataset, **facts: Any) -> Run:
    """Write the first files of a run into an empty folder; see `create_run`."""
    about = environment(dataset).model_copy(update=facts)
    Run(folder).write_recipe(recipe)
    write_text(folder / "environment.json", json_text(about.as_json(), indent=1))
    (dataset.membership or membership_of(dataset.splits)).write(folder / SPLITS_FILE)
    if dataset.audited:
        write_text(folder / "audited.csv", csv_text(_audited_table(dataset)))
    return Run(folder)


def check_free(folder: Path | None, leftovers: bool = False) -> None:
    """Check that a folder, if one is given, does not exist or is empty.

    Args:
        leftovers: a lock and temporary files, which a process that ended before its first file has left, may be in it.

    Raises:
        RequestError: it is not empty, or its name is not UTF-8, which libraries that write models need.
    """
    if folder is None:
        return
    try:
        os.fsencode(folder).decode()
    except UnicodeError:
        raise RequestError(f"the name {folder} is not UTF-8; choose another --out") from None
    try:
        there = [path.name for path in folder.iterdir()] if folder.is_dir() else []
        if leftovers:
            there = [name for name in there if name != ".lock" and not TEMPORARY.fullmatch(name)]
        free = not folder.exists() or (folder.is_dir() and not there)
    except OSError as error:
        raise RequestError(f"{folder} cannot be looked into: {error.strerror or error}") from None
    if not free:
        raise RequestError(f"{folder} exists and is not empty; choose another --out{_way_on(folder)}")


def _way_on(folder: Path) -> str:
    """How to go on with what is in a folder, if it is a run that lacks something."""
    run = Run(folder)
    with suppress(RequestError):
        if not (folder / "recipe.yaml").is_file():
            return ""
        if run.finished:
            lacking = not (folder / "report.html").is_file()
            return f", or write the report of the run in it: {command('report', folder)}" if lacking else ""
        if run.environment.members:
            return ", or remove it: it is an ensemble that was not finished"
        return f", or continue the run in it: {command('train', '--resume', folder)}"
    return ""


def default_folder(recipe: Recipe) -> Path:
    """``runs/<recipe>-seed<N>``."""
    stem = Path(recipe.name).stem if recipe.name.endswith((".yaml", ".yml")) else recipe.name.replace("/", "-")
    return Path("runs") / f"{slug(stem)}-seed{recipe.seed}"


def environment(dataset: Dataset) -> Environment:
    """Versions, hardware and data of a run that starts now."""
    return Environment(
        schema_version=SCHEMA_VERSION,
        started=datetime.now(UTC).isoformat(timespec="seconds"),
        command=_command(),
        python=platform.python_version(),
        packages={"petriscope": __version__, **{name: _version(name) for name in PACKAGES}},
        hardware=hardware(),
        data=DataInfo(
            source=dataset.source,
            fingerprint=dataset.fingerprint,
            task=dataset.task.name,
            classes=list(dataset.classes),
            shape=dataset.shape,
            splits={
                name: SplitInfo(images=len(part), per_class=part.counts.tolist())
                for name, part in dataset.splits.items()
            },
            domains=_domain_counts(dataset),
            warnings=list(dataset.warnings),
            audited=_audited_counts(dataset),
        ),
    )


def _audited_table(dataset: Dataset) -> pd.DataFrame:
    """One row per image that was left out or relabeled: id, split, label, decision, new_label, reason."""
    import pandas as pd

    return pd.DataFrame([asdict(entry) for entry in dataset.audited])


def _audited_counts(dataset: Dataset) -> dict[str, dict[str, int]]:
    """Images left out (``drop``) and relabeled (``relabel``) by split."""
    counts: dict[str, dict[str, int]] = {}
    for entry in dataset.audited:
        splits = counts.setdefault(entry.decision, {})
        splits[entry.split] = splits.get(entry.split, 0) + 1
    return counts


def _domain_counts(dataset: Dataset) -> dict[str, dict[str, int]]:
    """Images of each domain by split; empty where images have no domains."""
    counts: dict[str, dict[str, int]] = {}
    for split, part in dataset.splits.items():
        for name, count in sorted(Counter([] if part.domains is None else part.domains.tolist()).items()):
            counts.setdefault(name, {})[split] = count
    return counts


def _command() -> str:
    program = Path(sys.argv[0])
    name = "petriscope" if program.name == "__main__.py" and program.parent.name == "petriscope" else program.name
    return shlex.join([name, *map(hide_password, sys.argv[1:])])


def hardware() -> Hardware:
    import torch

    cuda = torch.cuda.is_available()
    return Hardware(
        system=f"{platform.system()} {platform.machine()}",
        processor=_processor(),
        cores=cores(),
        threads=torch.get_num_threads(),
        processes=launch().size,
        gpu=torch.cuda.get_device_name() if cuda else None,
    )


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def read_gallery(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a file in ``gallery/``.

    Raises:
        RequestError: it is damaged; the page can be written without it.
    """
    with parsing(path, "delete it, and what it shows is left out"), ZipFile(path) as members:
        size = sum(member.file_size for member in members.infolist())
        if size > MOST_BYTES:
            raise ValueError(f"it unpacks to {size:,} bytes")
        with np.load(path, allow_pickle=False) as arrays:
            return dict(arrays)


def _read_json(path: Path) -> dict[str, Any]:
    with parsing(path):
        return parse_json(read_text(path, MOST_BYTES, "of a run"))
