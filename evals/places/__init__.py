"""Measure where things are put: objects into pictures, prompts into regions."""
