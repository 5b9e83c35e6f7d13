"""What a model's configuration tells: whether it is served, its sizes in memory, its cost in work."""
