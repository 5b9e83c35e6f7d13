"""Where nodes and users are, and how far apart."""
