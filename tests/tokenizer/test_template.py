from datetime import datetime

import pytest

from magistral_jax.tokenizer.template import ChatTemplate
from magistral_jax.types import UserError


def render(source: str, content: str = "hi", **variables: str) -> str:
    template = ChatTemplate(source, variables, UserError)
    return template.render([{"role": "user", "content": content}])


@pytest.mark.parametrize(
    "source, text",
    [
        ("{{ bos_token }}{{ messages[0].content }}{{ eos_token }}", "<s>hi"),
        (
            "{{ add_generation_prompt }} {{ tools is none }} {{ documents is none }}",
            "True True True",
        ),
        ("{{ tools is defined }} {{ eos_token is defined }}", "True False"),
        ("  {% if true %}\na\n  {% endif %}\nb", "a\nb"),
        ("{% for i in [1, 2, 3] %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}", "1"),
        ("{% generation %}{% set x = 1 %}{{ x }}{% endgeneration %}{{ x }}", "1"),
        ("{{ {'b': '<é>', 'a': [none]} | tojson }}", '{"b": "<é>", "a": [null]}'),
        ("{{ {'b': 1, 'a': 'é'} | tojson(true, sort_keys=true) }}", '{"a": "\\u00e9", "b": 1}'),
        ("{{ [1, 2] | tojson(indent=1, separators=(',', ':')) }}", "[\n 1,\n 2\n]"),
    ],
)
def test_a_template_sees_what_transformers_shows_it(source, text):
    assert render(source, bos_token="<s>") == text


def test_contents_are_not_escaped():
    assert render("{{ messages[0].content }}", "<b>&'\n") == "<b>&'\n"


def test_a_template_may_write_the_day(monkeypatch):
    before = datetime.now().strftime("%d %b %Y")
    said = render("{% if strftime_now is defined %}{{ strftime_now('%d %b %Y') }}{% endif %}")
    assert said in (before, datetime.now().strftime("%d %b %Y"))


def test_the_day_does_not_change_while_a_run_goes_on():
    template = ChatTemplate("{{ strftime_now('%H:%M:%S.%f') }}", {}, UserError)
    assert template.render([]) == template.render([])


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ messages.append(1) }}",
        "{{ messages[0].update(role='system') }}",
        "{{ strftime_now.__self__.year }}",
        "{{ raise_exception('no') }}",
        "{{ 1 / 0 }}",
    ],
)
def test_a_template_may_only_format(source):
    with pytest.raises(UserError, match="its chat template refuses this conversation"):
        render(source)


@pytest.mark.parametrize("source", ["{% for %}", "{{ 'a' ", "{% nothing %}", "{{ a | nothing }}"])
def test_a_template_that_does_not_compile_is_named(source):
    with pytest.raises(UserError, match="its chat template cannot be read: "):
        render(source)
