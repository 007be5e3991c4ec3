"""Training: the loop, losses, optimizers, schedules, weight averaging, checkpoints, fine-tuning, distillation."""
