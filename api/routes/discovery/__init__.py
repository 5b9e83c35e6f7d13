"""/api/discovery: who is there."""
