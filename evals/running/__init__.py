"""Asking a model a benchmark's questions, once each, and keeping its answers."""
