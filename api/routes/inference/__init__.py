"""/api/inference: models, generations as jobs, and their receipts."""
