"""The benchmarks, one file each, and what reads their files and answers."""
