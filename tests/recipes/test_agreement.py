"""Sampler and trainer speak of the same distribution: the one test that keeps RL honest.

The trainer's side is the real one: float32 master weights stacked by layer, packed rows, chunked
log-probs, its own mesh. The generator's side is what `WeightPush` sent, decoded with a cache.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from magistral_jax.batch.assemble import assemble_minibatch
from magistral_jax.generator.engine import Engine
from magistral_jax.generator.sampling import Sampler
from magistral_jax.generator.scheduler import Scheduler
from magistral_jax.model.attention import Kernels, softmax_parts
from magistral_jax.model.params import Architecture, abstract, map_specs
from magistral_jax.model.sharding import TRAINER_RULES, make_mesh, place, shardings
from magistral_jax.recipes.agreement import Probe, packed
from magistral_jax.trainer.trainer import Trainer
from magistral_jax.types import Group, Problem, Prompt, Verdict
from magistral_jax.weights.push import WeightPush

BOUND = {"float32": 1e-4, "bfloat16": 2e-3}
"""What is promised, on CPU."""
REGRESSION = 1e-4
"""What is kept in both: far below the first bf16 rounding that differs (about 1e-3)."""

LENGTHS = (3, 9, 16, 15, 12, 5)
# Long enough that a product over keys has many terms: short ones round alike in any order.
GROUP, MAX_TOKENS, ROW_TOKENS, ROWS = 4, 100, 256, 4
LONGEST = max(LENGTHS) + MAX_TOKENS
STOP_IDS = (7, 91, 150, 233)


def make_arch(repeats, head_dim, *, width=84, tied=True):
    return Architecture(
        layers=2,
        width=width,
        heads=2 * repeats,
        kv_heads=2,
        head_dim=head_dim,
        ffn=132,
        vocab=301 if tied else 300,
        rope_theta=10_000.0,
        norm_eps=1e-5,
        tie_embeddings=tied,
    )


def master_weights(arch, mesh, seed=0):
    """Float32 and stacked, with norm gains that are not ones, as after training."""
    rng = np.random.default_rng(seed)

    def draw(spec):
        noise = rng.normal(size=spec.shape).astype(np.float32)
        return noise * np.float32(1.5 * spec.scale) if spec.scale else 1 + np.float32(0.2) * noise

    return place(map_specs(draw, abstract(arch)), shardings(arch, mesh, TRAINER_RULES))


def make_prompts(vocab, lengths=LENGTHS, shared=0):
    """Random prompts whose first `shared` tokens are the same."""
    rng = np.random.default_rng(3)
    problem = Problem(id="a", domain="math", question="", answer="")
    drawn = [rng.integers(1, vocab, length, np.int32) for length in lengths]
    for tokens in drawn:
        tokens[:shared] = drawn[0][:shared]
    return [
        Prompt(group=group, problem=problem, tokens=tokens) for group, tokens in enumerate(drawn)
    ]


def make_engine(arch, mesh, dtype, *, slots=5, tokens=LONGEST, **options):
    return Engine(
        arch,
        mesh,
        slots=slots,
        tokens=tokens,
        stop_ids=STOP_IDS,
        dtype=jnp.dtype(dtype),
        **options,
    )


def make_scheduler(snapshot, *, arch, mesh, dtype, slots=5, temperature=1.0, engine=None):
    engine = engine or make_engine(arch, mesh, dtype, slots=slots)
    return Scheduler(
        engine,
        snapshot,
        key=jax.random.key(1),
        sampler=Sampler(temperature=temperature),
        group_size=GROUP,
        max_tokens=MAX_TOKENS,
    )


def gaps(
    arch,
    dtype,
    temperature,
    *,
    trainer_mesh,
    generator_mesh,
    prompts=None,
    engine=None,
    kernels=None,
):
    """|sampler - trainer| of every sampled token, over mixed lengths, slots and refills."""
    dtype = jnp.dtype(dtype)
    trainer = Trainer(
        arch,
        trainer_mesh,
        master_weights(arch, trainer_mesh),
        optax.sgd(0.1),
        temperature=temperature,
        dtype=dtype,
        head_tokens=128,
        kernels=kernels,
    )
    push = WeightPush(arch, trainer=trainer_mesh, generator=generator_mesh, dtype=dtype)
    scheduler = make_scheduler(
        push(trainer.params, 0),
        arch=arch,
        mesh=generator_mesh,
        dtype=dtype,
        temperature=temperature,
        engine=engine,
    )
    prompts = prompts or make_prompts(arch.vocab)
    answers = scheduler.generate(prompts)
    assert {c.finish for group in answers for c in group} == {"stop", "length"}
    right = Verdict(reward=1.0, parts={}, reason="pass")
    minibatch = assemble_minibatch(
        [
            Group(prompt=prompt, completions=completions, verdicts=(right,) * GROUP)
            for prompt, completions in zip(prompts, answers, strict=True)
        ],
        row_tokens=ROW_TOKENS,
        rows=ROWS,
        advantage_rule="none",
        share_rule="batch",
    )
    found = []
    for microbatch in minibatch.microbatches:
        on = microbatch.shares > 0
        scored = np.asarray(trainer.score(microbatch).logprobs)
        found.append(np.abs(scored - microbatch.behavior_logprobs)[on])
    found = np.concatenate(found)
    assert len(found) == sum(len(c.tokens) for group in answers for c in group)
    return found


@pytest.mark.parametrize(
    "repeats, head_dim, temperature, tied, dtype",
    [
        (1, 16, 1.0, True, "float32"),
        (3, 32, 0.7, False, "float32"),
        (1, 32, 1.0, True, "bfloat16"),
        (2, 32, 0.7, False, "bfloat16"),
        (3, 16, 0.7, True, "bfloat16"),
    ],
)
def test_sampler_and_trainer_agree(repeats, head_dim, temperature, tied, dtype, record_property):
    mesh = make_mesh(jax.devices(), fsdp=1, tp=1)
    found = gaps(
        make_arch(repeats, head_dim, tied=tied),
        dtype,
        temperature,
        trainer_mesh=mesh,
        generator_mesh=mesh,
    )
    record_property("logprob_abs_max", float(found.max()))
    print(f"{dtype} R={repeats} H={head_dim}: max {found.max():.2g} of {len(found)} tokens")
    assert found.max() <= BOUND[dtype]
    assert found.max() <= REGRESSION


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_they_agree_on_prompts_in_chunks_and_behind_a_shared_head(dtype, record_property):
    mesh, arch = make_mesh(jax.devices(), fsdp=1, tp=1), make_arch(2, 32)
    engine = make_engine(arch, mesh, dtype, tokens=240, prefill_chunk=48, prompt_tokens=140)
    pieces = []
    extend = engine.extend

    def watched(params, begun):
        pieces.append(begun.piece)
        extend(params, begun)

    engine.extend = watched
    prompts = make_prompts(arch.vocab, lengths=(110, 107, 131, 103, 139, 118), shared=100)
    found = gaps(
        arch,
        dtype,
        1.0,
        trainer_mesh=mesh,
        generator_mesh=mesh,
        prompts=prompts,
        engine=engine,
    )
    assert {engine.prefill_chunk_size, engine.tail_size} == set(pieces)
    record_property("logprob_abs_max", float(found.max()))
    assert found.max() <= BOUND[dtype]
    assert found.max() <= REGRESSION


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_they_agree_on_sequences_in_pages_that_make_room_and_resume(dtype, record_property):
    mesh, arch = make_mesh(jax.devices(), fsdp=1, tp=1), make_arch(2, 32)
    engine = make_engine(arch, mesh, dtype, pages=20, page_tokens=8)
    prefills = []
    prefill = engine.prefill

    def watched(**arguments):
        prefills.append(arguments["true_length"])
        return prefill(**arguments)

    engine.prefill = watched
    found = gaps(arch, dtype, 1.0, trainer_mesh=mesh, generator_mesh=mesh, engine=engine)
    assert len(prefills) > len(LENGTHS) + 2, "too few made room"
    record_property("logprob_abs_max", float(found.max()))
    assert found.max() <= BOUND[dtype]
    assert found.max() <= REGRESSION


@pytest.mark.parametrize("platform", ["gpu", "tpu"])
def test_they_agree_through_kernels(platform, record_property):
    """In interpret mode: the same kernel packs a trainer's rows and a prompt, another decodes."""
    mesh, arch = make_mesh(jax.devices(), fsdp=1, tp=1), make_arch(2, 32)
    kernels = Kernels(platform, interpret=True)
    engine = make_engine(arch, mesh, "float32", pages=24, page_tokens=16, kernels=kernels)
    meshes = {"trainer_mesh": mesh, "generator_mesh": mesh}
    found = gaps(arch, "float32", 1.0, **meshes, engine=engine, kernels=kernels)
    record_property("logprob_abs_max", float(found.max()))
    assert found.max() <= BOUND["float32"]


@pytest.mark.parametrize(
    "dtype, trainer, generator",
    [
        ("float32", {"fsdp": 2, "tp": 1}, {"fsdp": 1, "tp": 2}),
        ("bfloat16", {"fsdp": 2, "tp": 1}, {"fsdp": 1, "tp": 1}),
    ],
)
def test_they_agree_across_meshes(dtype, trainer, generator, record_property):
    """Trainer split over rows and width, generator over heads, on devices of their own.

    In bf16 both must split their contractions alike: two half sums round as no whole sum does.
    """
    devices = jax.devices()
    found = gaps(
        make_arch(2, 16, tied=False),
        dtype,
        0.7,
        trainer_mesh=make_mesh(devices[:2], **trainer),
        generator_mesh=make_mesh(devices[2:], **generator),
    )
    record_property("logprob_abs_max", float(found.max()))
    print(f"{dtype} {trainer} to {generator}: max {found.max():.2g} of {len(found)} tokens")
    assert found.max() <= BOUND[dtype]
    assert found.max() <= REGRESSION


def test_softmax_weights_do_not_depend_on_the_size_of_the_array():
    """The trainer's rows are many, the sampler's slots few: their bits must still be the same."""
    scores = 3 * np.random.default_rng(0).normal(size=(3000, 64)).astype(np.float32)
    weights_of = jax.jit(lambda x: softmax_parts(x, jnp.dtype("float32"))[0])
    many, few = np.asarray(weights_of(scores)), np.asarray(weights_of(scores[:30]))
    assert (many[:30] == few).all()


class Bent(Scheduler):
    """Reports every log-prob a hundredth too high."""

    def step(self):
        done = super().step()
        for completion in done:
            completion.logprobs[:] += 0.01
        return done


@pytest.fixture(scope="module")
def running():
    """A policy in bf16, two versions of it, one engine for the run and one for the probe."""
    arch, mesh = make_arch(2, 16), make_mesh(jax.devices(), fsdp=1, tp=1)
    push = WeightPush(arch, trainer=mesh, generator=mesh, dtype=jnp.dtype("bfloat16"))
    snapshots = [push(master_weights(arch, mesh, seed), seed) for seed in range(2)]
    engine = make_scheduler(snapshots[0], arch=arch, mesh=mesh, dtype="bfloat16").engine
    make = partial(make_scheduler, arch=arch, mesh=mesh, dtype="bfloat16", engine=engine)
    return make, snapshots, make_prompts(arch.vocab)


def make_probe(make, prompts):
    return Probe(make, prompts, row_tokens=ROW_TOKENS, rows=ROWS, head_tokens=128)


def measured(probe, beside=lambda step: None):
    for step in range(2 * MAX_TOKENS):
        beside(step)
        found = probe.step()
        if found is not None:
            return found
    raise AssertionError("the probe never ended")


def test_a_probe_measures_both_numbers_and_can_start_again(running):
    make, snapshots, prompts = running
    probe = make_probe(make, prompts)
    for version in (0, 1):
        assert not probe.is_running
        probe.start(snapshots[version])
        assert probe.is_running
        found = measured(probe)
        assert set(found) == {"mismatch/logprob_abs_max", "mismatch/logprob_abs_mean"}
        assert 0 <= found["mismatch/logprob_abs_mean"] <= found["mismatch/logprob_abs_max"]
        assert found["mismatch/logprob_abs_max"] <= REGRESSION


def test_a_probes_version_is_pinned(running):
    """The run takes new weights meanwhile, on the same engine; the probe does not."""
    make, snapshots, prompts = running
    probe, main = make_probe(make, prompts), make(snapshots[0])
    probe.start(snapshots[0])
    main.submit(prompts[0], count=5)

    def beside(step):
        if step == 3:
            main.swap(snapshots[1])
        if main.has_work:
            main.step()

    found = measured(probe, beside)
    assert main.version == 1
    assert found["mismatch/logprob_abs_max"] <= REGRESSION
    assert [c.oldest_version for c in probe._finished] == [0] * len(prompts)
    assert [c.newest_version for c in probe._finished] == [0] * len(prompts)


def test_a_probe_sees_a_difference(running):
    make, snapshots, prompts = running

    def bent(snapshot):
        scheduler = make(snapshot)
        scheduler.__class__ = Bent
        return scheduler

    probe = make_probe(bent, prompts)
    probe.start(snapshots[0])
    found = measured(probe)
    np.testing.assert_allclose(list(found.values()), 0.01, rtol=1e-2)


def test_packed_rows_hold_every_token_once(running):
    make, snapshots, prompts = running
    completions = [c for group in make(snapshots[0]).generate(prompts, count=1) for c in group]
    microbatches = packed(prompts, completions, ROW_TOKENS, ROWS)
    counted = sum(int((microbatch.shares > 0).sum()) for microbatch in microbatches)
    assert counted == sum(len(c.tokens) for c in completions)
    assert all(m.inputs.size == ROWS * ROW_TOKENS for m in microbatches)
