"""What a model's config.json tells: its sizes in memory and its cost in work."""
