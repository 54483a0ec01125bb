"""The program in an answer: the first closed block of code that names its language (2.1, 2.2).

What the paper leaves open:
- only backticks make a block, three or more of them, at any indentation, so that a block in a list
  counts; its lines lose the indentation of its fence. A line of only backticks, at least as many
  as opened the block, closes it. `~~~` is text;
- a block without a language name is no program: an answer may show a sample before its code. The
  first block that names a language is the program, whatever language that is.
"""

import re

_FENCE = re.compile(r"(?P<indent>[ \t]*)(?P<ticks>`{3,})[ \t]*(?P<info>[^`]*)")
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9+#.-]*")
_KNOWN = {
    "python": "python py python3 py3 python3.10 python3.11 python3.12 python3.13 cpython",
    "cpp": "cpp c++ cc cxx c++11 c++14 c++17 c++20 cpp11 cpp14 cpp17 cpp20 cpp23 c++23 g++ gnu++20",
}
_LANGUAGES = {name: language for language, names in _KNOWN.items() for name in names.split()}


def first_block(answer_part: str) -> tuple[str, str] | None:
    """The program and its language: "python", "cpp", or the name in the fence in lower case."""
    for language, lines, _, _ in _blocks(answer_part):
        if language:
            return "\n".join([*lines, ""]), language
    return None


def outside_blocks(text: str) -> str:
    """The text without its closed blocks of code, named or not."""
    if "```" not in text:
        return text
    lines, at, kept = text.split("\n"), 0, []
    for _, _, first, after in _blocks(text):
        kept += lines[at:first]
        at = after
    return "\n".join([*kept, *lines[at:]])


def _blocks(text: str) -> list[tuple[str, list[str], int, int]]:
    """Each closed block: language, content, the number of its first line and of the one after."""
    found, lines = [], text.split("\n")
    indent, ticks, language, start = "", "", "", -1
    for number, line in enumerate(lines):
        if start >= 0:
            mark = line.strip()
            if len(mark) >= len(ticks) and mark == "`" * len(mark):
                content = [_without_indent(inner, indent) for inner in lines[start + 1 : number]]
                found.append((language, content, start, number + 1))
                start = -1
        elif fence := _FENCE.fullmatch(line.rstrip("\r")):
            indent, ticks, start = fence["indent"], fence["ticks"], number
            name = _NAME.match(fence["info"])
            language = _LANGUAGES.get(name[0].lower(), name[0].lower()) if name else ""
    return found


def _without_indent(line: str, indent: str) -> str:
    """The line without as much of the fence's indentation as it has."""
    shared = 0
    while shared < len(indent) and line[shared : shared + 1] == indent[shared]:
        shared += 1
    return line[shared:]
