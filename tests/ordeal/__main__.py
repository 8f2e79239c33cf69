"""Runs the ordeal: `python -m ordeal`."""
