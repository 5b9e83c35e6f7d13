"""A running stack to measure: its processes, links, users and nodes."""
