"""Trackers of experiments: TensorBoard, MLflow, Weights & Biases, Trackio.

A training writes its run folder and knows nothing of trackers. A process beside it, one per tracker, follows the folder and
sends what is new (`petriscope.run.trackers.follow`). So a tracker that fails, waits for a network or crashes costs the
training nothing, and a run can be sent later in the same way.
"""

from __future__ import annotations

from collections.abc import Iterable
from importlib.util import find_spec

from petriscope.core.errors import RequestError
from petriscope.core.recipe import Part
from petriscope.core.registry import Registry

HERE = "petriscope.run.trackers"
TRACKERS = Registry(
    "tracker",
    {  # a tracker is called like its library, and like the extra that installs it
        "tensorboard": f"{HERE}.tensorboard:TensorBoardTracker",
        "mlflow": f"{HERE}.mlflow:MLflowTracker",
        "wandb": f"{HERE}.wandb:WandbTracker",
        "trackio": f"{HERE}.trackio:TrackioTracker",
    },
)


def check_trackers(parts: Iterable[Part]) -> None:
    """Check the names and options of trackers, and that their libraries are installed.

    Raises:
        RequestError: a name or an option is wrong, or a library is missing.
    """
    for part in parts:
        TRACKERS.check(part)
        if find_spec(part.name) is None:
            raise RequestError(f"{part.name} is not installed; install it with: pip install 'petriscope[{part.name}]'")
