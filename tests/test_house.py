"""The layout of the source: few modules at the root, and no two files that share a name by accident.

The layers of the rooms and their imports are checked by import-linter, in ``make lint``.
"""

import sys
from collections import defaultdict
from importlib import import_module
from inspect import isclass, isfunction
from pathlib import Path
from pkgutil import walk_packages

import petriscope

ROOT = Path(petriscope.__file__).parent
ROOT_MODULES = 5
TASKS = {"classification", "segmentation", "multilabel", "generic"}  # rooms have one module per task
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


def test_public_names_are_functions_and_classes_whatever_was_imported():
    for module in walk_packages(petriscope.__path__, "petriscope."):
        if not module.name.endswith("__main__"):
            import_module(module.name)
    for name in set(petriscope.__all__) - {"__version__"}:
        assert isfunction(getattr(petriscope, name)) or isclass(getattr(petriscope, name)), name
    assert petriscope.report.page is sys.modules["petriscope.report.page"], "modules are still found"
