"""Which layers each node serves."""
