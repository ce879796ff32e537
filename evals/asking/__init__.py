"""Asks vision-language models the questions of a task."""
