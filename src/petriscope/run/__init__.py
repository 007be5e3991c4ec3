"""The run folder and the typed results in it."""
