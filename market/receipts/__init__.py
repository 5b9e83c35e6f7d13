"""What was paid, with proof."""
