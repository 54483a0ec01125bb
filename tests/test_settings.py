"""A config file says all its faults at once, and what was read can be written and read again."""

import re
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from magistral_jax.config import RunConfig
from magistral_jax.rules import broken_rules
from magistral_jax.settings import dotted_fields, dump, field_docs, load, parse_overrides
from magistral_jax.types import UserError

REPO = Path(__file__).resolve().parents[1]


def write(tmp_path, text, name="demo.toml"):
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return path


def faults_of(path, overrides=()):
    with pytest.raises(UserError) as caught:
        load(path, overrides)
    opening, *faults = str(caught.value).split("\n  - ")
    assert opening == f"config {path.stem!r} cannot run:"
    return faults


def value_at(config, path):
    for name in path.split("."):
        config = getattr(config, name)
    return config


def with_value(config, path, value):
    name, _, rest = path.partition(".")
    inner = with_value(getattr(config, name), rest, value) if rest else value
    return replace(config, **{name: inner})


def built(config, values, where=""):
    """The config with every field set."""
    inner = {field.name: getattr(config, field.name) for field in fields(config)}
    for name, old in inner.items():
        path = f"{where}{name}"
        inner[name] = built(old, values, f"{path}.") if is_dataclass(old) else values[path]
    return replace(config, **inner)


def test_a_file_changes_the_fields_it_names_and_no_other(tmp_path):
    path = write(
        tmp_path,
        'name = "demo"\nstall_s = 30\n[trainer]\nlearning_rate = 3e-7\nremat = false\n'
        '[model.shape]\nlayers = 2\n[data]\nsystem_prompt = "magistral"\n',
    )
    config = load(path)
    changed = {p for p in dotted_fields() if value_at(config, p) != value_at(RunConfig(), p)}
    assert changed == {
        "name",
        "stall_s",
        "trainer.learning_rate",
        "trainer.remat",
        "model.shape.layers",
        "data.system_prompt",
    }
    assert config.trainer.learning_rate == 3e-7
    assert type(config.stall_s) is float


def test_overrides_win_over_the_file_and_the_last_over_the_first(tmp_path):
    path = write(tmp_path, "seed = 1\n[trainer]\nsteps = 5\n")
    args = ["--seed=2", "--trainer.steps", "6", "--trainer.steps", "7", "--data.path="]
    config = load(path, parse_overrides(args))
    assert (config.seed, config.trainer.steps, config.data.path) == (2, 7, "")


@pytest.mark.parametrize(
    "text, value",
    [
        ("model.source=a b=c", "a b=c"),
        ("trainer.remat=false", False),
        ("trainer.learning_rate=3e-7", 3e-7),
        ("trainer.learning_rate=1", 1.0),
        ("seed=3", 3),
        ("batch.advantage=group", "group"),
    ],
)
def test_an_override_becomes_the_type_of_its_field(tmp_path, text, value):
    path = write(tmp_path, "")
    [(key, _)] = overrides = parse_overrides([f"--{text}"])
    got = value_at(load(path, overrides), key)
    assert (got, type(got)) == (value, type(value))


def test_overrides_are_read_with_a_space_or_an_equals_sign_and_with_dashes():
    args = ["--trainer.learning-rate", "3e-7", "--stall-s=9", "--model.source", "-x", "--name="]
    assert parse_overrides(args) == [
        ("trainer.learning_rate", "3e-7"),
        ("stall_s", "9"),
        ("model.source", "-x"),
        ("name", ""),
    ]


def test_the_runs_own_fields_may_stand_in_a_table_of_their_own(tmp_path):
    text = '[run]\nname = "mine"\ndeterministic = true\n[checkpoint]\nkv = "save"\n'
    config = load(write(tmp_path, text))
    assert (config.name, config.deterministic, config.checkpoint.kv) == ("mine", True, "save")
    [told] = faults_of(write(tmp_path, "[run]\ndeterministc = true\n"))
    assert told.startswith("there is no field deterministc; did you mean deterministic")
    [told] = faults_of(write(tmp_path, "run = 3\n"))
    assert told.startswith("there is no field run;")


@pytest.mark.parametrize("option", ["--run.deterministic true", "--deterministic=true"])
def test_the_command_line_may_name_that_table_too(tmp_path, option):
    overrides = parse_overrides(["--run.grace-s=5", *option.split(), "--checkpoint.kv=save"])
    assert [key for key, _ in overrides] == ["grace_s", "deterministic", "checkpoint.kv"]
    config = load(write(tmp_path, "[run]\ndeterministic = false\n"), overrides)
    assert config.deterministic and config.grace_s == 5.0


def test_a_deterministic_run_keeps_its_cache(tmp_path):
    [told] = faults_of(write(tmp_path, "deterministic = true\n"))
    assert told.startswith("deterministic is true and checkpoint.kv is 'refill':")
    assert told.endswith('Set checkpoint.kv = "save".')
    assert load(write(tmp_path, '[checkpoint]\nkv = "save"\n')).deterministic is False


@pytest.mark.parametrize(
    "text, told",
    [
        ("grace_s = 0", "grace_s is 0.0; it must be above 0."),
        ("stall_s = -1", "stall_s is -1.0; it must be above 0."),
        ("deterministic_steps = 0", "deterministic_steps is 0; it must be at least 1."),
        (
            'checkpoint.kv = "keep"',
            'checkpoint.kv is \'keep\'; it must be one of "save", "refill".',
        ),
    ],
)
def test_numbers_a_run_could_not_live_by_are_refused(tmp_path, text, told):
    assert faults_of(write(tmp_path, text)) == [told]


def test_every_bad_argument_is_told():
    with pytest.raises(UserError) as caught:
        parse_overrides(["stray", "--trainer.remat", "--seed", "1", "-x", "--", "--trainer.steps"])
    message = str(caught.value)
    assert message.startswith("the command line cannot be read:\n  - 'stray' is not an override")
    assert "--trainer.remat has no value" in message
    assert "'-x'" in message
    assert "'--' is not" in message
    assert message.endswith("--trainer.steps has no value; write --trainer.steps VALUE.")
    assert message.count("\n") == 5


def test_all_faults_of_file_and_overrides_come_in_one_error(tmp_path):
    path = write(
        tmp_path,
        "seed = true\nmode = 'fast'\nstall_s = nan\ntrainer = 3\n[batch]\nrows = 8.0\n"
        "[data.path]\nx = 1\n[generator]\ngroupsize = 4\n[modle]\nsource = 'x'\n",
    )
    overrides = [("trainer.learning_rte", "1"), ("trainer.steps", "many"), ("trainer", "3")]
    told = faults_of(path, overrides)
    assert told[:-1] == [
        "seed is True; it must be a whole number.",
        'mode is \'fast\'; it must be one of "async", "sync".',
        "stall_s is nan; it must be a finite number.",
        "trainer is 3; it is a table: write its fields under [trainer].",
        "batch.rows is 8.0; it must be a whole number.",
        "data.path is a table; it must be text.",
        "there is no field generator.groupsize; did you mean generator.group_size?",
        "there is no table [modle]; did you mean [model]?",
        "there is no field trainer.learning_rte; did you mean trainer.learning_rate?",
        "--trainer.steps is 'many'; it must be a whole number.",
    ]
    assert told[-1].startswith("--trainer is a table, not a field; its fields are trainer.steps,")


@pytest.mark.parametrize(
    "key, hint",
    [
        ("steps", "did you mean trainer.steps or warmup.steps?"),
        ("trainer.max_lag", "did you mean batch.max_lag?"),
        ("trainr.learning_rate", "did you mean trainer.learning_rate?"),
        ("batch.row", "did you mean batch.rows?"),
        ("eval.sample_count", "did you mean eval.samples?"),
        ("checkpoint.zzz", "beside it are every, keep, kv."),
        ("zzz.qqq", "tables: model, model.shape, mesh,"),
    ],
)
def test_a_misspelt_field_is_answered_with_what_was_likely_meant(tmp_path, key, hint):
    [told] = faults_of(write(tmp_path, ""), [(key, "1")])
    assert told.startswith(f"there is no field {key}; {hint}")


def test_a_quoted_key_with_a_dot_is_not_a_path(tmp_path):
    [told] = faults_of(write(tmp_path, '"trainer.steps" = 3\n'))
    assert told.startswith('there is no field "trainer.steps";')


@pytest.mark.parametrize(
    "text, allowed",
    [
        ("seed=9223372036854775808", "it must fit 64 bits"),
        ("stall_s=inf", "it must be a finite number"),
        ("stall_s=soon", "it must be a number"),
        ("trainer.remat=1", "it must be true or false"),
        ("model.dtype=float16", 'it must be one of "float32", "bfloat16"'),
    ],
)
def test_a_value_out_of_type_is_refused_with_what_is_allowed(tmp_path, text, allowed):
    [told] = faults_of(write(tmp_path, ""), parse_overrides([f"--{text}"]))
    assert told.startswith(f"--{text.partition('=')[0]} is ")
    assert told.endswith(f"; {allowed}.")


def test_bad_toml_names_the_file_and_the_line(tmp_path):
    path = write(tmp_path, "seed = 1\nname =\n")
    [told] = faults_of(path)
    assert str(path) in told
    assert "line 2" in told


def test_bytes_that_are_no_text_are_a_fault_of_the_file(tmp_path):
    path = tmp_path / "demo.toml"
    path.write_bytes(b'name = "\xff"\n')
    assert "is not TOML" in faults_of(path)[0]


def test_a_missing_file_is_answered_with_one_like_it(tmp_path):
    write(tmp_path, "", "countdown.toml")
    assert faults_of(tmp_path / "countdwn.toml") == [
        f"{tmp_path / 'countdwn.toml'} does not exist; did you mean {tmp_path / 'countdown.toml'}?"
    ]
    assert faults_of(tmp_path / "zzz.toml")[0].endswith("does not exist.")
    assert "directory" in faults_of(tmp_path)[0]


def test_broken_rules_come_in_the_same_form(tmp_path):
    path = write(tmp_path, "[generator]\ngroup_size = 1\n[eval]\nsamples = 0\n")
    told = faults_of(path)
    assert told == [
        "generator.group_size is 1; it must be at least 2.",
        "eval.samples is 0; it must be at least 1.",
    ]


def test_pages_must_hold_a_sequence_and_are_not_saved(tmp_path):
    text = "[data]\nmax_prompt_tokens = 60\n[generator]\nmax_tokens = 60\npages = {}\n"
    assert load(write(tmp_path, text.format(4))).generator.pages == 4
    assert faults_of(write(tmp_path, text.format(3))) == [
        "generator.pages (3) of generator.page_tokens (32) tokens do not hold one sequence of "
        "data.max_prompt_tokens + generator.max_tokens (120). Set generator.pages to at least 4, "
        "or 0."
    ]
    text += '[checkpoint]\nkv = "save"\n'
    assert faults_of(write(tmp_path, text.format(4))) == [
        'generator.pages is 4 and checkpoint.kv is "save": whose pages are whose is not saved. '
        'Set checkpoint.kv = "refill", or generator.pages = 0.'
    ]


@pytest.mark.parametrize(
    "text, told",
    [
        (
            "[generator]\nkv_in_8_bits = true",
            "generator.kv_in_8_bits is true and generator.pages is 0",
        ),
        ('[model]\nattention = "kernels"\ndtype = "bfloat16"', "generator.pages is 0"),
        (
            '[model]\nattention = "kernels"\ndtype = "bfloat16"\n[generator]\npages = 99\n'
            "page_tokens = 24",
            "generator.page_tokens is 24: the kernels read pages of 16, 32, 64",
        ),
        (
            '[model]\nattention = "kernels"\n[generator]\npages = 99',
            'model.dtype is "float32": the kernels are for 16-bit floats',
        ),
    ],
)
def test_what_pages_and_kernels_need(tmp_path, text, told):
    (fault,) = faults_of(write(tmp_path, text))
    assert told in fault and "Set " in fault


@pytest.mark.parametrize(
    "text, told",
    [
        (
            "[mesh]\ngenerator_engines = 3\n[generator]\nin_flight = 64",
            "generator.in_flight (64) must be a multiple of mesh.generator_engines (3)",
        ),
        (
            '[mesh]\ngenerator_engines = 2\n[checkpoint]\nkv = "save"',
            "mesh.generator_engines is 2 and checkpoint.kv is",
        ),
        (
            '[trainer]\nobjective = "tis"\n[batch]\nminibatch = 32',
            'trainer.objective is "tis" and batch.minibatch is 32',
        ),
        (
            '[trainer]\nobjective = "gspo"',
            'trainer.objective is "gspo" and batch.shares is "group"',
        ),
    ],
)
def test_what_several_engines_and_other_objectives_need(tmp_path, text, told):
    (fault,) = faults_of(write(tmp_path, text))
    assert told in fault


def of_type(hint: Any) -> st.SearchStrategy:
    if get_origin(hint) is Literal:
        return st.sampled_from(get_args(hint))
    if get_origin(hint) is tuple:
        row, _ = get_args(hint)
        fields = {name: of_type(kind) for name, kind in get_type_hints(row).items()}
        return st.lists(st.builds(row, **fields), max_size=3).map(tuple)
    return {
        int: st.integers(-(2**63), 2**63 - 1),
        float: st.floats(allow_nan=False, allow_infinity=False),
        bool: st.booleans(),
        str: st.text(st.characters(exclude_categories=["Cs"])),
    }[hint]


def test_every_character_survives_a_dump(tmp_path):
    name = "".join(map(chr, range(0x200))) + 'é\u2028\ufeff\U0001f600\\"#'
    config = replace(RunConfig(), data=replace(RunConfig().data, path=name))
    path = tmp_path / "demo.toml"
    path.write_text(dump(config), encoding="utf-8", newline="")
    assert load(path).data.path == name


@settings(max_examples=30, deadline=None)
@given(values=st.fixed_dictionaries({p: of_type(hint) for p, hint in dotted_fields().items()}))
def test_a_dump_loads_as_the_config_it_was(tmp_path_factory, values):
    config = built(RunConfig(), values)
    path = tmp_path_factory.mktemp("dump") / "demo.toml"
    path.write_text(dump(config), encoding="utf-8", newline="")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("magistral_jax.settings.broken_rules", lambda config: [])
        assert load(path) == config


def test_a_dump_explains_each_field_and_table_above_it():
    lines = dump(RunConfig()).splitlines()
    for path, text in field_docs().items():
        comment = [f"# {line}" for line in text.splitlines()]
        at = lines.index(comment[0])
        assert lines[at : at + len(comment)] == comment
        start = f"{path.rpartition('.')[2]} = " if path in dotted_fields() else f"[{path}]"
        assert lines[at + len(comment)].startswith(start)


STAGES = """
generator = {group_size = 4, in_flight = 8}
batch = {completions = 8}
[[stage]]
max_tokens = 32
[[stage]]
from_step = 5
completions = 12
"""


def test_stages_are_read_in_their_order(tmp_path):
    first, second = load(write(tmp_path, STAGES)).stage
    assert (first.from_step, first.max_tokens, first.completions) == (0, 32, 0)
    assert (second.from_step, second.completions) == (5, 12)


@pytest.mark.parametrize(
    "wrong, right, told",
    [
        ("completions = 12", "completion = 12", "no field completion in [[stage]]; did you mean"),
        (
            "completions = 12",
            'completions = "x"',
            "stage[1].completions is 'x'; it must be",
        ),
        (
            "completions = 12",
            "completions = 10",
            "in stage[1]: batch.completions (10) must be a multiple",
        ),
        ("from_step = 5", "from_step = 0", "stage[1] says neither from_step nor when"),
        (
            "from_step = 5",
            "from_step = 5\nin_flight = 99",
            "in stage[1]: generator.in_flight (99) is over twice",
        ),
        ("max_tokens = 32", "from_step = 5", "stage.from_step is [5, 5] in turn"),
        ("max_tokens = 32", 'when = "length_plateau"', "stage[0] has from_step 0 and when"),
        ("max_tokens = 32", "max_tokens = 300", "in stage[0]: batch.row_tokens (256) is below"),
        ("from_step = 5", "from_step = 5\nplateau_steps = 0", "stage[1] has plateau_steps 0"),
        ("from_step = 5", "from_step = 5\nmin_pass_rate = 2.0", "min_pass_rate 2.0 and max"),
        ("max_tokens = 32", "max_tokens = -1", "in stage[0]: generator.max_tokens is -1"),
    ],
)
def test_a_stage_that_cannot_be_is_refused(wrong, right, told, tmp_path):
    assert told in faults_of(write(tmp_path, STAGES.replace(wrong, right)))[0]


def test_stages_are_no_option_of_the_command_line(tmp_path):
    told = faults_of(write(tmp_path, STAGES), [("stage", "3")])
    assert told == ["--stage is a list of tables; write each as [[stage]] in the file."]


@pytest.mark.parametrize("path", sorted((REPO / "configs").glob("*.toml")), ids=lambda p: p.stem)
def test_every_config_of_the_project_can_run(path):
    config = load(path)
    assert config.name == path.stem
    header = path.read_text().split("\n\n")[0]
    assert all(f"# {word}" in header for word in ("claim", "command", "cost", "measured"))


def test_every_field_has_a_docstring():
    assert dotted_fields().keys() <= field_docs().keys()
    assert all(field_docs().values())


def test_every_default_has_the_type_of_its_field():
    for path, hint in dotted_fields().items():
        value = value_at(RunConfig(), path)
        assert not is_dataclass(value)
        kind = get_origin(hint) or hint
        assert value in get_args(hint) if kind is Literal else type(value) is kind, path


def test_every_rule_names_existing_fields_and_the_default_breaks_none():
    assert broken_rules(RunConfig()) == []
    known = dotted_fields()
    numbers = [path for path, hint in known.items() if hint in (int, float)]
    seen = 0
    for path in numbers:
        for value in (-1, 0, 1, 3, 10**6):
            config = with_value(RunConfig(), path, known[path](value))
            for source in ("random", "file"):
                for message in broken_rules(with_value(config, "model.source", source)):
                    seen += 1
                    named = re.findall(r"\b[a-z]\w*(?:\.[a-z]\w*)+", message)
                    assert {message.split()[0], *named} <= known.keys(), message
    assert seen > len(numbers)


def test_a_field_in_the_run_table_and_outside_it_is_a_fault(tmp_path):
    [told] = faults_of(write(tmp_path, "seed = 1\n[run]\nseed = 2\n"))
    assert told == "seed is in [run] and outside it; say it once."
