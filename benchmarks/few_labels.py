"""What a few labeled images of another microscope bring: several draws of K images are labeled, `adapt` learns from them, and
all the others, which it has not seen, are what it is judged by.

    python benchmarks/few_labels.py RUN --data bccd --labels 50 100 --draws 3 --max-error 0.1 0.05 --out adapted

A draw is a random choice with two images of each class first. The classes that occur in the source are given (`--classes`). Runs
are kept under --out, and what is there already is not made again. "Answered" and "wrong" are of `predict --max-error` on all
images that were not labeled, the comparison with val included.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import pandas as pd

from common import print_machine, print_table
from petriscope import api
from petriscope.metrics.intervals import wilson
from petriscope.run.folder import Run, open_run
from petriscope.trust.abstention import NOT_SURE

LEAST = 2  # images of each class among the labeled


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--data", required=True, type=Path, help="a folder of class folders")
    parser.add_argument("--home", help="where the data of the run are now, if they were moved")
    parser.add_argument("--labels", type=int, nargs="+", default=[50, 100], metavar="K")
    parser.add_argument("--draws", type=int, default=3)
    parser.add_argument("--max-error", type=float, nargs="+", default=[0.1, 0.05])
    parser.add_argument("--tta", default="d4", help="of the predictions")
    parser.add_argument("--minutes", type=float, default=10.0, help="of each adaptation")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    print_machine()
    files, labels = listed(args.data)
    names = sorted(set(labels))
    print(f"{len(files)} images of {len(names)} classes: {', '.join(names)}")
    rows, pooled = [], {}
    for count in args.labels:
        for draw in range(args.draws):
            chosen = drawn(labels, count, draw)
            folder = args.out / f"{count}-{draw}"
            began = time.perf_counter()
            if not folder.exists():
                table = args.out / f"{count}-{draw}.csv"
                table.parent.mkdir(parents=True, exist_ok=True)
                here = pd.DataFrame({"path": [str(files[at].resolve()) for at in chosen], "label": labels[chosen]})
                here.to_csv(table, index=False)
                api.adapt(args.run, table, folder, home=args.home, classes=names, minutes=args.minutes, seed=draw)
            minutes = (time.perf_counter() - began) / 60
            rest = np.setdiff1d(np.arange(len(files)), chosen)
            found = judged(folder, [files[at] for at in rest], labels[rest], names, args.max_error, args.tta)
            rows.append((str(count), str(draw), f"{minutes:.1f}", *described(open_run(folder), found, args.max_error)))
            pooled.setdefault(count, []).append(found)
            print_table(header(args.max_error), rows[-1:])
    print_table(header(args.max_error), rows)
    for count, all_found in pooled.items():
        right = np.mean([found["right"].mean() for found in all_found])
        print(f"{count} labels: {100 * right:.1f} % right, the mean of {len(all_found)} draws")


def listed(folder: Path) -> tuple[list[Path], np.ndarray]:
    """Files of class folders in the order of their names, and the class of each."""
    files = sorted(path for path in folder.glob("*/*") if path.is_file())
    return files, np.array([path.parent.name for path in files])


def drawn(labels: np.ndarray, count: int, draw: int) -> np.ndarray:
    """Rows of the labeled images: `LEAST` of each class first, the others by chance."""
    order = np.random.default_rng([draw, count]).permutation(len(labels))
    first = np.concatenate([order[labels[order] == name][:LEAST] for name in sorted(set(labels))])
    return np.concatenate([first, order[~np.isin(order, first)]])[:count]


def judged(
    run: Path, files: list[Path], labels: np.ndarray, names: list[str], errors: list[float], tta: str
) -> pd.DataFrame:
    """Per image: is the prediction right, and for each limit of errors, is it answered?"""
    found = pd.DataFrame(index=range(len(files)))
    for limit in errors:
        table = api.predict(run, files, tta=tta, classes=names, max_error=limit, quiet=True)
        assert list(table["image"]) == [str(file) for file in files]
        found["right"] = table["predicted"].to_numpy() == labels
        found[limit] = table["answer"].to_numpy() != NOT_SURE
    return found


def header(errors: list[float]) -> tuple[str, ...]:
    asked = [f"at {100 * limit:g} %: {words}" for limit in errors for words in ("answered", "wrong of them")]
    return ("labels", "draw", "minutes", "held out", "right of the others", *asked, "home before", "home after")


def described(run: Run, found: pd.DataFrame, errors: list[float]) -> tuple[str, ...]:
    adaptation = run.results.adaptation
    assert adaptation is not None and adaptation.home_before is not None and adaptation.home_after is not None
    parts = [f"{100 * (adaptation.after.value('accuracy') or 0):.1f} %", share(found["right"])]
    for limit in errors:
        answered = found[limit]
        wrong = ~found["right"][answered]
        parts += [share(answered), f"{int(wrong.sum())}: {share(wrong)}" if len(wrong) else "-"]
    home = [f"{100 * (each.value or 0):.2f} %" for each in (adaptation.home_before, adaptation.home_after)]
    return (*parts, *home)


def share(values: pd.Series) -> str:
    low, high = wilson(int(values.sum()), len(values))
    return f"{100 * values.mean():.1f} % ({100 * low:.1f} to {100 * high:.1f})"


if __name__ == "__main__":
    main()
