"""A trained model with all it needs to be used, and what it costs."""
