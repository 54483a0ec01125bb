"""Prompt -> Completion, by continuous batching over a fixed set of slots."""
