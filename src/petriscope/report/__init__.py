"""Report: one self-contained HTML file of a run."""

from petriscope.report.page import write_report

__all__ = ["write_report"]
