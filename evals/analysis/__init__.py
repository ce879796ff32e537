"""Attention heads: statistics per layer and head, head maps, and sets of heads compared."""
