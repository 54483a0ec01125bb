"""A network small enough to be measured in a test."""

from magistral_jax.settings import load

TINY = [
    "model.shape.layers=1",
    "model.shape.width=16",
    "model.shape.heads=2",
    "model.shape.kv_heads=1",
    "model.shape.head_dim=8",
    "model.shape.ffn=16",
]
OPTIONS = [f"--{field}" for field in TINY]


def tiny_config():
    return load(None, [tuple(field.split("=")) for field in TINY])
