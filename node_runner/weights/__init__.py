"""Fetches weights from where they lie into a span's checkpoint on this machine's disk.

Knows files, ranges of bytes and hashes; nothing of torch, and nothing of models but their tensors'
names. All sources (a folder, a hub, URLs that the platform signs) have one interface; a span's
tensors stream from a source into one file; a cache keeps what was made, within a limit.
"""
