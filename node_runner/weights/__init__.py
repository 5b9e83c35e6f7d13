"""A span's weights, from where they lie to a small checkpoint of its own on this machine's disk.

Knows files, ranges of bytes and hashes; nothing of torch, and nothing of models but their tensors'
names. Sources (a folder, a hub, HTTP addresses that the platform hands out) answer alike; the
span's tensors stream from them into its own file; a cache keeps what was made, within a limit.
"""
