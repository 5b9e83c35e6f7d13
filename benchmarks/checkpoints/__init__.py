"""Models to measure, and plain transformers on them."""
