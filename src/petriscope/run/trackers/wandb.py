"""Weights & Biases: one run, with config, history, summary, files and an artifact of type model. WANDB_MODE=offline works without
a login; ``wandb sync`` sends it later."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from petriscope.run.trackers.base import PROJECT, Entry, Outcome, Start, Status, new_id, plain_name

EXIT = {"finished": 0, "failed": 1, "interrupted": 255}  # 255 is what wandb itself takes for Ctrl-C


class WandbTracker:
    """Logs into a project.

    Args:
        project: its name; None: that of WANDB_PROJECT, or ``petriscope``.
    """

    def __init__(self, *, project: str | None = None) -> None:
        self.project = project or os.environ.get("WANDB_PROJECT") or PROJECT

    def begin(self, start: Start, known: Entry | None) -> Entry:
        import wandb

        if not hasattr(self, "id"):  # also a second try of a begin that failed is of the same run
            self.id = new_id() if known is None else known.id
        self.run = wandb.init(
            project=self.project,
            id=self.id,
            name=start.name,
            notes=start.about,
            config={**start.tree, "environment": start.facts},
            resume="allow",
            # The process that wandb sees is not the training: what it prints, and its code, are of no use.
            settings=wandb.Settings(console="off", disable_code=True, disable_git=True),
        )
        self.run.define_metric("*", step_metric="epoch")
        self.name = plain_name(f"{start.name}-{self.id}")
        self.last = 0
        where = Path(self.run.dir).parent if self.run.offline else self.run.url
        return Entry(id=self.id, where=f"{self.run.project}: {where}")

    def log(self, epoch: int, metrics: Mapping[str, float], at: float) -> None:
        self._log({"epoch": epoch, **metrics}, epoch)

    def deliver(self, outcome: Outcome) -> None:
        import wandb

        figures: dict[str, Any] = {f"figures/{name}": wandb.Image(str(path)) for name, path in outcome.figures.items()}
        if figures:
            self._log({"epoch": outcome.epochs, **figures}, max(self.last, outcome.epochs) + 1)
        self.run.summary.update(dict(outcome.metrics))
        for path in outcome.files:
            self.run.save(str(path), base_path=str(path.parent), policy="now")
        if outcome.model is not None:
            model = wandb.Artifact(self.name, type="model", metadata=dict(outcome.metrics))
            model.add_file(str(outcome.model))
            self.run.log_artifact(model)

    def close(self, status: Status, why: str, at: float) -> None:
        self.run.summary.update({"status": status, "why": why})
        self.run.finish(exit_code=EXIT[status])

    def _log(self, values: dict[str, Any], step: int) -> None:
        """Log at once: without commit, wandb waits for the next step."""
        self.run.log(values, step=step, commit=True)
        self.last = step
