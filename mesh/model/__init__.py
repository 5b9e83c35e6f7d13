"""What a model's configuration tells: whether it is served, its sizes and its cost in work."""
