"""Benchmarks are readers; one runner; pure metrics; figures."""
