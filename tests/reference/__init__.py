"""Slow and obvious versions of what the library computes. Tests compare it with them."""
