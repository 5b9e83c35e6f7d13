"""What a batch consists of."""
