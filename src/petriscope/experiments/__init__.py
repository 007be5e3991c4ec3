"""What people do: train, evaluate, compare, bench, join."""
