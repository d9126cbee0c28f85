"""Scalar metrics of routing: pure functions over numpy counts, one function a metric, named like the key in the output files."""
