"""Tasks: what targets are, and all that follows from it.

A task is chosen once, from the data, and then carried by name: in the image set, the run, the model file and the results.
`find_task` gives the task of a name. A room that behaves differently per task has one module per task, called by the
task's name, and `in_room` picks it; ``generic`` stands in for tasks that the room has no module for.
"""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from types import ModuleType

import numpy as np

from petriscope.core.errors import DataError, RequestError, near
from petriscope.tasks.base import MetricInfo, Task
from petriscope.tasks.classification import Classification
from petriscope.tasks.multilabel import Multilabel
from petriscope.tasks.segmentation import Segmentation

__all__ = ["MetricInfo", "Task", "choose_task", "find_task", "in_room", "register"]

_TASKS: dict[str, Task] = {}


def register(task: Task) -> None:
    """Make a task known by its name. Where targets fit several, ``data.task`` chooses one that was registered later."""
    _TASKS[task.name] = task


def find_task(name: str) -> Task:
    """The task of that name.

    Raises:
        RequestError: there is none.
    """
    if name not in _TASKS:
        raise RequestError(f"no task {name!r}; {near(name, _TASKS)}")
    return _TASKS[name]


def choose_task(targets: np.ndarray) -> Task:
    """The task whose targets look like these.

    Raises:
        DataError: no task has such targets.
    """
    for task in _TASKS.values():
        if task.accepts(targets):
            return task
    known = " or ".join(f"{task.targets_are} ({name})" for name, task in _TASKS.items())
    raise DataError(f"targets must be {known}, not {targets.dtype} {list(targets.shape)}")


def in_room(task: Task, room: str) -> ModuleType:
    """The module of a room for a task: ``petriscope.<room>.<task>``, or ``petriscope.<room>.generic``."""
    name = f"petriscope.{room}.{task.name}"
    return import_module(name if find_spec(name) else f"petriscope.{room}.generic")


register(Segmentation())
register(Classification())
register(Multilabel())
