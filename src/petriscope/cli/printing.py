"""Print results as columns of text."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from petriscope.core.channels import in_words
from petriscope.core.progress import deliver, say

if TYPE_CHECKING:
    from petriscope.core.results import ClassPrior, Evaluation, Robustness
    from petriscope.data.summary import DataSummary
    from petriscope.experiments.side_by_side import SideBySide, Spread

SHOWN_ERROR = 0.01  # error rate for which selective prediction is shown


def print_json(tree: dict[str, Any]) -> None:
    """One JSON object on stdout, with the schema version of results."""
    from petriscope.core.files import json_text
    from petriscope.core.results import SCHEMA_VERSION

    deliver(json_text({"schema_version": SCHEMA_VERSION, **tree}))


def print_columns(rows: list[tuple[str, str]], write: Callable[[str], None] = deliver) -> None:
    """Write rows of two cells as lines, to stdout unless another function writes."""
    width = max((len(first) for first, _ in rows), default=0)
    write("".join(f"{first:<{width}}  {second}".rstrip() + "\n" for first, second in rows))


def _tell(text: str) -> None:
    say(text.removesuffix("\n"))


def print_evaluation(evaluation: Evaluation) -> None:
    """Print the metrics of a split with their intervals to stderr."""
    from petriscope.core.results import about_groups
    from petriscope.report.wording import images
    from petriscope.tasks import find_task

    task = find_task(evaluation.task)
    tta = "" if evaluation.tta == "none" else f", tta {evaluation.tta}"
    rows = [("", f"{evaluation.split}, {images(evaluation.n, evaluation.groups)}{tta}")]
    rows += [] if evaluation.prior is None else [("Classes", _about_classes(evaluation.prior))]
    rows += [] if evaluation.resolution is None else [("Pixels", f"of {evaluation.resolution}")]
    for info in task.metrics:
        metric = evaluation.metric(info.key)
        if info.key not in evaluation.metrics:
            continue
        write = _percent if info.percent else _decimal
        low, high = metric.ci95 or (None, None)
        more = evaluation.undefined.get(info.key, "")
        if low is not None and high is not None:
            more = f"{write(low)} to {write(high)}"
        rows.append((info.name, f"{write(metric.value)}  ({more})" if more else write(metric.value)))
    if task.per_class is not None:
        info = task.per_class
        rows += [
            (f"  {name}", f"{info.name} {_percent(row.value(info.key))}") for name, row in evaluation.per_class.items()
        ]
    print_columns(rows + _trust_rows(evaluation), _tell)
    for sentence in about_groups(evaluation.n, evaluation.groups, evaluation.largest_group):
        say(sentence)
    for column in evaluation.by:
        print_breakdown(evaluation, column)
    if evaluation.stress is not None:
        print_stress(evaluation.stress)


def _about_classes(prior: ClassPrior) -> str:
    """Which classes occur, or their shares."""
    if prior.shares is None:
        return f"only {', '.join(prior.classes)}"
    return ", ".join(f"{name} {_percent(prior.shares[name])}" for name in prior.classes) + ", no others"


def print_breakdown(evaluation: Evaluation, column: str) -> None:
    """Print the metrics of each value of a column, the worst first, to stderr."""
    from petriscope.report.breakdown import breakdown_view
    from petriscope.tasks import find_task

    view = breakdown_view(find_task(evaluation.task), evaluation.split, column, evaluation.by[column])
    table = [[column, "images", *view.metrics], *([row.name, row.images, *row.cells] for row in view.rows)]
    widths = [max(map(len, cells)) for cells in zip(*table, strict=True)]
    say("")
    for line in table:
        say("  ".join(f"{cell:<{width}}" for cell, width in zip(line, widths, strict=True)).rstrip())
    for sentence in view.sentences:
        say(sentence)


def _trust_rows(evaluation: Evaluation) -> list[tuple[str, str]]:
    """Rows on how many images are answered with at most 1 % errors, and how many are out of distribution."""
    from petriscope.report.wording import plural

    rows = []
    for row in evaluation.selective or []:
        if row.max_error == SHOWN_ERROR:
            groups = "" if evaluation.val_groups is None else f" by {plural(evaluation.val_groups, 'group')} of val"
            words = f"not guaranteed{groups} at any confidence"
            if row.guaranteed and row.answered:
                words = f"{_percent(row.coverage)} answered, {_percent(row.error)} of them wrong"
            elif row.guaranteed:
                words = "nothing answered"
            if row.guaranteed and evaluation.shift is not None and evaluation.shift.withdrawn:
                words = f"withdrawn; it would have been: {words}"
            rows.append((f"At most {100 * SHOWN_ERROR:g} % errors", words))
    if evaluation.ood is not None:
        rows.append(("Out of distribution", _percent(evaluation.ood.share)))
    return rows


def print_stress(tested: Robustness) -> None:
    """Print the stress test as a table of corruptions by severity to stderr."""
    name = tested.metric_name
    say(f"\nstress test, {tested.n:,} of {tested.of:,} images; {_words(name)} in %")
    rows = [("severity", " ".join(f"{severity:>5}" for severity in tested.severities) + "   mean")]
    for corruption, row in tested.corruptions.items():
        known = "trained against" if row.seen else "held out" if row.held_out else ""
        cells = " ".join(f"{_share(metric.value):>5}" for metric in row.series.get(name, ()))
        rows.append((corruption, f"{cells}  {_share(row.value('mean')):>5}  {known}"))
    print_columns(rows, _tell)
    say(
        f"clean {_share(tested.value('clean'))} %, mean over corruptions {_share(tested.value('mean'))} %, "
        f"worst {_share(tested.worst.value(name))} % ({tested.worst.name})"
    )
    if "together" in tested.metrics:  # which older tests lack
        two, three = _share(tested.value("two_at_once")), _share(tested.value("three_at_once"))
        say(f"two corruptions at once {two} %, three {three} %")


def print_data(data: DataSummary) -> None:
    """Print what a source contains: the size of its images, and how much of each class is in each split."""
    splits = data.splits
    totals = [f"{part.n:,}" for part in splits.values()]
    wide = max(
        7, *(len(f"{count:,}") for part in splits.values() for count in part.per_class.values()), *map(len, totals)
    )
    wide = max(wide, *(len(f"{sum(part.per_class.values()):,}") for part in splits.values())) + 1

    def line(cells: Iterable[object]) -> str:
        return "  ".join(f"{cell:>{wide},}" if isinstance(cell, int) else f"{cell:>{wide}}" for cell in cells)

    values = data.values
    ranges = ", ".join(f"{low} to {high}" for low, high in dict.fromkeys(zip(values.low, values.high, strict=True)))
    files = data.file_sizes
    rows = [
        ("source", data.source),
        ("task", data.task),
        ("images", f"{_size(data.size)}, {in_words(data.channel_names)}, {data.bits} bits"),
        ("values", f"{ranges}; mean {', '.join(f'{mean:.1f}' for mean in values.mean)}"),
    ]
    if files is not None and (files.different > 1 or files.most_common != data.size):
        several = f"{files.different:,} sizes from {_size(files.smallest)} to {_size(files.largest)}, most often "
        rows.append(("in files", f"{several if files.different > 1 else ''}{_size(files.most_common)}"))
    if (field := data.field_of_view) is not None:
        rows.append(("field of view", f"{field[0]:g} x {field[1]:g} um"))
    if data.columns:
        rows.append(("columns", ", ".join(f"{name} ({count:,} values)" for name, count in data.columns.items())))
    rows += [
        ("splits", f"drawn: {', '.join(data.drawn)}" if data.drawn else "as in the source"),
        ("fingerprint", data.fingerprint),
        ("", line(splits)),
        *((name, line(part.per_class[name] for part in splits.values())) for name in data.classes),
    ]
    if data.counted != "images":
        rows.append((f"all {data.counted}", line(sum(part.per_class.values()) for part in splits.values())))
    if any(part.unlabeled is not None for part in splits.values()):
        rows.append(("unlabeled pixels", line(part.unlabeled or 0 for part in splits.values())))
    if any(part.groups is not None for part in splits.values()):
        rows.append(("groups", line(part.groups or 0 for part in splits.values())))
    rows.append(("all images", line(part.n for part in splits.values())))
    rows += [
        ("" if number else "left out", f"{each.count:,} {each.reason}, such as {each.first}")
        for number, each in enumerate(data.left_out)
    ]
    print_columns(rows)
    for warning in data.warnings:
        say(f"warning: {warning}")


def _size(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"


def print_side_by_side(found: SideBySide) -> None:
    """Print what two sets of images look like: medians and quartiles, and how far the first is from the second."""
    table = [
        ("", *found.names, "difference"),
        ("images measured", *(f"{size:,}" for size in found.sizes), ""),
        *((row.measure, _spread(row.first), _spread(row.second), _apart(row.deviations)) for row in found.rows),
    ]
    widths = [max(map(len, cells)) for cells in zip(*table, strict=True)]
    lines = ("  ".join(f"{cell:<{width}}" for cell, width in zip(line, widths, strict=True)).rstrip() for line in table)
    deliver("\n".join(lines) + "\n")
    say(
        "medians, and the quartiles around them; background from 0 to 255, stain as optical density, size as a share of the "
        "shorter side; difference of the medians in standard deviations of the second. Medians "
        "depend on the mix of classes, too"
    )
    if (known := found.estimate) is None:
        say(found.not_estimated)
    else:
        say(
            f"estimated scale {known.factor:g}: as they are, objects of {found.names[0]} have the median size {known.here:.3g}, "
            f"those of {found.names[1]} {known.known:.3g}. Another mix of classes changes it too. To use it: "
            f"--scale {known.factor:g}, or --scale estimated"
        )


def _spread(found: Spread) -> str:
    if found.median is None or found.low is None or found.high is None:
        return "–"
    digits = 0 if found.median >= 10 else 3
    return f"{found.median:.{digits}f} ({found.low:.{digits}f} to {found.high:.{digits}f})"


def _apart(deviations: float | None) -> str:
    from petriscope.trust.verdict import FAR

    if deviations is None:
        return "–"
    return f"{deviations:+.1f}" if abs(deviations) < FAR else f"over {'+' if deviations > 0 else '-'}{FAR}"


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.2f} %"


def _decimal(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"


def _share(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f}"


def _words(name: str) -> str:
    return name.replace("_", " ").replace("miou", "mean IoU")
