"""Chats: messages, tools and a form of the answer, made a prompt and a grammar, and read again."""
