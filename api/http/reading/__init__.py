"""Readers of one process: answers that they share, and slots that they hold."""
