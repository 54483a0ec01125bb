"""The command line: `magistral-jax train CONFIG.toml`, `sft`, `sample`, `eval`, `export`, `verify`,
`bench`, `chaos`.

Exit codes: 0 done, 1 failed, 2 user's mistake, 70 stalled, 75 told to stop and resumable, 130
interrupted by a second Ctrl-C.
"""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from magistral_jax.config import RunConfig
from magistral_jax.parser import make_parser
from magistral_jax.settings import dotted_fields, dump, load, parse_overrides
from magistral_jax.types import RunFailed, Stalled, UserError

FAILED, MISTAKE, STALLED, INTERRUPTED = 1, 2, 70, 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; what went wrong is one message on stderr and an exit code."""
    parser = make_parser()
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if arguments[:1] == ["traces"]:
        if arguments[1:2] not in (["harvest"], ["generate"]):
            return _say("magistral-jax: traces harvest RUN, or traces generate PROMPTS.", MISTAKE)
        arguments = arguments[1:]
    options, rest = parser.parse_known_args(arguments)
    try:
        refuse_misspelt_options(options, rest)
        json_path = getattr(options, "json", None)
        if json_path is not None and not json_path.absolute().parent.is_dir():
            raise UserError(f"--json {json_path}: there is no folder {json_path.parent}.")
        config = load(config_path(options), overrides_of(options, rest))
        return COMMANDS[options.command](config, options)
    except UserError as mistake:
        return _say(f"magistral-jax: {mistake}", MISTAKE)
    except Stalled as stall:
        return _say(f"magistral-jax: stalled: {stall}", STALLED)
    except KeyboardInterrupt:
        return _say("magistral-jax: interrupted", INTERRUPTED)
    except Exception as failure:
        from magistral_jax.checkpoint import CannotSave

        if isinstance(failure, CannotSave | RunFailed | OSError):
            return _say(f"magistral-jax: {failure}", FAILED)
        raise


def refuse_misspelt_options(options: argparse.Namespace, rest: Sequence[str]) -> None:
    """Name the option that was meant; what looks like none is left to be an override."""
    names = vars(options).keys() - {"command", "config"}
    known = [f"--{name.replace('_', '-')}" for name in names if name != "rules"]
    known += ["--config"] if "rules" in names else []
    for argument in rest:
        name = argument.partition("=")[0]
        is_field = name.removeprefix("--").replace("-", "_") in dotted_fields()
        close = get_close_matches(name, known, n=1, cutoff=0.75)
        if name.startswith("--") and not is_field and close:
            raise UserError(f"there is no option {name}; did you mean {close[0]}?")


def overrides_of(options: argparse.Namespace, rest: Sequence[str]) -> list[tuple[str, str]]:
    """What the command line sets; `verify` uses all cores unless told otherwise."""
    overrides = parse_overrides(rest)
    if options.command == "generate":
        overrides.append(("data.path", str(options.config)))
        overrides += [("model.source", options.model)] if options.model else []
    is_bench = options.command == "bench" and _is_of_verdicts(options)
    if options.command == "verify" or is_bench:
        named = dict(overrides)
        options.has_length_rule = options.rules is not None or "generator.max_tokens" in named
        if options.workers is not None:
            overrides.append(("verifier.workers", str(options.workers)))
        elif options.rules is None and "verifier.workers" not in named:
            overrides.append(("verifier.workers", str(os.cpu_count() or 1)))
    return overrides


def config_path(options: argparse.Namespace) -> Path | None:
    """The file that holds the config: the argument itself, or the one in the run it names."""
    if options.command in ("verify", "generate"):
        return options.rules
    if options.command == "bench" and str(options.config) in ("verify", "decode", "train"):
        return None
    if options.command not in ("export", "harvest"):
        return options.config
    path = options.config / "config.toml"
    if not path.is_file():
        raise UserError(f"{options.config} holds no run: there is no {path}. Name a run folder.")
    return path


def train_command(config: RunConfig, options: argparse.Namespace) -> int:
    if options.dry_run:
        sys.stdout.write(dump(config))
        return 0
    from magistral_jax.run import train

    folder = options.run_dir or Path("runs") / config.name
    return train(config, folder, resume=options.resume)


def sft_command(config: RunConfig, options: argparse.Namespace) -> int:
    from magistral_jax.tools.sft import sft

    folder = options.run_dir or Path("runs") / config.name
    return sft(config, folder, resume=options.resume)


def harvest_command(config: RunConfig, options: argparse.Namespace) -> int:
    from magistral_jax.tools.traces import harvest_run

    return harvest_run(
        config,
        options.config,
        options.out,
        skip=options.skip,
        cap=options.cap,
        low_rate=options.low_rate,
        upsample=options.upsample,
        json_path=options.json,
    )


def generate_command(config: RunConfig, options: argparse.Namespace) -> int:
    from magistral_jax.tools.traces import Wanted, generate

    wanted = Wanted(
        out=options.out,
        count=options.n,
        keep_correct=options.keep_correct,
        rates=options.rates,
        who=_who(options),
    )
    return generate(config, wanted, json_path=options.json)


def _who(options: argparse.Namespace) -> Any:
    from magistral_jax.tools.answering import Who

    return Who(
        run_dir=options.run_dir,
        endpoint=options.endpoint,
        endpoint_model=options.endpoint_model,
        at_once=options.at_once,
    )


def sample_command(config: RunConfig, options: argparse.Namespace) -> int:
    if options.chat:
        if options.question is not None or options.json is not None or options.count != 1:
            raise UserError("--chat asks for each question; leave --question, --count, --json out.")
        from magistral_jax.tools.chat import chat

        return chat(config, run_dir=options.run_dir)
    from magistral_jax.tools.ask import sample

    return sample(
        config,
        run_dir=options.run_dir,
        question=options.question,
        count=options.count,
        json_path=options.json,
    )


def eval_command(config: RunConfig, options: argparse.Namespace) -> int:
    if options.on:
        from magistral_jax.tools.measure import Wanted, measure_on

        wanted = Wanted(
            on=tuple(options.on),
            out=options.out or Path("runs") / f"{config.name}-eval",
            who=_who(options),
            limit=options.limit,
            samples=options.samples,
            top_p=options.top_p or 0.0,
            peer_python=options.peer_python,
        )
        return measure_on(config, wanted, json_path=options.json)
    from magistral_jax.tools.ask import measure

    return measure(
        config,
        run_dir=options.run_dir,
        top_k=options.top_k,
        top_p=1.0 if options.top_p is None else options.top_p,
        json_path=options.json,
    )


def export_command(config: RunConfig, options: argparse.Namespace) -> int:
    from magistral_jax.tools.export import export

    return export(
        config,
        run_dir=options.config,
        out=options.out,
        dtype=options.dtype or config.model.dtype,
        json_path=options.json,
    )


def verify_command(config: RunConfig, options: argparse.Namespace) -> int:
    from magistral_jax.tools.verify import verify

    return verify(config, options.config, has_length_rule=options.has_length_rule)


def bench_command(config: RunConfig, options: argparse.Namespace) -> int:
    if _is_of_verdicts(options):
        from magistral_jax.tools.bench_verify import bench_verify

        return bench_verify(config, json_path=options.json)
    if str(options.config) == "decode":
        from magistral_jax.tools.bench_decode import Asked, bench_decode

        asked = Asked(
            concurrency=options.concurrency,
            prompt_tokens=options.prompt_tokens,
            new_tokens=options.new_tokens,
            lengths=options.lengths,
            **_asked_of_both(config, options),
        )
        return bench_decode(config, asked, json_path=options.json)
    if str(options.config) == "train":
        return _bench_train(config, options)
    from magistral_jax.tools.bench import bench

    return bench(config, json_path=options.json)


def _bench_train(config: RunConfig, options: argparse.Namespace) -> int:
    from magistral_jax.tools.bench_train import Asked, bench_train, shapes

    asked = Asked(
        rows=shapes(options.rows),
        microbatch_tokens=options.microbatch_tokens,
        remat=options.remat,
        **_asked_of_both(config, options),
    )
    return bench_train(config, asked, json_path=options.json)


def _asked_of_both(config: RunConfig, options: argparse.Namespace) -> dict[str, Any]:
    """What `bench decode` and `bench train` alike are asked."""
    return {
        "model": options.model or config.model.source,
        "dtypes": options.dtype,
        "threads": options.threads or len(os.sched_getaffinity(0)),
        "peers": tuple(options.peer),
        "peer_python": options.peer_python,
        "repeats": options.repeats,
    }


def chaos_command(config: RunConfig, options: argparse.Namespace) -> int:
    from magistral_jax.tools.chaos import chaos

    return chaos(
        config,
        run_dir=options.run_dir or Path("runs") / "chaos",
        kills=options.kills,
        seed=options.chaos_seed,
        json_path=options.json,
    )


def _is_of_verdicts(options: argparse.Namespace) -> bool:
    return str(options.config) == "verify"


def _say(message: str, code: int) -> int:
    print(message, file=sys.stderr)
    return code


COMMANDS: dict[str, Callable[[RunConfig, argparse.Namespace], int]] = {
    "train": train_command,
    "sft": sft_command,
    "harvest": harvest_command,
    "generate": generate_command,
    "sample": sample_command,
    "eval": eval_command,
    "export": export_command,
    "verify": verify_command,
    "bench": bench_command,
    "chaos": chaos_command,
}


if __name__ == "__main__":
    sys.exit(main())
