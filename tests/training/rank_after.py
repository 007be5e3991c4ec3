"""The command line, where processes share only what follows the training: ``rank_after.py MODE train ...``. Each trains by
itself, to the weights of one process alone, so all else has to be as with one process too.

MODE is what happens in the stress test of the last process. ``ok``: nothing. ``fails``: a disturbance fails. ``killed``: the
process is killed.
"""

import os
import signal
import sys

from petriscope.cli import main
from petriscope.core.errors import PetriscopeError
from petriscope.core.launch import launch
from petriscope.core.ranks import ALONE
from petriscope.training.loop import Trainer
from petriscope.trust import robustness

mode = sys.argv.pop(1)
fit, corrupt = Trainer.fit, robustness.corrupt


def fit_alone(self):
    ranks, self.ranks = self.ranks, ALONE
    if not ranks.first:
        self.checkpoint = None
    weights = fit(self)
    self.ranks = ranks
    return weights


def corrupt_or_not(batch, name, severity, at, seed, channels):
    if name == "gaussian-noise" and severity == 3 and launch().rank == launch().size - 1:
        if mode == "fails":
            raise PetriscopeError("a disturbance that cannot be drawn")
        if mode == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
    return corrupt(batch, name, severity, at, seed, channels)


Trainer.fit, robustness.corrupt = fit_alone, corrupt_or_not
main()
