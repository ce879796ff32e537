"""Settings of methods, chosen on validation scenes."""
