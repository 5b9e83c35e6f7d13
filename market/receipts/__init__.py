"""Receipts of generations with their proofs, and statements of users and providers."""
