"""Magistral's reinforcement learning system, in JAX.

A completion's journey, and the room that owns each step:

    data        problem    -> prompt
    generator   prompt     -> completion   (weights may change between two tokens)
    verifier    completion -> verdict
    batch       verdicts   -> groups -> advantages -> packed minibatches
    trainer     minibatch  -> new weights
    weights     new weights -> generator   (device to device, while it decodes)

`loops.sync` is the specification of the journey; `loops.asynchronous` moves the same values
through the same rooms at once.
"""

import os
import sys
import warnings

# XLA on CPU may keep bf16 intermediates in f32 where it fuses them. It fuses a decode step and a
# full forward differently, so with this freedom the same weights give different log-probs to the
# sampler and to the trainer. The flag is read once, when jax makes its first backend.
_FLAG = "--xla_allow_excess_precision=false"

if "xla_allow_excess_precision" not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_FLAG}".strip()
    _bridge = sys.modules.get("jax._src.xla_bridge")
    if _bridge is not None and getattr(_bridge, "_backends", None):
        warnings.warn(
            f"magistral_jax was imported after jax had started, too late to set {_FLAG}: bf16 "
            "log-probs of sampler and trainer may differ by more than the stated bound. Import "
            f"magistral_jax first, or set XLA_FLAGS={_FLAG}.",
            stacklevel=2,
        )
