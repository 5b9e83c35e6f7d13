"""Models on offer and their weights."""
