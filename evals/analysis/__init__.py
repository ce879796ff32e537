"""What attention heads do: statistics per layer and head, head maps, and sets of heads compared."""
