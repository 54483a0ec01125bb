"""AdamW by optax, with global-norm clipping and a linear warm-up to a constant rate."""

import optax

from magistral_jax.config import TrainerConfig


def make_optimizer(config: TrainerConfig) -> optax.GradientTransformation:
    """The paper prints no optimizer; docs/PAPER.md records this choice."""
    rate: optax.ScalarOrSchedule = config.learning_rate
    if config.warmup_steps:
        rate = optax.linear_schedule(0.0, config.learning_rate, config.warmup_steps)
    return chain(
        rate,
        beta1=config.beta1,
        beta2=config.beta2,
        eps=config.adam_eps,
        weight_decay=config.weight_decay,
        max_grad_norm=config.max_grad_norm,
    )


def chain(
    rate: optax.ScalarOrSchedule,
    *,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    max_grad_norm: float,
) -> optax.GradientTransformation:
    return optax.chain(
        optax.clip_by_global_norm(max_grad_norm),
        optax.adamw(rate, b1=beta1, b2=beta2, eps=eps, weight_decay=weight_decay),
    )
