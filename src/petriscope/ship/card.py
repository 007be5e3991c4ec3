"""The model card of a package: README.md, with the metadata that the Hugging Face hub reads."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import yaml

from petriscope.core.channels import default_names, in_words
from petriscope.core.results import Evaluation, Metric, Results
from petriscope.inference.package import LABELER, Manifest
from petriscope.inference.runtime import FORMATS
from petriscope.report.cross_validation import how
from petriscope.run.folder import Run

PIPELINES = {"classification": "image-classification", "segmentation": "image-segmentation"}
SHOWN = ("map", "accuracy", "balanced_accuracy", "macro_f1", "auc", "miou", "pixel_accuracy", "ece", "nll")
SHARES = frozenset(SHOWN) - {"nll"}
NAMED = {
    "map": "Mean average precision",
    "accuracy": "Accuracy",
    "balanced_accuracy": "Balanced accuracy",
    "macro_f1": "Macro F1",
    "auc": "AUC",
    "miou": "Mean IoU",
    "pixel_accuracy": "Pixel accuracy",
    "ece": "Calibration error (ECE)",
    "nll": "Negative log-likelihood",
}
MOST_CLASSES = 30  # that are listed


def card(run: Run, manifest: Manifest, license: str | None) -> str:
    """The text of the card.

    Args:
        license: of the model, as the hub spells it; None: not stated.
    """
    results = run.results
    parts = [
        f"---\n{yaml.safe_dump(_metadata(run, manifest, results, license), sort_keys=False, allow_unicode=True)}---\n",
        f"# {manifest.name}\n",
        "\n".join(_about(run, manifest)),
        "## Use\n",
        "\n".join(_use(manifest)),
        "## Metrics\n",
        "\n".join(_metrics(results)),
        "## What is guaranteed\n",
        "\n".join(_guarantees(manifest)),
        "## Robustness\n",
        "\n".join(_robustness(results)),
        "## Limits\n",
        "\n".join(_limits(run, manifest, results)),
        *_precision(manifest),
        "## Verification\n",
        "\n".join(_verification(manifest)),
        "## License\n",
        license or "Not stated by those who exported the model. Ask them before you use it.",
    ]
    return "\n".join(parts) + "\n"


def _metadata(run: Run, manifest: Manifest, results: Results, license: str | None) -> dict[str, Any]:
    pipeline = PIPELINES.get(manifest.task, "other")
    out: dict[str, Any] = {
        "license": license or "other",
        "library_name": "pytorch" if manifest.format == "pt2" else manifest.format,
        "pipeline_tag": pipeline,
        "tags": ["petriscope", manifest.format, manifest.task],
    }
    evaluated = [(split, found) for split, found in results.evaluated.items() if split != "train"]
    if evaluated:
        split, found = evaluated[0]
        metrics = [
            {"type": name, "name": NAMED[name], "value": round(metric.value, 6)}
            for name, metric in _known(found)
            if metric.value is not None
        ]
        source = run.recipe.data.origin
        data = {"name": source, "type": source, "split": split}
        result = {"task": {"type": pipeline}, "dataset": data, "metrics": metrics}
        out["model-index"] = [{"name": manifest.name, "results": [result]}]
    return out


def _known(found: Evaluation) -> Iterator[tuple[str, Metric]]:
    for name in SHOWN:
        if (metric := found.metrics.get(name)) is not None and metric.value is not None:
            yield name, metric


def _about(run: Run, manifest: Manifest) -> Iterator[str]:
    taken, data = manifest.input, run.environment.data
    kind = in_words(taken.names or default_names(taken.channels)) + (", 16 bits," if taken.depth == 16 else "")
    yield (
        f"A {manifest.task} model ({run.recipe.model.name}) for {kind} images of {taken.height} x {taken.width} pixels (height x "
        f"width), trained with Petriscope by the recipe `{manifest.name}`. Precision: {manifest.precision}. Test-time "
        f"augmentation: {manifest.tta}. Fingerprint: `{manifest.fingerprint or 'see package.json'}`.\n"
    )
    names = ", ".join(manifest.classes[:MOST_CLASSES])
    more = len(manifest.classes) - MOST_CLASSES
    yield f"Classes ({len(manifest.classes):,}): {names}{f' and {more:,} more' if more > 0 else ''}.\n"
    splits = ", ".join(f"{name} {part.images:,}" for name, part in data.splits.items())
    yield f"Data: {run.recipe.data.origin}; images per split: {splits}.\n"


def _use(manifest: Manifest) -> Iterator[str]:
    library, model = FORMATS[manifest.format].library, manifest.model_files[0]
    yield f"```\npip install numpy pillow {library}"
    example = " --max-error 0.01" if manifest.error_rates else " --out masks"
    yield f"python predict.py IMAGES...{example}\npython predict.py --verify\n```\n"
    fitted = "temperature, out-of-distribution score, thresholds and prediction sets"
    if manifest.outputs == LABELER:
        fitted = "out-of-distribution score, and the scaling, the cutoff and the thresholds of each label"
    yield (
        "Files are decoded by the code in `lib/`, as in training: turned upright by their EXIF tag, transparent parts on white, "
        f"resized by Pillow's {manifest.input.filter} filter. `{model}` takes {manifest.input.dtype} images [N, H, W, C] as "
        f"they are after that, and has everything else inside: normalization, test-time augmentation, {fitted}.\n"
        if manifest.error_rates
        else f"Files are decoded by the code in `lib/`, as in training, and resized by Pillow's {manifest.input.filter} filter. "
        f"`{model}` takes {manifest.input.dtype} images [N, H, W, C] as they are after that, and has everything else inside.\n"
    )


def _metrics(results: Results) -> Iterator[str]:
    evaluated = {split: found for split, found in results.evaluated.items() if split != "train"}
    if not evaluated:
        yield "None: the run was not evaluated.\n"
        return
    yield "| metric | " + " | ".join(f"{split} (n = {found.n:,})" for split, found in evaluated.items()) + " |"
    yield "|---|" + "---|" * len(evaluated)
    for name in SHOWN:
        cells = [_cell(name, found.metrics.get(name)) for found in evaluated.values()]
        if any(cells):
            yield f"| {NAMED[name]} | " + " | ".join(cells) + " |"
    used = "Val was used to choose the model and to fit temperature and thresholds."
    if results.cross_validation is not None:
        fitted = "Temperature and thresholds are fitted on them: where val is named, they are meant."
        used = f"{how(results.cross_validation)} {fitted}"
    yield f"\nIn parentheses: 95 % intervals. {used}\n"


def _cell(name: str, metric: Metric | None) -> str:
    if metric is None or metric.value is None:
        return ""
    ends = () if metric.ci95 is None else metric.ci95
    known = [each for each in ends if each is not None]
    factor, unit = (100, " %") if name in SHARES else (1, "")
    value = f"{factor * metric.value:.4g}{unit}"
    return f"{value} ({factor * known[0]:.4g} to {factor * known[1]:.4g})" if len(known) == 2 else value


def _guarantees(manifest: Manifest) -> Iterator[str]:
    if not manifest.error_rates:
        yield "Nothing: error rates and coverages are for classifiers.\n"
        return
    yield "For images drawn like those of val:\n"
    for rate in manifest.error_rates:
        said = "; ".join(rate.notes) or "no note"
        yield f"- at most {100 * rate.max_error:g} % errors among answers: {said}."
    for each in manifest.coverages:
        said = f" {'; '.join(each.notes)}." if each.notes else ""
        yield f"- prediction sets contain the true class of {100 * each.coverage:g} % of the images of each class.{said}"
    yield (
        "\nWith 20 images or more, `predict.py` first tests whether they are drawn like those of val, and answers nothing where "
        "they are shown not to be.\n"
    )


def _robustness(results: Results) -> Iterator[str]:
    tested = next(
        (found for found in (results.stress.get("test"), results.stress.get("val")) if found is not None), None
    )
    if tested is None:
        yield "Not tested.\n"
        return
    named = {"clean": "undisturbed", "mean": "mean over corruptions", "together": "several corruptions at once"}
    yield f"Stress test on {tested.n:,} images of {tested.split} ({tested.metric_name.replace('_', ' ')}):\n"
    for name, words in named.items():
        metric = tested.metrics.get(name)
        if metric is not None and metric.value is not None:
            yield f"- {words}: {_cell('accuracy', metric)}"
    yield f"- worst: {tested.worst.name}\n"


def _limits(run: Run, manifest: Manifest, results: Results) -> Iterator[str]:
    if manifest.outputs == LABELER:
        yield "- The model knows no other labels than its own."
    else:
        yield (
            "- The model gives one of its classes to any image that is not out of distribution; images of other things may not "
            "be recognized as such."
        )
    yield "- Metrics and guarantees are for images from the place of the data. Another microscope, camera or stain is another."
    yield (
        "- An error rate is guaranteed for the mix of classes in val."
        if manifest.error_rates
        else "- Masks are without guarantee."
    )
    if "test" not in results.evaluated:
        yield "- The run was not evaluated on a test split."
    yield ""


def _precision(manifest: Manifest) -> Iterator[str]:
    if not manifest.measured:
        return
    yield "## Precision\n"
    rows = [
        f"| | {manifest.measured[0].metric[0]} on val | change from the run | nll | ECE | model | images/s |",
        "|---|---|---|---|---|---|---|",
    ]
    for each in manifest.measured:
        low, high = each.change_ci95
        change = (
            "" if each.of == "run" or low is None or high is None else f"{100 * low:+.2f} to {100 * high:+.2f} points"
        )
        nll, ece = ("" if value is None else f"{value:.4g}" for value in (each.nll, each.ece))
        size = "" if each.bytes is None else f"{each.bytes / 1e6:.2f} MB"
        rows.append(
            f"| {each.of} | {100 * each.metric[1]:.2f} % | {change} | {nll} | {ece} | {size} | {each.images_per_second:,.0f} |"
        )
    yield "\n".join(rows) + "\n"
    kept = f" Layers that stay in single precision: {len(manifest.single)}." if manifest.single else ""
    fitted = "Temperature, thresholds and prediction sets"
    if manifest.outputs == LABELER:
        fitted = "The scaling, the cutoff and the thresholds of each label"
    yield (
        f"{fitted} were fitted on val anew. Intervals are 95 %, by a paired bootstrap. Speed "
        f"is that of one pass over val on the machine of the export.{kept}\n"
    )


def _verification(manifest: Manifest) -> Iterator[str]:
    found = manifest.verification
    if found is None or not found.images:
        yield "The run has no val split; the package was compared with it on its test images alone.\n"
        return
    files = f", {found.from_files:,} of them from the bytes of their files" if found.from_files else ""
    if manifest.measured:
        close = "those whose two most probable classes are as good as equal"
        if manifest.outputs == LABELER:
            close = "labels whose probability is as good as equal to their cutoff"
        yield (
            f"On {found.images:,} of {found.of:,} images of val{files}, the package gave the same labels in batches of "
            f"{', '.join(map(str, found.batches))} images, but for {close}. "
            "`python predict.py --verify` repeats it on the images in `tests/`.\n"
        )
        return
    yield (
        f"Before it was kept, the package was compared with the run on {found.images:,} of {found.of:,} images of val"
        f"{files}: equal inputs, labels, answers and prediction sets for "
        f"every image; probabilities differ by {found.largest_difference:.1e} at most (allowed: {found.tolerance:g}). "
        "`python predict.py --verify` repeats it on the images in `tests/`.\n"
    )
