import time

import pytest

from magistral_jax.verifier.format import check_format, last_box

CODE = "<think>t</think>Here:\n```python\nprint(1)\n```\n"


def test_a_good_completion_is_cut_into_its_parts():
    form = check_format(r"<think>two and two</think>So \boxed{4}.", "math")
    assert (form.thoughts, form.answer_part) == ("two and two", r"So \boxed{4}.")
    assert (form.boxed, form.problem) == ("4", "")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (r"\boxed{4}", "no leading <think>"),
        (r" <think>a</think>\boxed{4}", "no leading <think>"),
        ("\n<think>a</think>\\boxed{4}", "no leading <think>"),
        (r"<Think>a</Think>\boxed{4}", "no leading <think>"),
        (r"<think>a</think><think>b</think>\boxed{4}", "two think blocks"),
        (r"<think><think>a</think>\boxed{4}", "two think blocks"),
        (r"<think>a</think></think>\boxed{4}", "two think blocks"),
        (r"<think>a \boxed{4}", "think block never closed"),
        (r"<think>\boxed{4}</think>4", "no boxed answer"),
        (r"<think>a</think>\boxed{4", "no boxed answer"),
        (r"<think>a</think>\fbox{4}", "no boxed answer"),
        (r"<think>a</think>\boxed 4", "no boxed answer"),
        (r"<think>a</think>\boxed{}", "empty box"),
        (r"<think>a</think>\boxed{4} or \boxed{ }", "empty box"),
    ],
)
def test_math_without_form_is_told_why(text, problem):
    assert check_format(text, "math").problem == problem


@pytest.mark.parametrize(
    ("text", "content"),
    [
        (r"\boxed{1} then \boxed{2}", "2"),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\boxed{a \} b}", r"a \} b"),
        (r"\boxed {3}", "3"),
        (r"\boxed{1} } \boxed{2}", "2"),
        (r"{ \boxed{2}", "2"),
        (r"\boxed{1} \boxed{2", "1"),
        (r"\boxed{3 \boxed{4}}", "4"),
        (r"\boxed{1} \\boxed{2}", "1"),  # a line break, then a word
        ("plain {braces}", None),
        ("\\boxed{1}\n```latex\n\\boxed{2}\n```\n", "1"),
        ("```\n\\boxed{2}\n```", None),
        ("```\n\\boxed{2}", "2"),  # never closed, so no block
        (r"`\boxed{3}`", "3"),
    ],
)
def test_the_last_box_is_the_closed_one_that_opens_last(text, content):
    assert last_box(text) == content


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        ("```python\nx\n```", ""),
        ("text\n ``` cpp \nx\n```\nmore", ""),
        ("```\nx\n```\n```c++\ny\n```", ""),
        ("- here:\n    ```python\n    x\n    ```", ""),
        ("```\nx\n```", "no code block with a language"),
        ("```python\nx", "no code block with a language"),
        ("```\n```python", "no code block with a language"),
        ("```python print(1)```\nx\n```", "no code block with a language"),
        ("print(1)", "no code block with a language"),
        (r"\boxed{4}", "no code block with a language"),
    ],
)
def test_code_needs_a_closed_block_with_a_language(answer, problem):
    assert check_format(f"<think>t</think>{answer}", "code").problem == problem


def test_empty_thoughts_are_thoughts():
    form = check_format(r"<think></think>\boxed{4}", "math")
    assert (form.problem, form.thoughts, form.boxed) == ("", "", "4")


def test_code_in_the_thoughts_does_not_count():
    assert check_format("<think>\n```python\nx\n```\n</think>done", "code").problem != ""


@pytest.mark.parametrize("domain", ["math", "code"])
@pytest.mark.parametrize(
    "unit", [r"\boxed{", "{", "}", "```python\n", "```\n", "`", "\\boxed ", " "]
)
def test_a_million_characters_are_read_in_linear_time(domain, unit):
    text = "<think></think>" + unit * (1_000_000 // len(unit))
    start = time.process_time()
    check_format(text, domain)
    assert time.process_time() - start < 10  # quadratic would be hours
