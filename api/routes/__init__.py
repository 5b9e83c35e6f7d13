"""The endpoints, a module a subject by the paths they have, each with a `router`."""
