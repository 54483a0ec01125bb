"""The abstract parameter tree: shape, logical axes and initialiser of every array, in one table.

Initialisation, sharding, loading and the weight push all walk this tree. Layers are stacked on a
leading axis, which is the trainer's layout; `unstack` gives the generator's, one array per layer.

Axes: V vocabulary, D width, L layers, N query heads, K key/value heads, H head size,
F feed-forward.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key

from magistral_jax.config import ShapeConfig
from magistral_jax.model.rope import Scaling

Params = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """The network's shape. Hashable, so it can be a static argument of jit."""

    layers: int
    width: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    vocab: int
    rope_theta: float
    norm_eps: float
    tie_embeddings: bool
    family: str = "llama"
    """Its name in `families.FAMILIES`: what it is called when it is handed back."""
    qkv_bias: bool = False
    """Whether q, k and v have biases (Qwen2)."""
    qk_norm: bool = False
    """Whether each head of q and k is normed before its rotation (Qwen3)."""
    rope_scaling: Scaling = ()
    nope_layers: tuple[int, ...] = ()
    """Layers whose q and k are not rotated (SmolLM3), counted from 0."""
    window: int = 0
    """Tokens a query of `window_layers` sees, itself included; 0: all before it."""
    window_layers: tuple[int, ...] = ()
    max_positions: int = 0
    """Longest sequence the network was made for; 0: not said."""

    @staticmethod
    def from_config(shape: ShapeConfig, vocab: int) -> "Architecture":
        return Architecture(
            layers=shape.layers,
            width=shape.width,
            heads=shape.heads,
            kv_heads=shape.kv_heads,
            head_dim=shape.head_dim,
            ffn=shape.ffn,
            vocab=vocab,
            rope_theta=shape.rope_theta,
            norm_eps=shape.norm_eps,
            tie_embeddings=shape.tie_embeddings,
        )


@dataclass(frozen=True, kw_only=True)
class ArraySpec:
    """What one parameter array is, before it exists."""

    shape: tuple[int, ...]
    axes: tuple[str, ...]
    """Logical name of each axis; `sharding.RULES` maps them to mesh axes."""
    scale: float
    """Standard deviation of the initial normal draw; 0: every element is `fill`."""
    fill: float = 1.0
    """1 for norm gains, 0 for biases."""


def abstract(arch: Architecture) -> Params:
    """The whole tree, as `ArraySpec`s."""
    L, D, N, K, H, F = (
        arch.layers, arch.width, arch.heads, arch.kv_heads, arch.head_dim, arch.ffn
    )  # fmt: skip
    # Outputs of residual branches start smaller, so that depth does not grow the stream (GPT-2).
    branch = (2 * L) ** -0.5

    def per_layer(shape: tuple[int, ...], axes: tuple[str, ...], scale: float) -> ArraySpec:
        return ArraySpec(shape=(L, *shape), axes=("layers", *axes), scale=scale)

    tree: Params = {
        "embed": ArraySpec(shape=(arch.vocab, D), axes=("vocab", "embed"), scale=D**-0.5),
        "layers": {
            "attn_norm": per_layer((D,), ("norm",), 0.0),
            "wq": per_layer((D, N, H), ("embed", "heads", "head_dim"), D**-0.5),
            "wk": per_layer((D, K, H), ("embed", "kv_heads", "head_dim"), D**-0.5),
            "wv": per_layer((D, K, H), ("embed", "kv_heads", "head_dim"), D**-0.5),
            "wo": per_layer((N, H, D), ("heads", "head_dim", "embed"), branch * (N * H) ** -0.5),
            "mlp_norm": per_layer((D,), ("norm",), 0.0),
            "w_gate": per_layer((D, F), ("embed", "ffn"), D**-0.5),
            "w_up": per_layer((D, F), ("embed", "ffn"), D**-0.5),
            "w_down": per_layer((F, D), ("ffn", "embed"), branch * F**-0.5),
        },
        "final_norm": ArraySpec(shape=(D,), axes=("norm",), scale=0.0),
    }
    if arch.qkv_bias:
        for name, heads, axis in (("bq", N, "heads"), ("bk", K, "kv_heads"), ("bv", K, "kv_heads")):
            spec = per_layer((heads, H), (axis, "head_dim"), 0.0)
            tree["layers"][name] = replace(spec, fill=0.0)
    if arch.qk_norm:
        for name in ("q_norm", "k_norm"):
            tree["layers"][name] = per_layer((H,), ("norm",), 0.0)
    if not arch.tie_embeddings:
        tree["head"] = ArraySpec(shape=(D, arch.vocab), axes=("embed", "vocab"), scale=D**-0.5)
    return tree


def map_specs(function: Callable[..., Any], specs: Params, *rest: Params) -> Params:
    """`jax.tree.map` over a tree whose leaves are `ArraySpec`s."""
    return jax.tree.map(function, specs, *rest, is_leaf=lambda x: isinstance(x, ArraySpec))


def initialise(arch: Architecture, key: Key[Array, ""], shardings: Params) -> Params:
    """A fresh float32 tree, each array made where `shardings` puts it.

    Each array's key follows from its place in the tree, so the draw does not depend on the mesh.
    """
    specs, treedef = jax.tree.flatten(abstract(arch), is_leaf=lambda x: isinstance(x, ArraySpec))

    def draw(key: Key[Array, ""]) -> Params:
        arrays = [
            jnp.full(spec.shape, spec.fill, jnp.float32)
            if spec.scale == 0
            else spec.scale * jax.random.normal(jax.random.fold_in(key, i), spec.shape, jnp.float32)
            for i, spec in enumerate(specs)
        ]
        return jax.tree.unflatten(treedef, arrays)

    return jax.jit(draw, out_shardings=shardings)(key)


def unstack(params: Params, layers: int) -> Params:
    """The same tree with `layers` as a tuple of per-layer trees."""
    stacked = params["layers"]
    per_layer = tuple({name: weight[i] for name, weight in stacked.items()} for i in range(layers))
    return {**params, "layers": per_layer}
