"""What a provider sees."""
