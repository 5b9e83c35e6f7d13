"""The mesh and plain transformers on one model, measured in turns."""
