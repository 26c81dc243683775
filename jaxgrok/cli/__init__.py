"""The commands: their flags, the live line, and what the terminal shows."""
