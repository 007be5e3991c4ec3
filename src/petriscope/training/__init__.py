"""Training: the loop, losses, optimizers, schedules, averaging, checkpoints."""
