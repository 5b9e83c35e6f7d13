"""A generation as a job."""
