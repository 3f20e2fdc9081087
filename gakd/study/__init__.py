"""A study: many methods, seeds and measures from one command, never the same run twice.

Imports every room; nothing imports it.
"""
