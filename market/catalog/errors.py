"""Errors of the catalog: no such model."""

from mesh.errors import NotFound


class ModelNotFound(NotFound):
    code = "model_not_found"
