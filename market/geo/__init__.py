"""Where nodes and users are."""
