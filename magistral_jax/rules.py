"""The rules between knobs. Every broken one is reported at once, in the words a user would type.

A rule's text has three parts: what is wrong with the value in it, the rule, the field to change.
"""

from magistral_jax.config import RunConfig

Rule = tuple[bool, str]


def broken_rules(c: RunConfig) -> list[str]:
    """What this config breaks, in any of its stages; empty when it can run."""
    broken = _broken(c)
    for i in range(len(c.stage)):
        found = [text for text in _broken(c.in_stage(i)) if text not in broken]
        broken += [f"in stage[{i}]: {text}" for text in found]
    return broken + [text for is_broken, text in _stage_rules(c) if is_broken]


def _broken(c: RunConfig) -> list[str]:
    rules = (
        *_positive(c),
        *_generator_rules(c),
        *_batch_rules(c),
        *_model_rules(c),
        *_resume_rules(c),
        *_data_rules(c),
        *_objective_rules(c),
    )
    return [text for broken, text in rules if broken]


def _positive(c: RunConfig) -> list[Rule]:
    at_least = {
        "generator.group_size": (c.generator.group_size, 2),
        "generator.in_flight": (c.generator.in_flight, 1),
        "generator.max_tokens": (c.generator.max_tokens, 1),
        "generator.steps_at_once": (c.generator.steps_at_once, 1),
        "generator.prefill_chunk": (c.generator.prefill_chunk, 2),
        "generator.pages": (c.generator.pages, 0),
        "generator.page_tokens": (c.generator.page_tokens, 1),
        "data.digits": (c.data.digits, 1),
        "data.max_prompt_tokens": (c.data.max_prompt_tokens, 1),
        "verifier.workers": (c.verifier.workers, 1),
        "verifier.code_tests": (c.verifier.code_tests, 1),
        "batch.completions": (c.batch.completions, 1),
        "batch.minibatch": (c.batch.minibatch, 0),
        "batch.max_lag": (c.batch.max_lag, 0),
        "batch.row_tokens": (c.batch.row_tokens, 2),
        "batch.rows": (c.batch.rows, 1),
        "trainer.steps": (c.trainer.steps, 0),
        "trainer.head_tokens": (c.trainer.head_tokens, 1),
        "trainer.long_row": (c.trainer.long_row, 1),
        "trainer.lora_rank": (c.trainer.lora_rank, 0),
        "trainer.warmup_steps": (c.trainer.warmup_steps, 0),
        "verifier.soft_tokens": (c.verifier.soft_tokens, 0),
        "warmup.steps": (c.warmup.steps, 0),
        "warmup.completions": (c.warmup.completions, 1),
        "sft.epochs": (c.sft.epochs, 1),
        "sft.completions": (c.sft.completions, 1),
        "model.shape.layers": (c.model.shape.layers, 1),
        "model.shape.width": (c.model.shape.width, 1),
        "model.shape.heads": (c.model.shape.heads, 1),
        "model.shape.kv_heads": (c.model.shape.kv_heads, 1),
        "model.shape.head_dim": (c.model.shape.head_dim, 2),
        "model.shape.ffn": (c.model.shape.ffn, 1),
        "seed": (c.seed, 0),
        "eval.problems": (c.eval.problems, 0),
        "eval.samples": (c.eval.samples, 1),
        "eval.every": (c.eval.every, 0),
        "eval.slots": (c.eval.slots, 2),
        "checkpoint.every": (c.checkpoint.every, 1),
        "checkpoint.keep": (c.checkpoint.keep, 1),
        "mesh.trainer_fsdp": (c.mesh.trainer_fsdp, 1),
        "mesh.trainer_sp": (c.mesh.trainer_sp, 1),
        "mesh.generator_engines": (c.mesh.generator_engines, 1),
        "mesh.trainer_tp": (c.mesh.trainer_tp, 1),
        "mesh.generator_tp": (c.mesh.generator_tp, 1),
        "metrics.probe_every": (c.metrics.probe_every, 0),
        "deterministic_steps": (c.deterministic_steps, 1),
    }
    above_zero = {
        "generator.temperature": c.generator.temperature,
        "verifier.timeout_s": c.verifier.timeout_s,
        "stall_s": c.stall_s,
        "grace_s": c.grace_s,
        "trainer.max_grad_norm": c.trainer.max_grad_norm,
        "trainer.eps_high": c.trainer.eps_high,
        "trainer.lora_alpha": c.trainer.lora_alpha,
        "trainer.adam_eps": c.trainer.adam_eps,
        "warmup.learning_rate": c.warmup.learning_rate,
        "sft.learning_rate": c.sft.learning_rate,
        "model.shape.rope_theta": c.model.shape.rope_theta,
        "model.shape.norm_eps": c.model.shape.norm_eps,
    }
    return [
        *(
            (v < low, f"{name} is {v}; it must be at least {low}.")
            for name, (v, low) in at_least.items()
        ),
        *((v <= 0, f"{name} is {v}; it must be above 0.") for name, v in above_zero.items()),
        *(
            (not low <= v <= high, f"{name} is {v}; it must lie between {low} and {high}.")
            for name, (v, low, high) in _between(c).items()
        ),
        (
            not c.name or c.name in (".", "..") or "/" in c.name,
            f"name is {c.name!r}; it names the run folder, so it must be a plain word.",
        ),
        (
            c.eval.temperature < 0,
            f"eval.temperature is {c.eval.temperature}; 0 is greedy, below is nothing.",
        ),
        (
            c.trainer.learning_rate < 0,
            f"trainer.learning_rate is {c.trainer.learning_rate}; it must not be negative.",
        ),
    ]


def _between(c: RunConfig) -> dict[str, tuple[float | int, float | int, float | int]]:
    """Shares: the field, its value, its least and its most."""
    return {
        "data.heldout_percent": (c.data.heldout_percent, 0, 99),
        "data.worked_examples": (c.data.worked_examples, 0, 3),
        "warmup.worked_share": (c.warmup.worked_share, 0, 1),
        "sft.general_share": (c.sft.general_share, 0, 0.99),
        "sft.warmup_share": (c.sft.warmup_share, 0, 1),
        "trainer.eps_low": (c.trainer.eps_low, 0, 1),
        "trainer.beta1": (c.trainer.beta1, 0, 1),
        "trainer.beta2": (c.trainer.beta2, 0, 1),
        "trainer.weight_decay": (c.trainer.weight_decay, 0, 1),
        "trainer.entropy_bonus": (c.trainer.entropy_bonus, 0, 1),
        "trainer.kl_coefficient": (c.trainer.kl_coefficient, 0, 1),
        "trainer.kl_average": (c.trainer.kl_average, 0, 1),
        "verifier.length_penalty": (c.verifier.length_penalty, 0, 1),
        "generator.top_p": (c.generator.top_p, 1e-6, 1),
    }


def _generator_rules(c: RunConfig) -> list[Rule]:
    g = c.generator
    longest = c.sequence_pages
    return [
        (
            0 < g.pages < longest,
            f"generator.pages ({g.pages}) of generator.page_tokens ({g.page_tokens}) tokens do not "
            f"hold one sequence of data.max_prompt_tokens + generator.max_tokens "
            f"({c.sequence_tokens}). Set generator.pages to at least {longest}, or 0.",
        ),
        (
            g.kv_in_8_bits and g.pages == 0,
            "generator.kv_in_8_bits is true and generator.pages is 0: only pages hold 8 bits. Set "
            f"generator.pages (at least {longest}).",
        ),
        (
            c.model.attention == "kernels" and (g.pages == 0 or g.kv_in_8_bits),
            f'model.attention is "kernels", generator.pages is {g.pages} and generator.kv_in_8_bits'
            f" is {str(g.kv_in_8_bits).lower()}: the kernels decode in pages of the compute dtype. "
            f"Set generator.pages (at least {longest}) and generator.kv_in_8_bits = false.",
        ),
        (
            c.model.attention == "kernels"
            and (g.page_tokens < 16 or g.page_tokens & (g.page_tokens - 1) != 0),
            f'model.attention is "kernels" and generator.page_tokens is {g.page_tokens}: the '
            "kernels read pages of 16, 32, 64, ... tokens. Set generator.page_tokens.",
        ),
        (
            c.model.attention == "kernels" and c.model.dtype != "bfloat16",
            f'model.attention is "kernels" and model.dtype is "{c.model.dtype}": the kernels are '
            'for 16-bit floats. Set model.dtype = "bfloat16".',
        ),
        (
            g.in_flight % max(c.mesh.generator_engines, 1) != 0,
            f"generator.in_flight ({g.in_flight}) must be a multiple of mesh.generator_engines "
            f"({c.mesh.generator_engines}), which share it. Change either.",
        ),
        (
            c.mesh.generator_engines > 1 and c.checkpoint.kv == "save",
            f'mesh.generator_engines is {c.mesh.generator_engines} and checkpoint.kv is "save": '
            'the caches of several engines are not saved. Set checkpoint.kv = "refill".',
        ),
        (
            g.pages > 0 and c.checkpoint.kv == "save",
            f'generator.pages is {g.pages} and checkpoint.kv is "save": whose pages are whose is '
            'not saved. Set checkpoint.kv = "refill", or generator.pages = 0.',
        ),
        (
            g.in_flight > 2 * c.batch.completions and not g.allow_stale,
            f"generator.in_flight ({g.in_flight}) is over twice batch.completions "
            f"({c.batch.completions}): completions would span too many policies (paper 3.5). "
            "Lower it, or set generator.allow_stale = true.",
        ),
        (
            g.in_flight > (c.batch.max_lag + 1) * c.batch.completions,
            f"generator.in_flight ({g.in_flight}) is over (batch.max_lag + 1) x batch.completions "
            f"({(c.batch.max_lag + 1) * c.batch.completions}): admission would never fill the "
            "slots. "
            "Lower it, or raise batch.max_lag.",
        ),
        (
            g.top_k != 0 or g.top_p != 1.0,
            f"generator.top_k is {g.top_k} and generator.top_p is {g.top_p}; training samples from "
            "the whole distribution, so that sampler and trainer speak of the same one. Use "
            "0 and 1.",
        ),
        (
            c.soft_tokens > g.max_tokens,
            f"verifier.soft_tokens ({c.soft_tokens}) is over generator.max_tokens "
            f"({g.max_tokens}), "
            "where completions are cut. Lower it.",
        ),
        (
            c.verifier.sandbox == "remote" and "://" not in c.verifier.sandbox_url,
            f"verifier.sandbox_url is {c.verifier.sandbox_url!r}; with verifier.sandbox = 'remote' "
            "it must be the address of the service, as in http://host:8080.",
        ),
    ]


def _batch_rules(c: RunConfig) -> list[Rule]:
    size, b = c.generator.group_size, c.batch
    minibatch = b.minibatch or b.completions
    shards = c.mesh.trainer_fsdp
    return [
        (
            size > 0 and b.completions % size != 0,
            f"batch.completions ({b.completions}) must be a multiple of generator.group_size "
            f"({size}): "
            "a batch is made of whole groups.",
        ),
        (
            size > 0 and minibatch % size != 0,
            f"batch.minibatch ({minibatch}) must be a multiple of generator.group_size ({size}).",
        ),
        (
            minibatch > 0 and b.completions % minibatch != 0,
            f"batch.minibatch ({minibatch}) must divide batch.completions ({b.completions}) "
            "(paper 3.5).",
        ),
        (
            c.sequence_tokens > b.row_tokens,
            f"batch.row_tokens ({b.row_tokens}) is below data.max_prompt_tokens + "
            "generator.max_tokens "
            f"({c.sequence_tokens}): a row must hold the longest sequence.",
        ),
        (
            shards > 0 and b.rows % shards != 0,
            f"batch.rows ({b.rows}) must be a multiple of mesh.trainer_fsdp ({shards}), which "
            "splits rows.",
        ),
    ]


def _model_rules(c: RunConfig) -> list[Rule]:
    shape, scratch = c.model.shape, c.model.source == "random"
    rules = [
        (
            shape.heads % max(shape.kv_heads, 1) != 0,
            f"model.shape.kv_heads ({shape.kv_heads}) must divide model.shape.heads "
            f"({shape.heads}).",
        ),
        (
            shape.head_dim % 2 != 0,
            f"model.shape.head_dim is {shape.head_dim}; rotary embeddings need an even size.",
        ),
    ]
    sizes = {"heads": shape.heads, "kv_heads": shape.kv_heads, "ffn": shape.ffn}
    for axis, devices in (("trainer_tp", c.mesh.trainer_tp), ("generator_tp", c.mesh.generator_tp)):
        rules += [
            (
                devices > 0 and size % devices != 0,
                f"mesh.{axis} ({devices}) must divide model.shape.{name} ({size}).",
            )
            for name, size in sizes.items()
        ]
    rules.append(
        (
            shape.width % max(c.mesh.trainer_fsdp, 1) != 0,
            f"mesh.trainer_fsdp ({c.mesh.trainer_fsdp}) must divide model.shape.width "
            f"({shape.width}).",
        )
    )
    needs_scratch = (
        c.warmup.steps > 0 and not scratch,
        f"warmup.steps is {c.warmup.steps} and model.source is {c.model.source!r}: the "
        "warm-up teaches a "
        "network from scratch its first words. Set warmup.steps = 0.",
    )
    needs_sums = (
        c.warmup.steps > 0 and c.data.path != "",
        f"warmup.steps is {c.warmup.steps} and data.path is {c.data.path!r}: traces are "
        "generated for "
        'generated sums only. Set warmup.steps = 0 or data.path = "".',
    )
    return [*(rules if scratch else []), needs_scratch, needs_sums]


def _stage_rules(c: RunConfig) -> list[Rule]:
    starts = [stage.from_step for stage in c.stage if stage.from_step]
    rules: list[Rule] = [
        (
            starts != sorted(set(starts)) or min(starts, default=0) < 0,
            f"stage.from_step is {starts} in turn; stages must be in the order of their steps.",
        )
    ]
    for i, stage in enumerate(c.stage):
        easy, hard = stage.max_pass_rate, stage.min_pass_rate
        rules += [
            (
                i == 0 and (stage.from_step != 0 or stage.when != ""),
                f"stage[0] has from_step {stage.from_step} and when {stage.when!r}; the first stage"
                " holds from the start. Leave both out, or put a stage before it.",
            ),
            (
                i > 0 and stage.from_step == 0 and stage.when == "",
                f"stage[{i}] says neither from_step nor when, so nothing would begin it. Set one.",
            ),
            (
                stage.plateau_steps < 1 or stage.plateau_gain < 0,
                f"stage[{i}] has plateau_steps {stage.plateau_steps} and plateau_gain "
                f"{stage.plateau_gain}; they must be at least 1 and 0.",
            ),
            (
                not 0 <= hard <= easy <= 1,
                f"stage[{i}] has min_pass_rate {hard} and max_pass_rate {easy}; both must lie "
                "between 0 and 1, in this order.",
            ),
        ]
    return rules


def _objective_rules(c: RunConfig) -> list[Rule]:
    t = c.trainer
    return [
        (
            t.optimizer == "adafactor" and t.moment_dtype != "float32",
            f'trainer.optimizer is "adafactor" and trainer.moment_dtype is "{t.moment_dtype}": it '
            'has no first moment. Set trainer.moment_dtype = "float32".',
        ),
        (
            t.objective == "tis" and c.batch.minibatch not in (0, c.batch.completions),
            f'trainer.objective is "tis" and batch.minibatch is {c.batch.minibatch}: it weighs by '
            "the policy before the batch, and after one step that is another. Set it to 0.",
        ),
        (
            t.objective == "gspo" and c.batch.shares != "sequence",
            f'trainer.objective is "gspo" and batch.shares is "{c.batch.shares}": its ratio is one '
            'for a completion, so completions count alike. Set batch.shares = "sequence".',
        ),
    ]


def _data_rules(c: RunConfig) -> list[Rule]:
    return [
        (
            bool(c.mixture) and c.data.path != "",
            f"data.path is {c.data.path!r} and there are {len(c.mixture)} [[mixture]] tables; a "
            "mixture names all its problems. Leave data.path empty.",
        ),
        *(
            (
                part.path == "" or part.weight <= 0,
                f"mixture[{i}] has path {part.path!r} and weight {part.weight}; it needs a path, "
                "and a weight above 0.",
            )
            for i, part in enumerate(c.mixture)
        ),
    ]


def _resume_rules(c: RunConfig) -> list[Rule]:
    return [
        (
            c.deterministic and c.checkpoint.kv != "save",
            f"deterministic is true and checkpoint.kv is {c.checkpoint.kv!r}: a cache computed "
            'anew differs in its last bits. Set checkpoint.kv = "save".',
        ),
    ]
