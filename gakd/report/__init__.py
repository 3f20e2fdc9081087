"""Runs compared on one page: what their folders hold, read, grouped and drawn.

Imports `evaluation` and what is below it.
"""
