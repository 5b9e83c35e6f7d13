"""What test modules share, one folder a subject."""
