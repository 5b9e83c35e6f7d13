"""What a settlement batch consists of."""
