"""What measures the mesh: each module with a `main` is a command that prints a table."""
