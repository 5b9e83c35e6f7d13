"""The vocabulary that the gateway, the workers and the nodes share.

Imports neither of them, and no torch: the API's container has none. What a provider's machine
also needs (names, wire, errors, proof, metrics) imports no database and no chain client either.
"""
