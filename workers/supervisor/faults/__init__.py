"""What a supervisor does about nodes that refuse, fall silent, or make no progress."""
