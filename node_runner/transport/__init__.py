"""How a node gets its work: it pulls; nothing ever connects to it."""
