"""Measure edits of pictures: whether the one thing changed that should, and all else stayed."""
