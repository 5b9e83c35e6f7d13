"""/api/inference: submit, poll, stream, cancel."""
