"""Interventions on vision-language models, one per file."""
