"""Benchmarks: each module is one command that prints a table; README.md holds what they printed and what limits it."""
