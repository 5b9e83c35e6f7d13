"""Ledgers, clusters and routes, made by hand or at random."""
