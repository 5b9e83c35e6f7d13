"""A span of any model family."""
