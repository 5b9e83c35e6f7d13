"""What a config.json tells."""
