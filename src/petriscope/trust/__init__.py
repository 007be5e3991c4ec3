"""How far a model can be trusted: temperature, abstention, out-of-distribution detection, robustness."""
