"""Reading of jobs by many at once: tokens as they come, snapshots, and the end."""
