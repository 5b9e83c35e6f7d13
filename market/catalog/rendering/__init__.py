"""Chat templates run in processes that can be ended, whatever a template does."""
