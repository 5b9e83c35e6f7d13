"""Benchmarks of the mesh: each module in this folder is a command that prints a table.

What the commands share is in the folders: ``common``, a ``running`` stack, ``checkpoints``, two
sides measured ``side_by_side``, and what is ``simulated``.
"""
