"""CSV: in UTF-8, with line ends of one kind, and without cells that a spreadsheet would compute."""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

# A spreadsheet takes a cell that begins so for a formula. An apostrophe in front makes it text; a text that begins with
# apostrophes and then so gets another one, so that reading can take it away again.
FORMULA = re.compile(r"'*[=+\-@\t\r\n]")
NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?", re.IGNORECASE | re.ASCII)


def csv_text(table: pd.DataFrame, header: bool = True) -> str:
    """A table as CSV, without its index."""
    cells = table.rename(columns=_escaped)
    words = cells.select_dtypes(exclude=["number", "bool"]).columns
    cells[words] = cells[words].map(_escaped)
    return cells.to_csv(index=False, header=header, lineterminator="\n")


def csv_lines(columns: Sequence[str], rows: Sequence[Mapping[str, Any]], header: bool = False) -> str:
    """Rows as lines of CSV, in the form of `csv_text`, without pandas.

    Args:
        rows: text, numbers, bool or None; None, NaN and what is missing are empty cells.
    """
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    if header:
        writer.writerow(map(_escaped, columns))
    for row in rows:
        writer.writerow([_cell(row.get(name)) for name in columns])
    return out.getvalue()


def _cell(value: Any) -> Any:
    if isinstance(value, float):
        return "" if math.isnan(value) else repr(float(value))
    return _escaped(value)


def read_csv(path: Path) -> pd.DataFrame:
    """A table that `csv_text` wrote; all cells are text."""
    import pandas as pd

    table = pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8")
    return table.rename(columns=plain).map(plain)


def _escaped(cell: Any) -> Any:
    return f"'{cell}" if isinstance(cell, str) and FORMULA.match(cell) and not NUMBER.fullmatch(cell) else cell


def plain(cell: str) -> str:
    """A cell as it was before `csv_text` wrote it."""
    return cell[1:] if cell.startswith("'") and FORMULA.match(cell) else cell
