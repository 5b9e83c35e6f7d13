"""Chats: templates in the styles of published models, and conversations."""
