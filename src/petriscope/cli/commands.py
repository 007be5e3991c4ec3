"""The commands: parse arguments, call `petriscope.api`, print."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast, get_args

import typer

from petriscope import __version__
from petriscope.cli.printing import (
    print_columns,
    print_data,
    print_evaluation,
    print_json,
    print_side_by_side,
)
from petriscope.core.errors import Interrupted, PetriscopeError, RequestError, command, hide_password
from petriscope.core.launch import launch
from petriscope.core.progress import deliver, say

if TYPE_CHECKING:
    from petriscope.core.results import EnsembleSummary, Evaluation
    from petriscope.run.folder import Run

RECIPE_FOLDERS = {  # in the order of the listing, with their headings
    "": "To start with",
    "blood": "BloodMNIST at 28 px",
    "blood-methods": "BloodMNIST at 28 px, methods compared: norms, dropout, decay, transfer (petriscope bench blood-methods)",
    "blood64": "Efficient architectures for BloodMNIST at 64 px, with and without attention (petriscope bench blood64)",
    "blood96": "Blood cells at 96 px, trained for robustness to disturbed images",
    "blood96-transfer": "Blood cells at 96 px: what ImageNet weights bring (petriscope bench blood96-transfer)",
    "blood96-mobilenet": "Blood cells at 96 px with MobileNetV3",
    "blood96-convnext": "Blood cells at 96 px with ConvNeXt",
    "cifar10": "CIFAR-10: QuizDNN and ResNet-18 (petriscope bench quiz-dnn)",
    "chest": "ChestMNIST: any of 14 findings in an X-ray",
    "digits": "Handwritten digits, built in",
    "mars": "Mars terrain, masks: soil, bedrock, sand, big rocks (petriscope bench mars)",
    "synthetic-shapes": "Drawn shapes, several labels per image, built in",
    "synthetic-terrain": "Synthetic terrain with masks, built in",
}

OTHER = "synthetic-smear-other"  # the second microscope of the demo
MANY = 0.05  # share of out-of-distribution images above which a hint is shown; on val the share is 0.005


def _rehash(wanted: bool) -> None:
    if wanted:
        os.environ["PETRISCOPE_REHASH"] = "1"  # trainings in other processes inherit it


app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="From a collection of small images to a model that its owner can trust.",
)

Data = Annotated[
    str | None,
    typer.Option(help="Images: an npz file, a folder, a table, or the name of a data set.", metavar="SOURCE"),
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")]
RunFolder = Annotated[str, typer.Argument(metavar="RUN", help="A run folder.")]
RunOrModel = Annotated[str, typer.Argument(metavar="RUN", help="A run folder or a model.safetensors.")]
Model = Annotated[str, typer.Argument(metavar="MODEL", help="A run folder, a model.safetensors or a package.")]
Rehash = Annotated[
    bool, typer.Option("--rehash", callback=_rehash, help="Read every file again, also those that look unchanged.")
]
KeepSeen = Annotated[bool, typer.Option("--keep-seen", help="Keep images that the model was trained or fitted on.")]
Jobs = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        min=1,
        help="Simultaneous trainings. Here they share the cores; default 1. With --on: as many as there is room for.",
    ),
]
On = Annotated[
    str | None,
    typer.Option(
        metavar="ray[://HOST:PORT]",
        help="Run on a Ray cluster: that of the address, or that of RAY_ADDRESS or ray start, or one on this machine.",
    ),
]
Cpus = Annotated[int, typer.Option(metavar="N", min=1, help="With --on: CPUs, and so threads, of a job.")]
Gpus = Annotated[
    float | None,
    typer.Option(metavar="N", min=0, help="With --on: GPUs of a job, such as 0.5; default 1 if the cluster has GPUs."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object to stdout, and nothing else.")]
Classes = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME,...", help="Only these classes occur among the images; can be repeated, for names with commas."
    ),
]
Prior = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME=SHARE,...", help="The share of each class that occurs among the images; can be repeated."
    ),
]
ScaleOption = Annotated[
    str | None,
    typer.Option(
        "--scale",
        metavar="VALUE",
        help="Bring objects to another size: times that they are enlarged, such as 1.3; micrometers per pixel, such as 0.23um; "
        "or estimated.",
    ),
]
Tta = Annotated[
    str | None, typer.Option(help="Test-time augmentation: none, mirror, flips, crops or d4; default: the recipe's.")
]


def _show_version(wanted: bool) -> None:
    if wanted:
        deliver(f"petriscope {__version__}\n")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Options of the command line itself."""


@app.command()
def demo(out: Annotated[Path | None, typer.Option(help="Run folder to make.")] = None) -> None:
    """Run the built-in example: train, evaluate and report on synthetic blood cells, and adapt to another microscope."""
    from petriscope import api
    from petriscope.core.recipe import load_recipe

    run = api.train(load_recipe("demo"), out)
    print_evaluation(api.evaluate(run.folder))
    say(f"report with test metrics: {run.folder / 'report.html'}\n\nThe same kinds of cell under another microscope:")
    print_evaluation(api.evaluate(run.folder, OTHER))
    say("\nAdapted with 100 labeled cells from there:")
    adapted = api.adapt(run.folder, f"{OTHER}:100", run.folder.with_name(f"{run.folder.name}-adapted"))
    print_evaluation(api.evaluate(adapted.folder, OTHER))
    say(f"its report: {adapted.folder / 'report.html'}")


@app.command()
def audit(
    source: Annotated[
        str, typer.Argument(metavar="SOURCE", help="An npz file, a folder, a table, or the name of a data set.")
    ],
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Folder to make; default audits/SOURCE.")] = None,
    labels: Annotated[
        bool, typer.Option("--labels/--no-labels", help="Look for wrong labels, which takes minutes.")
    ] = True,
    features: Annotated[
        str,
        typer.Option(metavar="RUN|timm/NAME", help="Features to find outliers by; learned: trained on the set itself."),
    ] = "learned",
    quick: Annotated[
        bool, typer.Option("--quick", help="Train nothing: look neither for outliers nor for wrong labels.")
    ] = False,
    fail_on: Annotated[
        str | None,
        typer.Option(
            metavar="FINDING,...", help="Exit with status 1 if one of these is found, such as leaks,conflicts; or any."
        ),
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="data.KEY=VALUE", help="How to read the source; can be repeated."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the training.")] = 0,
    as_json: AsJson = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress.")] = False,
    rehash: Rehash = False,
) -> None:
    """Find problems in a set of images, and suggest decisions. Nothing is deleted."""
    from petriscope.audit.findings import kinds_of
    from petriscope.core.recipe import data_section

    wanted = [] if fail_on is None else kinds_of(fail_on)
    section = data_section(source, set_ or [])
    from petriscope import api

    found, folder = api.audit(
        source, out, section, labels=labels and not quick, features=None if quick else features, seed=seed, quiet=quiet
    )
    summary = found.summary
    if as_json:
        print_json({**summary, "out": str(folder)})
    else:
        print_columns([(f"{count:,}", name.replace("_", " ")) for name, count in summary["findings"].items() if count])
    if not quiet and not as_json:
        for note in found.notes:
            say(f"note: {note}")
        counts = ", ".join(f"{word} {count:,}" for word, count in summary["decisions"].items())
        say(f"of {summary['n']:,} images: {counts}; report: {folder / 'report.html'}")
        settings = [word for each in set_ or [] for word in ("--set", each)]
        say(
            f"to train with these decisions: {command('train', 'RECIPE', '--data', source, '--audit', folder, *settings)}"
        )
    if failing := [f"{name} {summary['findings'][name]:,}" for name in wanted if summary["findings"][name]]:
        raise PetriscopeError(f"the audit has findings named by --fail-on: {', '.join(failing)}; see {folder}")


@app.command()
def train(
    recipe: Annotated[str | None, typer.Argument(help="The name of a recipe, or a YAML file.")] = None,
    data: Data = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change a key of the recipe; can be repeated."),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the run; default: the recipe's.")] = None,
    out: Annotated[Path | None, typer.Option(help="Run folder to make; default runs/RECIPE-seedN.")] = None,
    audit: Annotated[str | None, typer.Option(metavar="DIR", help="Carry out the decisions of this audit.")] = None,
    minutes: Annotated[
        float | None, typer.Option(metavar="M", help="Without a recipe: minutes for the whole command; default 20.")
    ] = None,
    processor_minutes: Annotated[
        float | None,
        typer.Option(metavar="M", help="Without a recipe: the same limit in processor time, summed over all cores."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Without a recipe: print the plan and exit.")] = False,
    folds: Annotated[
        int | None,
        typer.Option(
            metavar="K", help="Evaluate by K-fold cross-validation: K networks, each trained without one fold."
        ),
    ] = None,
    repeats: Annotated[int, typer.Option(metavar="R", help="With --folds: draw the folds R times.")] = 1,
    final: Annotated[
        str | None,
        typer.Option(
            help="With --folds: the final model: all (one network trained on all images; default for labels) or ensemble."
        ),
    ] = None,
    jobs: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="With --folds: simultaneous trainings; default 1. With --on: as many as there is room for.",
        ),
    ] = None,
    on: Annotated[
        str | None,
        typer.Option(
            metavar="ray[://HOST:PORT]",
            help="With --folds: train on a Ray cluster: that of the address, of RAY_ADDRESS, of ray start, or on this machine.",
        ),
    ] = None,
    cpus: Cpus = 1,
    gpus: Gpus = None,
    resume: Annotated[str | None, typer.Option(metavar="RUN", help="Continue an interrupted run.")] = None,
    test: Annotated[bool, typer.Option("--test", help="Evaluate on test after training.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress.")] = False,
    rehash: Rehash = False,
) -> None:
    """Train according to a recipe, and write a run folder with the model and a report.

    Without a recipe, --data alone is enough: network, size of the images, augmentation and length are planned for the data and
    this machine, so that training, calibration, a short stress test and the report end within --minutes.

    For few images, --folds 5 judges by all of them: each is predicted by a network that did not learn from it. The model is the
    run "final" in --out. Run the same command again to continue after an interruption.
    """
    from petriscope.core.recipe import load_recipe

    crossed: dict[str, Any] = {}
    if folds is not None:
        if final is not None:
            _among("--final", final, ("ensemble", "all"))
        if resume is not None or dry_run:
            raise RequestError(
                "a cross-validation is resumed by the same command again, and its plan depends on the number of folds; give "
                "--folds without --resume and --dry-run"
            )
        crossed = {
            "folds": folds,
            "repeats": repeats,
            "final": final,
            "jobs": jobs,
            "on": on,
            "cpus": cpus,
            "gpus": gpus,
        }
    elif (repeats, final, jobs, on, cpus, gpus) != (1, None, None, None, 1, None):
        raise RequestError(
            "--repeats, --final, --jobs, --on, --cpus and --gpus are for a cross-validation; give --folds too, such as "
            "--folds 5"
        )

    planned = minutes is not None or processor_minutes is not None or dry_run
    if planned and (recipe is not None or resume is not None):
        raise RequestError(
            "--minutes, --processor-minutes and --dry-run are for a training that is planned: name --data and no recipe. A "
            "recipe sets its own length (--set training.epochs=N)"
        )

    if resume is not None:
        if recipe is not None or set_ or seed is not None or out is not None or audit is not None:
            raise RequestError(
                "--resume cannot be combined with a recipe or its options: they are stored in the run folder; --data says "
                "where its data are now"
            )
        from petriscope import api

        run = api.resume(resume, quiet, data)
    elif recipe is None:
        if data is None:
            raise RequestError(
                "name your images with --data, or a recipe (for a list: petriscope recipes), or a run with --resume"
            )
        if minutes is not None and processor_minutes is not None:
            raise RequestError("give --minutes or --processor-minutes, not both")
        from petriscope import api

        if dry_run:
            deliver(
                "".join(
                    f"{line}\n" for line in api.plan(data, minutes, processor_minutes, set_ or [], seed or 0, audit)
                )
            )
            return
        run = api.train(
            out=out,
            quiet=quiet,
            data=data,
            minutes=minutes,
            processor_minutes=processor_minutes,
            settings=set_ or [],
            seed=seed or 0,
            audit=audit,
            **crossed,
        )
    else:
        overrides: dict[str, Any] = {} if seed is None else {"seed": seed}
        chosen = {"source": data, "audit": audit}
        if chosen := {key: value for key, value in chosen.items() if value is not None}:
            overrides["data"] = chosen
        with _in_all_processes():
            loaded = load_recipe(recipe, set_ or [], **overrides)
        from petriscope import api

        run = api.train(loaded, out, quiet, **crossed)
    if launch().rank == 0:
        _next_steps(run, test, quiet)


@app.command()
def evaluate(
    model: Model,
    data: Data = None,
    split: Annotated[str, typer.Option(help="train, val or test.")] = "test",
    tta: Tta = None,
    device: Device = "auto",
    stress: Annotated[
        bool, typer.Option("--stress", help="Test with disturbed images too: blur, color, light, dirt.")
    ] = False,
    stress_images: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Number of images in the stress test; default: 320.")
    ] = None,
    by: Annotated[
        str | None,
        typer.Option(
            metavar="COLUMN", help="Also by the values of this column: scanner, day, domain, group, folder ..."
        ),
    ] = None,
    keep_seen: KeepSeen = False,
    classes: Classes = None,
    prior: Prior = None,
    scale: ScaleOption = None,
    as_json: AsJson = False,
    rehash: Rehash = False,
) -> None:
    """Compute the metrics of a run on test, with 95 % intervals.

    With --data, on images from elsewhere; images that the model has seen are left out. If the run's own data have moved,
    --data says where they are. With --classes or --prior, metrics and guarantees are for these classes, and nothing is saved.
    The images are compared with val, and guarantees are withdrawn where they are shown not to be like them. With --data, --scale
    brings their objects to the size that the run knows.
    """
    _among("--split", split, ("train", "val", "test"))
    if stress_images is not None and not stress:
        raise RequestError("--stress-images needs --stress")
    from petriscope import api

    more: dict[str, Any] = {} if stress_images is None else {"stress_images": stress_images}
    more |= {"classes": classes, "prior": prior, "scale": scale}
    result = api.evaluate(
        model, data, split, _tta(tta), device, quiet=as_json, stress=stress, keep_seen=keep_seen, by=by, **more
    )
    if as_json:
        print_json(result.as_json())
        return
    print_evaluation(result)
    withdrawn = result.shift is not None and result.shift.withdrawn
    if data is not None and not withdrawn and result.ood is not None and result.ood.share > MANY:
        say(
            "many of these images are out of distribution, and the model abstains on them; for guarantees on such images, "
            f"calibrate the model on labeled ones: {command('calibrate', model, '--data', 'SOURCE')}"
        )


@app.command()
def calibrate(
    run: RunOrModel,
    data: Annotated[
        str | None, typer.Option(metavar="SOURCE", help="Labeled images from elsewhere, such as another microscope.")
    ] = None,
    split: Annotated[str, typer.Option(help="With --data: the split of the source: train, val or test.")] = "val",
    out: Annotated[
        Path | None, typer.Option(help="With --data: the model file to write; default: beside the model.")
    ] = None,
    tta: Tta = None,
    device: Device = "auto",
    keep_seen: KeepSeen = False,
    scale: ScaleOption = None,
    as_json: AsJson = False,
    rehash: Rehash = False,
) -> None:
    """Fit probabilities and thresholds on val again, for another test-time augmentation (--tta) or for an older run.

    With --data, fit them on labeled images from elsewhere, and write a model file whose guarantees hold for such images. With
    --scale, it reads images at this scale.
    """
    _among("--split", split, ("train", "val", "test"))
    if data is None and out is not None:
        raise RequestError("--out needs --data; without --data, the run's own model file is updated")
    if data is None and (split != "val" or keep_seen):
        raise RequestError("--split and --keep-seen need --data; without --data, the run's own val is used")
    if data is None and scale is not None:
        raise RequestError(
            "--scale is for images from elsewhere, named with --data; the run's own are read as its recipe says"
        )
    from petriscope import api

    if data is None:
        written, result = None, api.calibrate(run, _tta(tta), device, quiet=as_json)
    else:
        result, written = api.recalibrate(
            run, data, out, split, _tta(tta), device, quiet=as_json, keep_seen=keep_seen, scale=scale
        )
    if as_json:
        print_json(result.as_json() | ({} if written is None else {"model": str(written)}))
        return
    print_evaluation(result)
    if written is not None:
        say(f"the model was fitted on these images, so these metrics are not evidence; to predict, use {written}")


@app.command()
def adapt(
    run: RunFolder,
    data: Annotated[
        str | None,
        typer.Option(metavar="SOURCE", help="Labeled images from another place: a folder per class, a table ..."),
    ] = None,
    unlabeled: Annotated[
        str | None,
        typer.Option(
            "--unlabeled",
            "--unlabelled",
            metavar="SOURCE",
            help="Images from there without labels; with --data, what is out of distribution is fitted to them too.",
        ),
    ] = None,
    suggest: Annotated[
        int,
        typer.Option(
            metavar="N",
            min=0,
            help="Write suggested.csv: N of the unlabeled images to label next, the most useful first.",
        ),
    ] = 0,
    split: Annotated[
        str, typer.Option(help="The split of the source to learn from: train, val or test, if it has splits.")
    ] = "train",
    out: Annotated[Path | None, typer.Option(help="Run folder to make; default runs/RUN-SOURCE-seedN.")] = None,
    home: Annotated[
        str | None, typer.Option(metavar="SOURCE", help="Where the data of the run are now, if they have moved.")
    ] = None,
    classes: Classes = None,
    prior: Prior = None,
    scale: ScaleOption = None,
    minutes: Annotated[
        float,
        typer.Option(
            min=0.01, help="About as long as trying out and training may take; ways that take longer are left out."
        ),
    ] = 10,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the folds and of training.")] = 0,
    device: Device = "auto",
    as_json: AsJson = False,
    rehash: Rehash = False,
) -> None:
    """Adapt a run to another place, such as another microscope, with a few labeled images from there.

    The result is a run. How it was adapted was chosen by cross-validation on the labeled images, and its thresholds are fitted
    on images that were held out. With --data and --scale, it also scales images that it predicts.
    """
    _among("--split", split, ("train", "val", "test"))
    from petriscope import api

    more: dict[str, Any] = {"unlabeled": unlabeled, "suggest": suggest, "minutes": minutes, "scale": scale}
    made = api.adapt(run, data, out, split, home, classes, prior, seed, device, quiet=as_json, **more)
    if as_json:
        found = made.results.adaptation or made.results.self_training
        assert found is not None
        print_json({"run": str(made.folder), **found.as_json()})
        return
    if suggest:
        say(f"images to label next: {made.folder / 'suggested.csv'}")
    say(f"report: {made.folder / 'report.html'}; to predict: {command('predict', made.folder, 'IMAGES')}")


@app.command()
def predict(
    model: Model,
    images: Annotated[
        list[str],
        typer.Argument(
            help="Image files, or folders of them; with --shards also tar and Parquet files, and addresses."
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(help="CSV file to write; default: stdout. For segmentation and --shards: a folder."),
    ] = None,
    tta: Tta = None,
    device: Device = "auto",
    max_error: Annotated[
        float | None,
        typer.Option(metavar="SHARE", help="Abstain so that at most this share of the answers is wrong, such as 0.01."),
    ] = None,
    set_coverage: Annotated[
        float | None,
        typer.Option(metavar="SHARE", help="Add prediction sets that contain the true class this often, such as 0.95."),
    ] = None,
    classes: Classes = None,
    prior: Prior = None,
    scale: ScaleOption = None,
    tiles: Annotated[
        float | None,
        typer.Option(
            metavar="OVERLAP",
            help="For segmentation: keep the size of images, and predict them by tiles that overlap by this share, such as "
            "0.25. Models that were trained with data.tiles do so by themselves.",
        ),
    ] = None,
    without_guarantee: Annotated[
        bool,
        typer.Option("--without-guarantee", help="Answer also where guarantees are withdrawn, without any claim."),
    ] = False,
    shards: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=1,
            help="For any number of images: write N Parquet files into the folder --out. If stopped, the same command goes on.",
        ),
    ] = None,
    jobs: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, help="With --shards: processes; default: one per core, or one on a GPU."),
    ] = None,
    on: On = None,
    cpus: Cpus = 1,
    gpus: Gpus = None,
) -> None:
    """Predict the classes of images, as CSV with an answer or the reason to abstain.

    With --max-error or --set-coverage, the images are first compared with val, as a set. If they are shown not to be like
    them, the guarantees are withdrawn and nothing is answered. With --scale, objects are first brought to the size that the
    run knows; an adapted run does so by itself as it was adapted, and --scale 1 leaves them as they are.

    For segmentation, write a mask as indexed PNG and an overlay per image, and the table masks.csv with the shares of the classes
    and the number and size of objects.
    """
    from petriscope import api
    from petriscope.inference.table import hand_over

    _share("--max-error", max_error)
    _share("--set-coverage", set_coverage)
    if without_guarantee and max_error is None and set_coverage is None:
        raise RequestError(
            "--without-guarantee needs --max-error or --set-coverage: without them, nothing is guaranteed"
        )
    asked: dict[str, Any] = {"max_error": max_error, "set_coverage": set_coverage, "classes": classes, "prior": prior}
    asked |= {"without_guarantee": without_guarantee, "scale": scale}
    if shards is not None:
        if out is None or tiles is not None:
            raise RequestError(
                "--shards needs --out FOLDER" if out is None else "--tiles is for masks, and --shards for labels"
            )
        asked |= {"on": on, "cpus": cpus, "gpus": gpus}
        made = api.predict_in_shards(model, images, out, shards, jobs, device, tta=_tta(tta), **asked)
        if made.unreadable:
            first = next(each.facts.first_unreadable for each in made.shards if each.facts.unreadable)
            raise PetriscopeError(
                f"{made.unreadable:,} of {made.images:,} images could not be read, the first: {first}"
            )
        return
    if (jobs, on, cpus, gpus) != (None, None, 1, None):
        raise RequestError(
            "--jobs, --on, --cpus and --gpus are for --shards; without it, one process predicts all images"
        )
    asked["tiles"] = tiles
    found = api.predict_rows(model, images, _tta(tta), device, out=out, **asked)
    hand_over(found, out, deliver)


@app.command(hidden=True)
def work_on_shards(
    folder: Path, device: Device = "auto", threads: Annotated[int | None, typer.Option(min=1)] = None
) -> None:
    """Predict shards of a job that predict --shards has begun in FOLDER, as one of its processes."""
    from petriscope.experiments.in_shards import work_on

    work_on(folder, device, threads)


@app.command()
def serve(
    models: Annotated[
        list[str], typer.Argument(metavar="MODEL...", help="Run folders, model.safetensors files or packages.")
    ],
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0: all.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0: a free one.")] = 8080,
    token: Annotated[
        str,
        typer.Option(
            envvar="PETRISCOPE_TOKEN",
            show_envvar=True,
            help="Requests must carry this token. As an environment variable, other users of the machine cannot see it.",
        ),
    ] = "",
    device: Device = "auto",
    batch: Annotated[int, typer.Option(metavar="N", min=1, help="Images that a model predicts at a time.")] = 32,
    queue: Annotated[
        int, typer.Option(metavar="N", min=1, help="Images per model that may wait; beyond, requests get status 429.")
    ] = 512,
    deadline: Annotated[
        float, typer.Option(metavar="SECONDS", min=0.1, help="Requests that take longer get status 503.")
    ] = 30,
    files: Annotated[int, typer.Option(metavar="N", min=1, help="Images per request, at most.")] = 64,
    file_mib: Annotated[int, typer.Option(metavar="N", min=1, help="Size of an image file, at most, in MiB.")] = 32,
    body_mib: Annotated[int, typer.Option(metavar="N", min=1, help="Size of a request, at most, in MiB.")] = 128,
    megapixels: Annotated[int, typer.Option(metavar="N", min=1, max=64, help="Pixels of an image, at most.")] = 64,
    classes: Classes = None,
    prior: Prior = None,
    scale: ScaleOption = None,
) -> None:
    """Serve models over HTTP, with a page to drop images on. It ends with Ctrl-C or SIGTERM, when all requests are answered.

    POST /predict takes images, and gives answers or reasons to abstain as predict does; /docs says more. --classes, --prior and
    --scale are for all images that come in, as for predict.
    """
    from petriscope import api

    mib = 2**20
    api.serve(
        models,
        host,
        port,
        token,
        device,
        api.Limits(
            batch=batch,
            queue=queue,
            deadline=deadline,
            files=files,
            file_bytes=file_mib * mib,
            body_bytes=body_mib * mib,
            held_bytes=4 * body_mib * mib,
            pixels=megapixels * 1_000_000,
        ),
        classes,
        prior,
        scale,
    )


@app.command()
def explain(
    run: RunOrModel,
    images: Annotated[list[str], typer.Argument(help="Image files, or folders of them.")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder to make.")] = Path("explanations"),
    method: Annotated[
        str, typer.Option(help="auto, or a method such as hires-cam, attention-gradient or occlusion.")
    ] = "auto",
    class_: Annotated[
        str | None,
        typer.Option(
            "--class", metavar="NAME", help="Class to explain; default: the predicted one, for masks the largest."
        ),
    ] = None,
    device: Device = "auto",
) -> None:
    """Show where the model looks: an overlay per image, and a page of all."""
    from petriscope import api

    table = api.explain(run, images, out, method, class_, device)
    failed = table["error"].notna()
    if not failed.all():
        deliver(f"{out / 'index.html'}\n")
    if failed.any():
        raise PetriscopeError(
            f"{failed.sum():,} of {len(table):,} images could not be read, the first: {table[failed].iloc[0]['error']}"
        )


@app.command()
def report(run: RunFolder) -> None:
    """Write the report.html of a run again."""
    from petriscope import api

    deliver(f"{api.report(run)}\n")


@app.command()
def track(
    run: RunFolder,
    to: Annotated[
        list[str],
        typer.Option(metavar="NAME,...", help="tensorboard, mlflow, wandb or trackio; can be repeated."),
    ],
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress.")] = False,
) -> None:
    """Send a run to trackers of experiments, as far as they do not have it.

    During a training, training.track of the recipe does so.
    """
    from petriscope import api

    api.track(run, [name.strip() for names in to for name in names.split(",")], quiet)


@app.command()
def compare(
    runs: Annotated[list[str], typer.Argument(metavar="RUN...", help="Run folders.")],
    split: Annotated[
        str | None, typer.Option(help="train, val or test; default: test if all runs were evaluated on it, else val.")
    ] = None,
    against: Annotated[str | None, typer.Option(metavar="RUN", help="The baseline; default: the first run.")] = None,
    metric: Annotated[
        str | None,
        typer.Option(help="accuracy, balanced_accuracy or macro_f1; masks: miou; several labels: map, auc, ..."),
    ] = None,
    as_json: AsJson = False,
    out: Annotated[Path | None, typer.Option(metavar="FILE.html", help="Also write a page.")] = None,
) -> None:
    """Compare runs: intervals, paired tests, costs. Seeds of one recipe form one row."""
    _among("--split", split or "test", ("train", "val", "test"))
    if out is not None and out.suffix.lower() not in (".html", ".htm"):
        raise RequestError(f"--out must name an HTML file, such as comparison.html; got {out}")
    from petriscope import api
    from petriscope.report.compare import as_text, write_comparison

    found = api.compare(runs, split, against, metric)
    if out is not None:
        say(f"page: {write_comparison(found, out)}")
    if as_json:
        print_json(found.as_dict())
    else:
        deliver(as_text(found))


@app.command()
def ensemble(
    runs: Annotated[list[str], typer.Argument(metavar="RUN...", help="Run folders, two or more.")],
    method: Annotated[str, typer.Option(help="soft, weighted, stacking, soup, greedy-soup or specialist.")] = "soft",
    out: Annotated[Path | None, typer.Option(help="Run folder to make; default runs/ensemble-METHOD-seedN.")] = None,
    data: Annotated[
        str | None, typer.Option(metavar="SOURCE", help="Where the data of the runs are now, if they have moved.")
    ] = None,
    as_json: AsJson = False,
    rehash: Rehash = False,
) -> None:
    """Join runs into one, which is evaluated, compared and used like any run. Choices are made on val.

    The method stacking is for classification. The method specialist is for segmentation: it joins a main run and a run of
    one of its classes, trained with data.only.
    """
    from petriscope import api

    made = api.ensemble(runs, cast(Any, method), out, quiet=as_json, data=data)
    if as_json:
        print_json({"run": str(made.folder), **_joined(made).as_json()})
    else:
        print_evaluation(_val(made))
        say(f"report: {made.folder / 'report.html'}")


@app.command()
def bench(
    suite: Annotated[
        str | None, typer.Argument(help="The name of a suite, or a YAML file; without it, suites are listed.")
    ] = None,
    data: Data = None,
    seeds: Annotated[
        list[str] | None, typer.Option(metavar="N", help="Seeds, such as 0,1,2; default: the suite's.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for the runs; default runs/SUITE.")] = None,
    split: Annotated[str | None, typer.Option(help="val or test; default: the suite's.")] = None,
    only: Annotated[
        list[str] | None, typer.Option(metavar="LABEL", help="Train only this method now; can be repeated.")
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="Change a setting of all methods that do not set it themselves."
        ),
    ] = None,
    jobs: Jobs = None,
    on: On = None,
    cpus: Cpus = 1,
    gpus: Gpus = None,
    as_json: AsJson = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress.")] = False,
    rehash: Rehash = False,
) -> None:
    """Train a suite of methods with several seeds, and compare them. After an interrupt, the same command continues."""
    _among("--split", split or "val", ("val", "test"))
    chosen = _numbers("--seeds", seeds or [])
    from petriscope.experiments import suite as suites

    if suite is None:
        print_columns([(name, suites.load_suite(name).about) for name in suites.suite_names()])
        return
    from petriscope import api

    chosen_suite = suites.load_suite(suite).with_settings(set_ or [])
    done = api.run_suite(chosen_suite, out, data, chosen, cast(Any, split), only or (), quiet, jobs, on, cpus, gpus)
    if as_json:
        comparison = None if done.comparison is None else done.comparison.as_dict()
        print_json({"suite": suite, "comparison": comparison, "failures": done.failures})
    elif done.comparison is not None:
        from petriscope.report.compare import as_text

        deliver(as_text(done.comparison))
        say(f"page: {done.page}; metrics of every run: {done.table}")
    if done.failures:
        said = "\n".join(f"  {run}: {message}" for run, message in done.failures.items())
        raise PetriscopeError(f"{len(done.failures)} of {done.runs} runs failed:\n{said}")


@app.command()
def export(
    run: Annotated[
        str, typer.Argument(metavar="RUN", help="A run folder; with --format html or bioimageio, also a package.")
    ],
    out: Annotated[
        Path | None,
        typer.Option(metavar="PACKAGE", help="Folder or page to make; default packages/ and the name of the run."),
    ] = None,
    format: Annotated[
        str,
        typer.Option(
            help="onnx: a package. pt2, openvino: one that torch or OpenVINO runs. bioimageio: a model folder for programs "
            "that read bioimage.io. html: one page that predicts in the browser, without a network."
        ),
    ] = "onnx",
    images: Annotated[
        bool,
        typer.Option("--images/--no-images", help="Include images of val as test images; --no-images: drawn ones."),
    ] = True,
    sign: Annotated[
        Path | None,
        typer.Option(metavar="KEY", help="A private ed25519 key in PEM, to sign the package with."),
    ] = None,
    license: Annotated[
        str | None, typer.Option(metavar="NAME", help="License of the model, for its card, such as mit.")
    ] = None,
    sample: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, help="Images of val to compare with the run; default: all."),
    ] = None,
    precision: Annotated[
        str,
        typer.Option(
            help="Precision of the network: fp32, fp16 (half the size) or int8 (a quarter); the loss is measured on val."
        ),
    ] = "fp32",
    force: Annotated[
        bool, typer.Option("--force", help="Export a lower precision although it is worse by more than half a point.")
    ] = False,
    runtime: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="With --format html: where npm installed onnxruntime-web."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Write a run as a package: an ONNX model with all that decides about its answers, which predicts without torch.

    The package is compared with the run on val, from the bytes of the files on, and kept only if it answers alike. Verify it
    anywhere with petriscope verify PACKAGE, or with python PACKAGE/predict.py --verify.
    """
    _among("--format", format, ("onnx", "pt2", "openvino", "bioimageio", "html"))
    _among("--precision", precision, ("fp32", "fp16", "int8"))
    if format == "html" and (sign is not None or license is not None or precision != "fp32"):
        raise RequestError("--sign, --license and --precision are for packages; make a page of the package then")
    if format == "bioimageio" and (sign is not None or precision != "fp32"):
        raise RequestError("--sign and --precision are for packages; make a model folder of the package then")
    if format != "html" and runtime is not None:
        raise RequestError("--runtime is for --format html")
    from petriscope import api

    if format == "html":
        page = api.export_page(run, out, runtime=runtime, images=images, sample=sample, quiet=as_json)
        if as_json:
            print_json({"page": str(page)})
        else:
            say(f"page: {page}; open it in a browser, or with ?test behind its address to test it on its own images")
        return
    if format == "bioimageio":
        folder = api.export_bioimageio(run, out, images=images, license=license, sample=sample, quiet=as_json)
        if as_json:
            print_json({"folder": str(folder)})
        else:
            say(f"model folder of bioimage.io: {folder}; bioimageio.core tested it and gives the answers of the run")
        return
    chosen: dict[str, Any] = {
        "format": format,
        "precision": precision,
        "force": force,
        "license": license,
        "sample": sample,
    }
    made = api.export(run, out, images=images, key=sign, quiet=as_json, **chosen)
    if as_json:
        print_json({"package": str(made.folder), **made.manifest.as_json()})
        return
    for sentence in made.sentences():
        say(sentence)
    say(f"package: {made.folder}; to predict: {command('predict', made.folder, 'IMAGES')}")


@app.command()
def verify(
    package: Annotated[str, typer.Argument(metavar="PACKAGE", help="A package that petriscope export wrote.")],
    key: Annotated[
        Path | None, typer.Option(metavar="KEY", help="The public ed25519 key, in PEM, of the signer of the package.")
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(metavar="SOURCE", help="Also compare it on the images of SOURCE that were in val of the run."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Check that a package is whole and answers as the run did that it came from; torch is not needed, but for --data."""
    from petriscope.inference.verification import verify

    found = verify(package, key)
    on_val = None
    if data is not None:
        from petriscope.ship.recheck import verify_on

        on_val = verify_on(package, data, quiet=as_json)
    if as_json:
        print_json({**found.as_json(), "val": None if on_val is None else on_val.as_json()})
        return
    for sentence in (*found.sentences(), *([] if on_val is None else [on_val.sentence()])):
        deliver(f"{sentence}\n")


@app.command()
def tune(
    recipe: Annotated[str, typer.Argument(help="The name of a recipe, or a YAML file.")],
    space: Annotated[
        str,
        typer.Option(
            metavar="FILE|auto", help="What to search: keys with ranges or choices; auto: what the recipe suggests."
        ),
    ] = "auto",
    trials: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, help="Trials of the search; default 40, unless --minutes is given."),
    ] = None,
    minutes: Annotated[
        float | None, typer.Option(metavar="M", help="Start no new trial after M minutes of training, over all calls.")
    ] = None,
    data: Data = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change a key of the recipe first; can be repeated."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the tuning; default runs/tune-RECIPE-seedN.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of search and trials; default: the recipe's.")] = None,
    storage: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            envvar="PETRISCOPE_STORAGE",
            show_envvar=True,
            help="Database that several machines share, such as postgresql://USER@HOST/DB; default: a file in the folder.",
        ),
    ] = None,
    sampler: Annotated[str, typer.Option(help="tpe, random or gp, of Optuna.")] = "tpe",
    pruner: Annotated[str, typer.Option(help="halving, hyperband, median or none, of Optuna.")] = "halving",
    first_rung: Annotated[
        int | None,
        typer.Option(metavar="EPOCHS", help="Epoch at which trials may be stopped first; default: about a ninth."),
    ] = None,
    reduction: Annotated[int, typer.Option(metavar="N", min=2, help="At each rung, one trial in N continues.")] = 3,
    best: Annotated[
        int, typer.Option(metavar="K", min=0, help="Train the best K with fresh seeds; 0: only search.")
    ] = 3,
    fresh_seeds: Annotated[int, typer.Option(metavar="N", min=1, help="How many fresh seeds.")] = 3,
    jobs: Jobs = None,
    on: On = None,
    cpus: Cpus = 1,
    gpus: Gpus = None,
    as_json: AsJson = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress.")] = False,
    rehash: Rehash = False,
    worker: Annotated[bool, typer.Option("--worker", hidden=True)] = False,
) -> None:
    """Search better settings for a recipe on val, and train the best with fresh seeds beside it. After an interrupt, the same
    command goes on; the same command on another machine with the same --storage helps. Needs Optuna: install the extra tune.
    """
    from petriscope.core.recipe import load_recipe

    overrides: dict[str, Any] = {} if seed is None else {"seed": seed}
    if data is not None:
        overrides["data"] = {"source": data}
    loaded = load_recipe(recipe, set_ or [], **overrides)
    search: dict[str, Any] = {"trials": trials, "minutes": minutes, "storage": storage, "sampler": sampler}
    search |= {"pruner": pruner, "first_rung": first_rung, "reduction": reduction}
    if worker:
        from petriscope.experiments.tune import Options, work

        work(loaded, space, cast(Path, out), Options(**search, jobs=jobs or 1))
        return
    from petriscope import api

    try:
        place: dict[str, Any] = {"jobs": jobs, "on": on, "cpus": cpus, "gpus": gpus}
        found = api.tune(loaded, space, out, best=best, seeds=fresh_seeds, quiet=quiet, **search, **place)
    except Interrupted as error:
        raise Interrupted(f"{error}: {command(*map(hide_password, sys.argv[1:]))}") from None
    if as_json:
        print_json(found.as_dict())
        return
    from petriscope.report.tune import as_text

    deliver(as_text(found))
    folder = found.folder
    say(f"page: {folder}/tuning.html; to train the best: {command('train', f'{folder}/best.yaml')}")


@app.command()
def recipes(name: Annotated[str | None, typer.Argument(help="Show this recipe with all its keys.")] = None) -> None:
    """List the shipped recipes, or show one."""
    from petriscope.core.recipe import load_recipe, recipe_names

    if name is not None:
        deliver(load_recipe(name).to_yaml())
        return
    for folder, heading in RECIPE_FOLDERS.items():
        deliver(f"{heading}\n")
        names = [known for known in recipe_names() if known.rpartition("/")[0] == folder]
        print_columns([(f"  {known}", load_recipe(known).about) for known in names])


@app.command()
def models(name: Annotated[str | None, typer.Argument(help="Show the options of this model.")] = None) -> None:
    """List the models, or show the options of one."""
    from petriscope.models.describe import describe_model, model_table

    deliver((model_table() if name is None else describe_model(name)) + "\n")


@app.command("data")
def data_command(
    source: Annotated[str | None, typer.Argument(metavar="SOURCE", help="Read this source and describe it.")] = None,
    like: Annotated[
        str | None,
        typer.Option(
            metavar="RUN", help="Show what its images look like beside those of this run, or of another source."
        ),
    ] = None,
    scale: ScaleOption = None,
    out: Annotated[
        Path | None, typer.Option(metavar="SHEET.png", help="Write six of its images to this file, to look at.")
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="data.KEY=VALUE", help="How to read the source; can be repeated."),
    ] = None,
    as_json: AsJson = False,
    rehash: Rehash = False,
) -> None:
    """List the known data sets, or describe a source."""
    from petriscope.data.sources import NAMED

    if source is None:
        for option, given in (("--like", like), ("--scale", scale), ("--out", out)):
            if given is not None:
                raise RequestError(f"{option} needs a source")
        if as_json:
            print_json({"sources": NAMED})
            return
        print_columns(list(NAMED.items()))
        return
    from petriscope.core.recipe import data_section

    if like is not None:
        if as_json or out is not None:
            raise RequestError(f"{'--json' if as_json else '--out'} describes one source; leave out --like")
        from petriscope.experiments.side_by_side import side_by_side

        print_side_by_side(side_by_side(source, like, data_section(source, set_ or []), scale=scale))
        return
    if scale is not None:
        raise RequestError("--scale needs --like: it scales the images that are compared")
    from petriscope import data

    sheet = None if out is None else _png(out)
    dataset = data.load_dataset(data_section(source, set_ or []))
    from petriscope.data.summary import summarize, write_contact_sheet

    summary = summarize(dataset)
    if sheet is not None:
        shown = write_contact_sheet(dataset, sheet)
    if as_json:
        print_json(summary.as_json() | ({} if sheet is None else {"sheet": str(sheet)}))
        return
    print_data(summary)
    if sheet is not None:
        from petriscope.core.drawing import shown_as

        say(f"{len(shown)} of its images: {sheet}. {shown_as(dataset.channels, dataset.bits)}".rstrip())


def _png(path: Path) -> Path:
    if path.suffix.lower() != ".png":
        raise RequestError(f"--out must name a PNG file, such as sheet.png; got {path}")
    return path


@contextmanager
def _in_all_processes() -> Iterator[None]:
    """Within, an error of one of several processes is that of all, and said once."""
    if launch().size == 1:
        yield
        return
    from petriscope.core.ranks import joined

    with joined() as ranks, ranks.together():
        yield


def _next_steps(run: Run, test: bool, quiet: bool) -> None:
    from petriscope import api

    results = run.results
    val = results.val if results.cross_validation is None else results.cross_validation.pooled
    if test:
        print_evaluation(api.evaluate(run.folder, quiet=quiet))
    elif val is not None and not quiet:
        print_evaluation(val)
        if "test" in run.environment.data.splits:
            say(f"test was not read; evaluate on it when all choices are made: {command('evaluate', run.folder)}")


def _joined(run: Run) -> EnsembleSummary:
    found = run.results.ensemble
    assert found is not None
    return found


def _val(run: Run) -> Evaluation:
    found = run.results.val
    assert found is not None
    return found


def _tta(value: str | None) -> Any:
    from petriscope.core.recipe import TTA

    if value is not None:
        _among("--tta", value, get_args(TTA))
    return value


def _numbers(option: str, words: list[str]) -> list[int]:
    """Different whole numbers from ``--seeds 0 --seeds 1`` or ``--seeds 0,1``."""
    numbers = " ".join(words).replace(",", " ").split()
    if not all(number.isascii() and number.isdigit() for number in numbers) or len({*numbers}) != len(numbers):
        raise RequestError(f"{option} takes different whole numbers, such as 0,1,2; got {' '.join(words)!r}")
    return [int(number) for number in numbers]


def _among(option: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise RequestError(f"{option} cannot be {value!r}; known: {', '.join(known)}")


def _share(option: str, value: float | None) -> None:
    if value is not None and not 0 < value < 1:
        raise RequestError(f"{option} must lie between 0 and 1; got {value:g}")
