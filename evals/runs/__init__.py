"""Runs that can be stopped and go on: what is stored, shared out and counted."""
