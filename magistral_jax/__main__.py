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
from typing import Any, get_args

from magistral_jax.config import DType, RunConfig
from magistral_jax.settings import dotted_fields, dump, load, parse_overrides
from magistral_jax.types import RunFailed, Stalled, UserError

FAILED, MISTAKE, STALLED, INTERRUPTED = 1, 2, 70, 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; what went wrong is one message on stderr and an exit code."""
    parser = make_parser()
    options, rest = parser.parse_known_args(arguments)
    try:
        refuse_misspelt_options(options, rest)
        json_path = getattr(options, "json", None)
        if json_path is not None and not json_path.absolute().parent.is_dir():
            raise UserError(f"--json {json_path}: there is no folder {json_path.parent}.")
        config = load(config_path(options), overrides_of(options, rest))
        return options.command(config, options)
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


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="magistral-jax",
        description="Magistral's reinforcement learning in JAX.",
        epilog="Every field of the config can be overridden: --trainer.learning_rate 1e-4. "
        "Exit codes: 0 done, 1 failed, 2 your mistake, 70 stalled, 75 told to stop and resumable, "
        "130 interrupted by a second Ctrl-C.",
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, function: object, text: str) -> argparse.ArgumentParser:
        help_text = text.replace("%", "%%")  # argparse formats it, and not the description
        sub = commands.add_parser(name, help=help_text, description=text, allow_abbrev=False)
        sub.set_defaults(command=function)
        asked = {
            "export": "RUN",
            "verify": "FILE.jsonl",
            "bench": "CONFIG.toml|verify|decode|train",
        }
        asked = asked.get(name, "CONFIG.toml")
        sub.add_argument("config", metavar=asked, type=Path)
        return sub

    train = command("train", train_command, "Train a policy; results go to the run folder.")
    train.add_argument("--run-dir", type=Path, help="run folder (default: runs/<name>)")
    train.add_argument("--resume", action="store_true", help="go on from the last checkpoint")
    train.add_argument("--dry-run", action="store_true", help="check and print the config, only")
    sft = command("sft", sft_command, "Learn from conversations before RL: the cold start.")
    sft.add_argument("--run-dir", type=Path, help="run folder (default: runs/<name>)")
    sft.add_argument("--resume", action="store_true", help="go on from the last checkpoint")
    for sub in (
        command("sample", sample_command, "Answer one question, or held-out problems."),
        command("eval", eval_command, "Accuracy on held-out problems, with a 95% interval."),
    ):
        sub.add_argument("--run-dir", type=Path, help="use the last checkpoint of this run")
        sub.add_argument("--json", type=Path, help="also write the table to this file")
    sample = commands.choices["sample"]
    sample.add_argument("--question", help="ask this instead of held-out problems")
    sample.add_argument(
        "--count", type=int, default=1, help="held-out problems, or answers to --question"
    )
    sample.add_argument("--chat", action="store_true", help="answer the lines of stdin, in turn")
    evaluation = commands.choices["eval"]
    evaluation.add_argument("--top-k", type=int, default=0, help="sample from the k likeliest")
    evaluation.add_argument("--top-p", type=float, default=1.0, help="sample from this mass")
    export = command("export", export_command, "A run's newest weights as a Hugging Face folder.")
    export.add_argument("--out", type=Path, required=True, help="the folder to write")
    export.add_argument("--dtype", choices=get_args(DType), help="default: the run's model.dtype")
    export.add_argument("--json", type=Path, help="also write the table to this file")
    verify = command("verify", verify_command, "Judge the rows of a file, or of stdin (-).")
    verify.epilog = "Rows and verdicts: docs/VERIFIERS.md. Fields of the config can be set here: "
    verify.epilog += "--verifier.sandbox uid, --generator.max_tokens 16000 (then length costs)."
    verify.add_argument(
        "--config", dest="rules", metavar="CONFIG.toml", type=Path, help="take its limits and rule"
    )
    verify.add_argument("--workers", type=int, default=None, help="processes (default: all cores)")
    add_bench(command)
    chaos = command("chaos", chaos_command, "Kill a run again and again; what it lost.")
    chaos.add_argument("--kills", type=int, default=50, help="SIGKILLs in all (default: 50)")
    chaos.add_argument("--run-dir", type=Path, help="folder of its runs (default: runs/chaos)")
    chaos.add_argument("--chaos-seed", type=int, default=0, help="draws the moments")
    chaos.add_argument("--json", type=Path, help="also write the table to this file")
    return parser


def add_bench(command: Callable[..., argparse.ArgumentParser]) -> None:
    """`bench CONFIG.toml`, `bench verify`, `decode` and `train`, with the options of all."""
    bench = command(
        "bench", bench_command, "Speeds on this machine: of a config, verdicts, sampler, trainer."
    )
    bench.set_defaults(rules=None)
    bench.add_argument("--workers", type=int, help="verify: processes (default: all cores)")
    bench.add_argument("--json", type=Path, help="also write the table to this file")
    both = bench.add_argument_group("bench decode and bench train")
    both.add_argument("--model", metavar="SOURCE", help="what model.source may be")
    both.add_argument("--dtype", type=words, default=("bf16", "f32"), metavar="bf16,f32")
    both.add_argument("--threads", type=int, default=0, help="processors (default: all)")
    both.add_argument("--repeats", type=int, default=3, help="measured, after one that is not")
    both.add_argument(
        "--peer",
        action="append",
        default=[],
        metavar="transformers|llama.cpp|torch",
        help="beside ours; torch for bench train",
    )
    both.add_argument("--peer-python", default="", help="the interpreter that has the peers")
    train = bench.add_argument_group("bench train")
    train.add_argument("--rows", default="256x16,1024x8", help="tokens in a row x rows, of a step")
    train.add_argument("--microbatch-tokens", type=int, default=2048, help="of which at once")
    train.add_argument("--remat", action="store_true", help="recompute activations")
    decode = bench.add_argument_group("bench decode")
    decode.add_argument("--concurrency", type=counts, default=(1, 8, 32, 64), metavar="1,8,32,64")
    decode.add_argument("--prompt-tokens", type=int, default=96)
    decode.add_argument("--new-tokens", type=int, default=128)
    decode.add_argument("--lengths", choices=["equal", "skewed"], default="equal")


def words(text: str) -> tuple[str, ...]:
    """The words of a list with commas."""
    return tuple(text.split(","))


def counts(text: str) -> tuple[int, ...]:
    """The numbers above 0 of a list with commas."""
    found = tuple(int(word) for word in words(text))
    if min(found) < 1:
        raise ValueError(text)
    return found


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
    is_bench = options.command is bench_command and _is_of_verdicts(options)
    if options.command is verify_command or is_bench:
        named = dict(overrides)
        options.has_length_rule = options.rules is not None or "generator.max_tokens" in named
        if options.workers is not None:
            overrides.append(("verifier.workers", str(options.workers)))
        elif options.rules is None and "verifier.workers" not in named:
            overrides.append(("verifier.workers", str(os.cpu_count() or 1)))
    return overrides


def config_path(options: argparse.Namespace) -> Path | None:
    """The file that holds the config: the argument itself, or the one in the run it names."""
    if options.command is verify_command:
        return options.rules
    if options.command is bench_command and str(options.config) in ("verify", "decode", "train"):
        return None
    if options.command is not export_command:
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
    from magistral_jax.tools.ask import measure

    return measure(
        config,
        run_dir=options.run_dir,
        top_k=options.top_k,
        top_p=options.top_p,
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


if __name__ == "__main__":
    sys.exit(main())
