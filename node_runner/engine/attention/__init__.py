"""Attention of ragged batches over paged KV."""
