"""Benchmarks: one module a question, results as JSON, plots as PNG."""
