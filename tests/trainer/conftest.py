"""A tiny network, three judged groups, and trainers of it on any mesh."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from magistral_jax.model.params import Architecture, abstract, map_specs
from magistral_jax.model.sharding import TRAINER_RULES, make_mesh, place, shardings
from magistral_jax.trainer.trainer import Trainer
from magistral_jax.types import Completion, Group, Problem, Prompt, Verdict, VersionSpan

STOP = 2
VOCAB = 10
TEMPERATURE = 0.8


@pytest.fixture(scope="session")
def arch() -> Architecture:
    return Architecture(
        layers=2,
        width=8,
        heads=4,
        kv_heads=2,
        head_dim=4,
        ffn=6,
        vocab=VOCAB,
        rope_theta=100.0,
        norm_eps=1e-5,
        tie_embeddings=True,
    )


@pytest.fixture(scope="session")
def host_params(arch):
    """Its predictions are near uniform, so ratios to the recorded log-probs are near 1."""
    rng = np.random.default_rng(0)
    params = map_specs(
        lambda spec: (rng.normal(size=spec.shape) * spec.shape[-1] ** -0.5).astype(np.float32),
        abstract(arch),
    )
    return {**params, "embed": params["embed"] * np.float32(0.3)}


@pytest.fixture(scope="session")
def make_trainer(arch, host_params):
    def make(fsdp=1, sp=1, tp=1, rule=None, **options):
        mesh = make_mesh(jax.devices(), fsdp=fsdp, sp=sp, tp=tp)
        return Trainer(
            arch,
            mesh,
            place(host_params, shardings(arch, mesh, TRAINER_RULES)),
            optax.sgd(1.0) if rule is None else rule,
            temperature=TEMPERATURE,
            dtype=jnp.dtype("float32"),
            head_tokens=16,
            **options,
        )

    return make


def make_group(rng, number, prompt_length, lengths, rewards, *, given=()) -> Group:
    """A reward of None is a check that failed; `given` places were not sampled by the policy."""
    problem = Problem(id=str(number), domain="math", question="", answer="")
    tokens = rng.integers(3, VOCAB, prompt_length).astype(np.int32)
    prompt = Prompt(group=number, problem=problem, tokens=tokens)
    completions = []
    for index, length in enumerate(lengths):
        answer = rng.integers(3, VOCAB, length).astype(np.int32)
        finish = "length" if index == 1 else "stop"
        if finish == "stop":
            answer[-1] = STOP
        sampled = np.ones(length, bool)
        sampled[[place for place in given if place < length - 1]] = False
        logprobs = (-np.log(VOCAB) + 0.4 * rng.normal(size=length)).astype(np.float32)
        logprobs[-1] = -np.log(VOCAB)
        completions.append(
            Completion(
                group=number,
                index=index,
                prompt=tokens,
                tokens=answer,
                logprobs=logprobs,
                sampled=sampled,
                spans=(VersionSpan(start=0, version=0),),
                finish=finish,
            )
        )
    verdicts = tuple(
        Verdict(reward=0.0, parts={}, reason="error")
        if reward is None
        else Verdict(reward=reward, parts={}, reason="pass" if reward > 0.5 else "wrong")
        for reward in rewards
    )
    return Group(prompt=prompt, completions=tuple(completions), verdicts=verdicts)


@pytest.fixture(scope="session")
def groups() -> tuple[Group, ...]:
    """Sequences of 7 or 11 tokens: two lengths, so that references compile twice."""
    rng = np.random.default_rng(1)
    return (
        make_group(rng, 0, 3, (4, 8, 8), (1.0, 0.0, 0.1)),
        make_group(rng, 1, 5, (2, 6, 6), (0.0, 1.0, None)),
        make_group(rng, 2, 2, (5, 9, 5), (0.1, 0.95, 0.0), given=(1, 2)),
    )
