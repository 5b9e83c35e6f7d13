"""The development stack: everything on one machine (`far-mesh up`)."""
