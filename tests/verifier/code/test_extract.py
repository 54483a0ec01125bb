import pytest

from magistral_jax.verifier.code.extract import first_block, outside_blocks


@pytest.mark.parametrize(
    ("text", "block"),
    [
        ("```python\nprint(1)\n```", ("print(1)\n", "python")),
        ("```Python3\nx\n```", ("x\n", "python")),
        ("``` py title=a.py\nx\n```", ("x\n", "python")),
        ("```c++\nx\n```", ("x\n", "cpp")),
        ("```C++20\nx\n```", ("x\n", "cpp")),
        ("```cc\nx\n```", ("x\n", "cpp")),
        ("```rust\nx\n```", ("x\n", "rust")),
        ("```python\n```", ("", "python")),
        ("```python\na\n```\n```cpp\nb\n```", ("a\n", "python")),
        ("```\nsample\n```\n```python\na\n```", ("a\n", "python")),
        ("```text\nsample\n```\n```python\na\n```", ("sample\n", "text")),
        ("1. So:\n   ```python\n   if x:\n       y\n\n   ```", ("if x:\n    y\n\n", "python")),
        ("\t```python\n\tx\n\t```", ("x\n", "python")),
        ("  ```python\nx\n```", ("x\n", "python")),
        ("````python\n```\nx\n```\n````", ("```\nx\n```\n", "python")),
        ("```python\nx\n````", ("x\n", "python")),
        ("```python\nprint('```')\n```", ("print('```')\n", "python")),
        ("```python\r\nx\r\n```\r\n", ("x\r\n", "python")),
        ("```\n```python\nx\n```", None),  # a line with a name closes nothing
        ("~~~python\nx\n~~~", None),
        ("```python\nx", None),
        ("``python\nx\n``", None),
        ("```python x```\ny\n```", None),
        ("```{.python}\nx\n```", None),
        ("```123\nx\n```", None),
        ("say ```python\nx\n```", None),
        ("", None),
    ],
)
def test_the_program_is_the_first_closed_block_with_a_name(text, block):
    assert first_block(text) == block


@pytest.mark.parametrize(
    ("text", "rest"),
    [
        ("a\n```\nb\n```\nc", "a\nc"),
        ("a\n```x\nb\n```\nc\n```\nd\n```", "a\nc"),
        ("a\n```\nb", "a\n```\nb"),
        ("a ``` b", "a ``` b"),
        ("plain", "plain"),
    ],
)
def test_what_is_outside_of_blocks(text, rest):
    assert outside_blocks(text) == rest
