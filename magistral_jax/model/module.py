"""The network as a flax module, for those who work in flax; a thin face on the same functions.

    model = Transformer(arch, params)               # params: the tree of `model.params`
    with jax.set_mesh(mesh):
        scores = model(tokens)
        optimizer = nnx.Optimizer(model, optax.adamw(1e-6), wrt=nnx.Param)

`params()` and `load()` cross between the module and the plain tree that every room uses. The
rooms never hold a module: walking one costs time on each step, a plain tree does not.

Axes: B rows, T tokens, V vocabulary.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from magistral_jax.model.params import Architecture, Params
from magistral_jax.model.transformer import attend_packed, head_weight, logits, transform


class Transformer(nnx.Module):
    """Every array of the tree as one `nnx.Param`, at the tree's own path below `tree`."""

    def __init__(
        self, arch: Architecture, params: Params, *, dtype: DTypeLike = jnp.float32
    ) -> None:
        """`params` has stacked layers, the trainer's layout; its arrays are not copied."""
        self.arch, self.dtype = arch, jnp.dtype(dtype)
        self.tree = nnx.data(jax.tree.map(nnx.Param, params))

    def __call__(
        self,
        tokens: Int[Array, "B T"],
        positions: Int[Array, "B T"] | None = None,
        segments: Int[Array, "B T"] | None = None,
    ) -> Float[Array, "B T V"]:
        """Logits of the token after each one, under the mesh that is set.

        Without `positions` and `segments`, each row is one sequence without padding.
        """
        if positions is None:
            positions = (
                jnp.zeros_like(tokens) + jnp.arange(tokens.shape[1], dtype=tokens.dtype)[None]
            )
        if segments is None:
            segments = jnp.ones_like(tokens)
        params = self.params()
        attend = attend_packed(segments, positions)
        hidden, _ = transform(params, self.arch, tokens, positions, attend=attend, dtype=self.dtype)
        return logits(hidden, head_weight(params, self.dtype), tied=self.arch.tie_embeddings)

    def params(self) -> Params:
        """The arrays as the plain nested dict that every room uses; nothing is copied."""
        return jax.tree.map(lambda p: p.get_value(), self.tree, is_leaf=_is_param)

    def load(self, params: Params) -> None:
        """Take over the arrays of a tree of the same shapes, such as a trainer's."""

        def put(param: nnx.Param, array: Array) -> None:
            assert param.shape == array.shape, (param.shape, array.shape)
            param.set_value(array)

        jax.tree.map(put, self.tree, params, is_leaf=_is_param)


def _is_param(node: object) -> bool:
    return isinstance(node, nnx.Param)
