"""An intervention inside lmms-eval."""
