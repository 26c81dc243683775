"""Slow, obvious versions of what the library does, to compare it with."""
