"""Timings of nfcore against what a reader would use otherwise: ``python -m tools.benchmarks``."""
