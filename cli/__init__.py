"""`far-mesh`: what an operator types."""
