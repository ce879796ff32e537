"""Benchmarks, the runner that answers them with and without interventions, and the report."""
