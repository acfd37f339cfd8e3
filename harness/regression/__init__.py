"""Did a number move? Baselines, their values, signatures of code."""
