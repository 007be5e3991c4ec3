"""What ingredients of training bring on disturbances that were not trained on: every variant of a recipe is trained without each
family of disturbances, and measured on val on that family, alone and together with others (docs/stress.md#families).

    python benchmarks/left_out.py benchmarks/left_out.yaml --data SOURCE --out FOLDER --jobs 2

The variants are the methods of a suite file (docs/recipes.md). Runs that are finished are kept, and interrupted ones resumed, so
the same command goes on where it was stopped, by Ctrl-C or after ``--minutes``; the table is of what is finished. Choose with
``--only`` and ``--families`` to work in pieces, and print the table alone with ``--jobs 0``. What a training takes depends on
the variant; one that sets its own number of epochs, because its steps cost more, keeps its share under ``--epochs``.

Intervals are 95 %, from the bootstrap over images. Those of a mean over families are the means of their ends, which is
wider than need be, because all families are measured on the same images.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from common import print_machine, print_table
from petriscope.augment.families import FAMILIES, Family, recipe_without
from petriscope.core.errors import Interrupted, PetriscopeError, RequestError, near
from petriscope.core.files import write_text
from petriscope.core.progress import say
from petriscope.core.results import LeftOut, Metric
from petriscope.data import ImageSet, load_dataset
from petriscope.experiments.compare import settings_that_differ
from petriscope.experiments.parallel import train_side_by_side
from petriscope.experiments.pools import Processes
from petriscope.experiments.suite import Planned, Suite, load_suite, plan
from petriscope.inference.predictor import load_model
from petriscope.run.folder import Run
from petriscope.trust.left_out import left_out_test
from petriscope.trust.robustness import TOGETHER

SHOWN = ("clean", "alone", TOGETHER, "two_at_once", "three_at_once")


@dataclass(frozen=True)
class Trial:
    """A variant that is trained without a family."""

    variant: str
    family: Family
    planned: Planned

    def result(self, images: ImageSet, count: int | None) -> LeftOut:
        """What it measures, from its folder if that was measured before on as many images."""
        path = self.planned.folder / "left_out.json"
        wanted = min(count or len(images), len(images))
        if path.is_file():
            found = LeftOut.model_validate(json.loads(path.read_text(encoding="utf-8")))
            if (found.n, found.of) == (wanted, len(images)):
                return found
        predictor = load_model(self.planned.folder)
        found = left_out_test(lambda some: predictor.probabilities(some, "none"), images, self.family, count=count)
        write_text(path, json.dumps(found.as_json(), indent=1, allow_nan=False) + "\n")
        return found


def main() -> None:
    args = parsed()
    try:
        trials = plan_trials(args)
        train(trials, args)
        finished = [trial for trial in trials if trial.planned.finished]
        if not finished:
            raise RequestError("no run is finished yet, so there is no table")
        print_machine()
        images = load_dataset(finished[0].planned.recipe.data).split("val")
        results = [(trial, trial.result(images, args.images or None)) for trial in finished]
    except Interrupted:
        raise SystemExit("stopped; the same command goes on") from None
    except PetriscopeError as error:
        raise SystemExit(f"error: {error}") from None
    print_results(results, len(trials))


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("suite", help="a suite file; its methods are the variants")
    parser.add_argument("--data", help="a source instead of the suite's")
    parser.add_argument("--out", type=Path, default=Path("runs/left-out"))
    parser.add_argument("--only", nargs="+", default=[], metavar="VARIANT", help="variants to train now")
    parser.add_argument("--families", nargs="+", default=list(FAMILIES), metavar="FAMILY")
    parser.add_argument("--epochs", type=int, help="instead of the suite's; variants that set their own keep the ratio")
    parser.add_argument(
        "--images", type=int, default=800, help="of val to measure on, in the classes' proportions; 0: all"
    )
    parser.add_argument("--jobs", type=int, default=1, help="trainings at a time; 0: none, only the table")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="start no training after so many")
    return parser.parse_args()


def plan_trials(args: argparse.Namespace) -> list[Trial]:
    """All trainings, one family after the other, so that variants can be compared early.

    Raises:
        RequestError: a variant, a family or a setting is wrong, or a folder holds a run of other settings.
    """
    suite = load_suite(args.suite)
    for name, known in [*((o, suite.methods) for o in args.only), *((f, FAMILIES) for f in args.families)]:
        if name not in known:
            raise RequestError(f"there is no {name!r}; {near(name, known)}")
    runs = plan(with_epochs(suite, args.epochs), args.out, args.data)
    trials = []
    for family in args.families:
        for planned in runs:
            if planned.ensemble is not None:
                raise RequestError(f"{planned.label} is an ensemble; variants are recipes")
            folder = planned.folder.with_name(f"{planned.folder.name}-without-{family}")
            label = f"{planned.label}, without {family}"
            recipe = recipe_without(planned.recipe, family).model_copy(update={"name": label})
            trials.append(Trial(planned.label, family, replace(planned, label=label, recipe=recipe, folder=folder)))
    for trial in trials:
        if trial.planned.begun and (
            pairs := settings_that_differ(Run(trial.planned.folder).recipe, trial.planned.recipe)
        ):
            raise RequestError(
                f"{trial.planned.folder} was trained with other settings, such as {next(iter(pairs))}: move it away, or "
                "choose another --out"
            )
    return trials


def with_epochs(suite: Suite, epochs: int | None) -> Suite:
    """The suite with other epochs. A variant that sets its own, because its steps cost more, keeps its share of the suite's."""
    if epochs is None:
        return suite
    key = "training.epochs"
    if key not in suite.set:
        raise RequestError(f"--epochs needs {key} under set of {suite.name}")
    methods = {}
    for label, method in suite.methods.items():
        own = dict(method.set)
        if key in own:
            own[key] = max(1, round(own[key] * epochs / suite.set[key]))
        methods[label] = method.model_copy(update={"set": own})
    return suite.model_copy(update={"set": {**suite.set, key: epochs}, "methods": methods})


def train(trials: Sequence[Trial], args: argparse.Namespace) -> None:
    chosen = [trial for trial in trials if not args.only or trial.variant in args.only]
    todo = [trial.planned for trial in chosen if not trial.planned.finished]
    began = time.monotonic()
    while todo and args.jobs and time.monotonic() - began < 60 * args.minutes:
        some, todo = todo[: args.jobs], todo[args.jobs :]
        say(f"training {'; '.join(map(str, some))}; {len(todo)} more")
        for name, error in train_side_by_side(some, Processes(args.jobs), args.out, quiet=True).items():
            say(f"failed: {name}: {error}")


def print_results(results: Iterable[tuple[Trial, LeftOut]], planned: int) -> None:
    table: dict[str, dict[Family, list[LeftOut]]] = {}
    for trial, found in results:
        table.setdefault(trial.variant, {}).setdefault(trial.family, []).append(found)
    done = sum(len(found) for by_family in table.values() for found in by_family.values())
    first = next(iter(next(iter(table.values())).values()))[0]
    name = first.metric_name.replace("_", " ")
    print(
        f"\n{done} of {planned} runs; {name} in % on {first.n:,} of {first.of:,} images of val, no test-time augmentation\n"
    )
    rows = []
    for variant, by_family in table.items():
        for family, of_family in by_family.items():
            cells = [written([each.metric(key) for each in of_family]) for key in SHOWN]
            rows.append((variant, family, str(len(of_family)), *cells))
    print_table(("variant", "left out", "seeds", "clean", "alone", "together", "two", "three"), rows)
    families = [family for family in FAMILIES if any(family in by_family for by_family in table.values())]
    whole = [variant for variant in table if len(table[variant]) == len(families)]
    print(f"\nMeans over {', '.join(families)}; per family, alone and together\n")
    rows = []
    for variant in whole:
        every = [each for family in families for each in table[variant][family]]
        means = [written([each.metric(key) for each in every]) for key in SHOWN[:3]]
        rows.append(
            (
                variant,
                *means,
                *(f"{mean(table[variant][f], 'alone')}, {mean(table[variant][f], TOGETHER)}" for f in families),
            )
        )
    print_table(("variant", "clean", "alone", "together", *families), rows)
    if missing := [variant for variant in table if variant not in whole]:
        print(f"\nNot all families yet: {', '.join(missing)}", file=sys.stderr)


def mean(found: Sequence[LeftOut], key: str) -> str:
    return f"{100 * statistics.fmean(value(each.metric(key)) for each in found):.1f}"


def written(metrics: Sequence[Metric]) -> str:
    """The mean of metrics and of the ends of their intervals."""
    low, high = (statistics.fmean(metric.ci95[end] for metric in metrics) for end in (0, 1))
    return f"{100 * statistics.fmean(map(value, metrics)):.1f} ({100 * low:.1f} to {100 * high:.1f})"


def value(metric: Metric) -> float:
    assert metric.value is not None
    return metric.value


if __name__ == "__main__":
    main()
