"""Evaluation: inference, metrics, intervals, calibration, cost."""
