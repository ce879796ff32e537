"""From answers to scores, and from two runs to a difference with its interval."""
