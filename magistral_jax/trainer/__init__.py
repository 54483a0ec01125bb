"""Minibatch -> new weights."""
