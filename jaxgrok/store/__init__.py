"""What a sweep leaves on disk: curves, checkpoints, records of runs, and when things happened in them."""
