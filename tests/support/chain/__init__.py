"""Chains that branch, lose answers or mine when told, and who acts on them."""
