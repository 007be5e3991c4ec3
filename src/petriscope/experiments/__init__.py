"""What users do with recipes and runs: train, evaluate, calibrate, compare, join them, and run suites."""
