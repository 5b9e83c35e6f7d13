"""A provider's node: its options, its processes, what pip would install for it."""
