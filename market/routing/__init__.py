"""Which nodes serve a generation, and why the others do not."""
