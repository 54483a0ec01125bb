"""The cold start in miniature: a short supervised warm-up on generated reasoning traces.

Magistral Small starts RL from a network that was shown reasoning traces (section 5.2). Here a
network from scratch is shown solved sums. Some traces work the sum out digit by digit, most just
answer; the network learns the format and both manners, and which of them pays is left to RL.
"""

from collections.abc import Callable, Iterator

import jax
import numpy as np
import optax
from jax.sharding import Mesh

from magistral_jax.batch.assemble import assemble_minibatch
from magistral_jax.config import RunConfig
from magistral_jax.data.conversations import shown as conversation
from magistral_jax.data.traces import trace
from magistral_jax.model.params import Architecture, Params
from magistral_jax.tokenizer.interface import Tokenizer
from magistral_jax.tokenizer.thoughts import opened, rest_of
from magistral_jax.trainer.loss import likelihood_loss
from magistral_jax.trainer.optimizer import chain
from magistral_jax.trainer.trainer import trainer_of
from magistral_jax.types import Group, Prompt, UserError, Verdict


def warm_up(
    config: RunConfig,
    arch: Architecture,
    mesh: Mesh,
    params: Params,
    prompts: Iterator[Prompt],
    tokenizer: Tokenizer,
    *,
    on_step: Callable[[int, float], None],
    on_progress: Callable[[], None] = lambda: None,
) -> Params:
    """Parameters after `warmup.steps` supervised steps.

    `on_progress` is called after each step and each microbatch, `on_step(step, loss)` now and then.
    """
    w = config.warmup
    rate = optax.cosine_decay_schedule(w.learning_rate, w.steps, alpha=0.1)
    optimizer = chain(rate, beta1=0.9, beta2=0.95, eps=1e-8, weight_decay=0.0, max_grad_norm=1.0)
    trainer = trainer_of(config, arch, mesh, params, optimizer, loss=likelihood_loss)
    trainer.on_progress = on_progress
    before = None
    rng = np.random.default_rng((config.seed, 1))
    for step in range(w.steps):
        groups = [
            shown(next(prompts), tokenizer, worked=bool(rng.random() < w.worked_share))
            for _ in range(w.completions)
        ]
        minibatch = assemble_minibatch(
            groups,
            row_tokens=config.batch.row_tokens,
            rows=config.batch.rows,
            advantage_rule="none",
            share_rule="batch",
        )
        stats = trainer.minibatch_step(minibatch)
        if before is not None:
            jax.block_until_ready(before)
            on_progress()
        before = stats.loss
        if step % 20 == 0 or step == w.steps - 1:
            on_step(step + 1, float(stats.loss))
    return trainer.params


def shown(prompt: Prompt, tokenizer: Tokenizer, *, worked: bool) -> Group:
    """A trace in the form of a group of one, so that packing treats it like any completion."""
    text = rest_of(trace(prompt.problem, worked), opened(tokenizer, prompt.tokens))
    if text is None:
        raise UserError(
            "warmup.steps: the chat template closes the thoughts before an answer, and the warm-up "
            "teaches them. Set warmup.steps to 0 or take another model."
        )
    tokens = [*tokenizer.encode(text), *tokenizer.end_ids]
    completion = conversation(prompt.tokens, tokens, np.ones(len(tokens), bool), prompt.group)
    verdict = Verdict(reward=0.0, parts={}, reason="pass")
    return Group(prompt=prompt, completions=(completion,), verdicts=(verdict,))
