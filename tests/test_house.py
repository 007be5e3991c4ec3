"""The layout of the source: few modules at the root, and no two files that share a name by accident.

The layers of the rooms and their imports are checked by import-linter, in ``make lint``.
"""

from collections import defaultdict
from pathlib import Path

import petriscope

ROOT = Path(petriscope.__file__).parent
ROOT_MODULES = 5
TASKS = {"classification", "segmentation", "generic"}  # rooms have one module per task
ANYWHERE = {"__init__", "base", *TASKS}


def test_few_modules_at_the_root():
    assert len(list(ROOT.glob("*.py"))) <= ROOT_MODULES


def test_files_of_one_name_belong_together():
    rooms = defaultdict(set)
    for path in ROOT.glob("*/**/*.py"):
        rooms[path.stem].add(path.relative_to(ROOT).parts[0])
    # report/X is the page about what room/X found.
    shared = {
        name: sorted(found) for name, found in rooms.items() if len(found - {"report"}) > 1 and name not in ANYWHERE
    }
    assert not shared
