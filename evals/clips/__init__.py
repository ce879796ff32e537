"""Measure clips: how well frames follow their structure and each other."""
