"""A model's chat template, rendered as transformers renders it, in a sandbox."""

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.sandbox

from magistral_jax.tokenizer.interface import Message, Refused, Tools
from magistral_jax.types import UserError

Fault = Callable[[str], UserError]
"""What is wrong, as a message that also says with which file."""


class ChatTemplate:
    """A conversation as text."""

    def __init__(self, source: str, variables: Mapping[str, str], fault: Fault) -> None:
        """`variables` are what the template knows besides the messages: {"eos_token": ...}."""
        if not source:
            raise fault("it has no chat template; use an instruct model")
        self.source = source
        self._fault = fault
        # What a conversation without documents is to transformers.
        self._variables = {**variables, "documents": None}
        try:
            self._template = _sandbox().from_string(source)
        except jinja2.TemplateError as error:
            raise fault(f"its chat template cannot be read: {error}") from error

    def render(self, messages: Sequence[Message], tools: Tools = (), *, asks: bool = True) -> str:
        """All messages; and, if it `asks`, the beginning of the assistant's next turn."""
        try:
            return self._template.render(
                messages=[dict(m) for m in messages],
                tools=[dict(tool) for tool in tools] or None,
                add_generation_prompt=asks,
                **self._variables,
            )
        except Exception as error:  # a template is a foreign program
            fault = self._fault(f"its chat template refuses this conversation: {error}")
            raise Refused.by(error, fault) from error


def _sandbox() -> jinja2.Environment:
    """The template came with the weights: it may format, and nothing else."""
    sandbox = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols, _Generation]
    )
    # Today's date, to a template that writes it, is the day of loading: a run's prompts do not
    # change at midnight.
    loaded = datetime.now()
    sandbox.globals["raise_exception"] = _raise_exception
    sandbox.globals["strftime_now"] = loaded.strftime
    sandbox.filters["tojson"] = _to_json
    return sandbox


class _Generation(jinja2.ext.Extension):
    """{% generation %}...{% endgeneration %} marks what the assistant says; no more."""

    tags = {"generation"}  # noqa: RUF012 - jinja's own attribute

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.Scope(body, lineno=line)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """jinja's own filter would escape HTML."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _raise_exception(message: str) -> None:
    """What chat templates call to refuse a conversation."""
    raise jinja2.TemplateError(message)
