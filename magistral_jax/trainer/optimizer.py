"""AdamW or Adafactor by optax, with clipping by global norm and a warm-up to a constant rate; of
all weights, or of LoRA's factors of their changes."""

import jax.numpy as jnp
import optax

from magistral_jax.config import TrainerConfig
from magistral_jax.trainer.lora import lora


def make_optimizer(
    config: TrainerConfig, *, rate: optax.ScalarOrSchedule | None = None
) -> optax.GradientTransformation:
    """The paper prints no optimizer; docs/PAPER.md records this choice. `rate` is another than the
    config's warm-up to a constant."""
    if rate is None:
        rate = config.learning_rate
        if config.warmup_steps:
            rate = optax.linear_schedule(0.0, config.learning_rate, config.warmup_steps)
    optimizer = _of_all_weights(config, rate)
    if config.lora_rank:
        return lora(optimizer, rank=config.lora_rank, scale=config.lora_alpha / config.lora_rank)
    return optimizer


def _of_all_weights(
    config: TrainerConfig, rate: optax.ScalarOrSchedule
) -> optax.GradientTransformation:
    if config.optimizer == "adafactor":
        # Without its own scaling by the weights' size, so that the rate means what AdamW's means.
        # And the rate comes last: optax's own would leave the decay out of it.
        return optax.chain(
            optax.clip_by_global_norm(config.max_grad_norm),
            optax.adafactor(
                multiply_by_parameter_scale=False, weight_decay_rate=config.weight_decay or None
            ),
            optax.scale_by_learning_rate(rate, flip_sign=False),
        )
    return chain(
        rate,
        beta1=config.beta1,
        beta2=config.beta2,
        eps=config.adam_eps,
        weight_decay=config.weight_decay,
        max_grad_norm=config.max_grad_norm,
        moment_dtype=jnp.dtype(config.moment_dtype),
    )


def chain(
    rate: optax.ScalarOrSchedule,
    *,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    max_grad_norm: float,
    moment_dtype: jnp.dtype | None = None,
) -> optax.GradientTransformation:
    return optax.chain(
        optax.clip_by_global_norm(max_grad_norm),
        optax.adamw(
            rate, b1=beta1, b2=beta2, eps=eps, weight_decay=weight_decay, mu_dtype=moment_dtype
        ),
    )
