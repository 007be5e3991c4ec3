"""The run folder, and the result of a comparison of runs."""
