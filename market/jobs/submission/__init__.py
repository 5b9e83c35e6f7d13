"""Submission of jobs: early refusals, turns, and the transaction that writes a job."""
