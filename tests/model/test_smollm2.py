"""A real network: SmolLM2 through the generator, against what transformers computes of it.

The goldens and their making: tests/golden/make_smollm2.py.
"""

from dataclasses import replace
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from magistral_jax.build import PROBING, Run
from magistral_jax.generator.engine import Engine
from magistral_jax.generator.sampling import Sampler
from magistral_jax.generator.scheduler import Scheduler
from magistral_jax.model.load import read_architecture, read_params
from magistral_jax.model.logprobs import score
from magistral_jax.model.sharding import TRAINER_RULES, make_mesh, shardings
from magistral_jax.recipes.agreement import Probe
from magistral_jax.settings import load
from magistral_jax.tokenizer.gguf import GgufTokenizer
from magistral_jax.types import Problem, Prompt
from magistral_jax.weights.push import WeightPush

pytestmark = pytest.mark.full

REPO = Path(__file__).resolve().parents[2]
GOLDEN = REPO / "tests" / "golden" / "smollm2.npz"
PROMPTS, NEW_TOKENS = 20, 32
F32 = jnp.dtype("float32")


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN) as arrays:
        return dict(arrays)


@pytest.fixture(scope="module")
def arch(gguf_path):
    return read_architecture(gguf_path)


@pytest.fixture(scope="module")
def mesh():
    return make_mesh(jax.devices(), fsdp=1, tp=1)


@pytest.fixture(scope="module")
def params(gguf_path, arch, mesh):
    """In the trainer's layout, as a run begins."""
    return read_params(gguf_path, arch, shardings(arch, mesh, TRAINER_RULES))


def test_greedy_completions_are_those_of_transformers(golden, gguf_path, arch, mesh, params):
    stop_ids = GgufTokenizer(gguf_path).stop_ids
    tokens = [golden[f"prompt_{i}"] for i in range(PROMPTS)]
    prompts = [
        Prompt(
            group=i,
            problem=Problem(id=str(i), domain="math", question="", answer=""),
            tokens=tokens[i],
        )
        for i in range(PROMPTS)
    ]
    longest = max(len(prompt) for prompt in tokens) + NEW_TOKENS
    engine = Engine(arch, mesh, slots=PROMPTS, tokens=longest, stop_ids=stop_ids, dtype=F32)
    push = WeightPush(arch, trainer=mesh, generator=mesh, dtype=F32)
    scheduler = Scheduler(
        engine,
        push(params, 0),
        key=jax.random.key(0),
        sampler=Sampler(temperature=0.0),
        group_size=1,
        max_tokens=NEW_TOKENS,
    )
    completions = [group[0] for group in scheduler.generate(prompts)]
    for i, completion in enumerate(completions):
        want = golden[f"greedy_{i}"]
        stops = np.flatnonzero(np.isin(want, stop_ids))
        want = want[: stops[0] + 1] if len(stops) else want
        np.testing.assert_array_equal(completion.tokens, want, err_msg=f"prompt {i}")
        assert completion.finish == ("stop" if len(stops) else "length")
    assert {completion.finish for completion in completions} == {"stop", "length"}


def test_logprobs_of_a_passage_are_those_of_transformers(golden, arch, mesh, params):
    """In a row that also holds padding and, before the passage, another sequence."""
    passage, other = golden["passage_ids"], golden["prompt_0"][:15]
    start, length = len(other) + 1, len(passage) - 1
    row = {name: np.zeros((1, 80), np.int32) for name in ("inputs", "targets", "positions")}
    segments = np.zeros((1, 80), np.int32)
    here = (0, slice(start, start + length))
    row["inputs"][0, : len(other)], segments[0, : len(other)] = other, 1
    row["positions"][0, : len(other)] = np.arange(len(other))
    row["inputs"][here], row["targets"][here] = passage[:-1], passage[1:]
    row["positions"][here], segments[here] = np.arange(length), 2

    def logprobs(params, row, segments):
        scores = score(
            params,
            arch,
            **row,
            segments=segments,
            temperature=1.0,
            dtype=F32,
            remat=False,
            head_tokens=20,
        )
        return scores.logprobs

    with jax.set_mesh(mesh):
        got = np.asarray(jax.jit(logprobs)(params, row, segments))[here]
    np.testing.assert_allclose(got, golden["passage_logprobs"], atol=1e-3)


@pytest.mark.parametrize("dtype, bound", [("float32", 1e-4), ("bfloat16", 2e-3)])
def test_sampler_and_trainer_agree_on_a_real_model(dtype, bound, gguf_path, record_property):
    """Prompts and completions of mixed lengths, in fewer slots than there are prompts."""
    overrides = [("model.source", str(gguf_path)), ("model.dtype", dtype)]
    run = Run(load(REPO / "configs" / "smollm2_135m.toml", overrides), devices=jax.devices()[:1])
    prompts = [
        replace(prompt, tokens=run.render(replace(prompt.problem, source=source)))
        for prompt, source in zip(run.heldout(7), ["generated sums", "a file"] * 4, strict=False)
    ]
    assert len({len(prompt.tokens) for prompt in prompts}) > 1
    probe = Probe(
        partial(
            run.scheduler,
            engine=run.engine(3),
            stream=PROBING,
            sampler=Sampler(temperature=run.config.generator.temperature),
        ),
        prompts,
        row_tokens=run.config.batch.row_tokens,
        rows=run.config.batch.rows,
        head_tokens=run.config.trainer.head_tokens,
    )
    probe.start(run.published(run.initial_params(), 0))
    found = None
    while found is None:
        found = probe.step()
    run.close()
    record_property("largest difference", found["mismatch/logprob_abs_max"])
    assert found["mismatch/logprob_abs_max"] <= bound, found
