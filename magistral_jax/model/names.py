"""One name table: how Hugging Face and llama.cpp call and lay out each array of ours.

Both store a linear layer as [out, in] and one tensor per layer; we keep [in, ..., out] axes and
stack layers. llama.cpp moreover keeps the rows of q and k of its llama family in the order of
interleaved rotary pairs, where Hugging Face and we rotate halves.

Axes: L layers, V vocabulary, D width, N query heads, K key/value heads, H head size,
F feed-forward.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float32

from magistral_jax.model.params import Architecture

Place = tuple[str, ...]
"""Where an array sits in the tree: ("layers", "wq")."""

Turn = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True, kw_only=True)
class Entry:
    """How files hold one array of ours."""

    hf: str
    gguf: str
    shape: tuple[int, ...]
    """Of one tensor in a file."""
    turn: Turn = lambda w: w
    """From a file's axes to ours; rows of the vocabulary may be turned alone."""
    back: Turn = lambda w: w
    """From our axes to a file's."""
    rows_axis: int = 0
    """Our axis along which rows of the file's tensor lie, where it is not one per layer."""
    paired_heads: int = 0
    """Heads whose rows llama.cpp's llama family interleaves; 0: no such tensor."""

    @property
    def is_per_layer(self) -> bool:
        return "{layer}" in self.hf

    def names(self, layers: int, *, gguf: bool = False) -> list[str]:
        name = self.gguf if gguf else self.hf
        return [name.format(layer=i) for i in range(layers)] if self.is_per_layer else [name]


def table(a: Architecture) -> dict[Place, Entry]:
    """Every array of ours, and the tensors that hold it."""
    D, F, N, K, H = a.width, a.ffn, a.heads, a.kv_heads, a.head_dim

    def block(name: str, gguf: str, shape: tuple[int, ...], turn: Turn, back: Turn) -> Entry:
        return Entry(
            hf=f"model.layers.{{layer}}.{name}",
            gguf=f"blk.{{layer}}.{gguf}",
            shape=shape,
            turn=turn,
            back=back,
        )

    def gain(name: str, gguf: str, size: int) -> Entry:
        return block(f"{name}.weight", f"{gguf}.weight", (size,), lambda w: w, lambda w: w)

    def linear(name: str, gguf: str, shape: tuple[int, int]) -> Entry:
        return block(f"{name}.weight", f"{gguf}.weight", shape, np.transpose, np.transpose)

    def into_heads(name: str, gguf: str, heads: int) -> Entry:
        return block(
            f"self_attn.{name}.weight",
            f"{gguf}.weight",
            (heads * H, D),
            lambda w: w.T.reshape(D, heads, H),
            lambda w: w.reshape(D, heads * H).T,
        )

    def bias(name: str, gguf: str, heads: int) -> Entry:
        return block(
            f"self_attn.{name}.bias",
            f"{gguf}.bias",
            (heads * H,),
            lambda w: w.reshape(heads, H),
            lambda w: w.reshape(heads * H),
        )

    entries: dict[Place, Entry] = {
        ("embed",): Entry(
            hf="model.embed_tokens.weight", gguf="token_embd.weight", shape=(a.vocab, D)
        ),
        ("layers", "attn_norm"): gain("input_layernorm", "attn_norm", D),
        ("layers", "wq"): replace(into_heads("q_proj", "attn_q", N), paired_heads=N),
        ("layers", "wk"): replace(into_heads("k_proj", "attn_k", K), paired_heads=K),
        ("layers", "wv"): into_heads("v_proj", "attn_v", K),
        ("layers", "wo"): block(
            "self_attn.o_proj.weight",
            "attn_output.weight",
            (D, N * H),
            lambda w: w.T.reshape(N, H, D),
            lambda w: w.reshape(N * H, D).T,
        ),
        ("layers", "mlp_norm"): gain("post_attention_layernorm", "ffn_norm", D),
        ("layers", "w_gate"): linear("mlp.gate_proj", "ffn_gate", (F, D)),
        ("layers", "w_up"): linear("mlp.up_proj", "ffn_up", (F, D)),
        ("layers", "w_down"): linear("mlp.down_proj", "ffn_down", (D, F)),
        ("final_norm",): Entry(hf="model.norm.weight", gguf="output_norm.weight", shape=(D,)),
    }
    if a.qkv_bias:
        entries["layers", "bq"] = bias("q_proj", "attn_q", N)
        entries["layers", "bk"] = bias("k_proj", "attn_k", K)
        entries["layers", "bv"] = bias("v_proj", "attn_v", K)
    if a.qk_norm:
        entries["layers", "q_norm"] = gain("self_attn.q_norm", "attn_q_norm", H)
        entries["layers", "k_norm"] = gain("self_attn.k_norm", "attn_k_norm", H)
    if not a.tie_embeddings:
        entries["head",] = Entry(
            hf="lm_head.weight",
            gguf="output.weight",
            shape=(a.vocab, D),
            turn=np.transpose,
            back=np.transpose,
            rows_axis=1,
        )
    return entries


def halves(w: Float32[np.ndarray, "NH D"], heads: int) -> Float32[np.ndarray, "NH D"]:
    """Rows of each head from rotary pairs, x0 y0 x1 y1, to rotary halves, x0 x1 y0 y1."""
    paired = w.reshape(heads, -1, 2, w.shape[1])
    return paired.swapaxes(1, 2).reshape(w.shape)
