"""What tests share: factories, servers that fail on purpose, chains that branch."""
