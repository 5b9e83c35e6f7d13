"""The node in the public phonebook: it announces its span there, and finds the platform by it.

hivemind runs in a process of its own (`process`), which may die or hang: the node starts it again,
or goes on without. The rest of this package does not import it.
"""
