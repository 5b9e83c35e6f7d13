"""The embedded stack: everything on one machine, under one supervisor (`far-mesh up`)."""
