"""Both sides on one model, in turns."""
