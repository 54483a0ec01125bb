r"""What is left of a text without its mathematics, code and addresses: its prose (2.4).

Every step is linear in the text: a pattern never looks past the next delimiter of its kind, and
a delimiter known to be missing is not looked for again.
"""

import re

# A fence is closed by one at least as long, or by the end of the text.
_FENCED = re.compile(r"(?ms)^[ \t]*(`{3,}|~{3,})[^\n]*$.*?(?:^[ \t]*\1[`~]*[ \t]*$|\Z)")
_INLINE_CODE = re.compile(r"(?<!`)`++[^`\n]*+`++")
_ADDRESS = re.compile(r"(?:https?://|www\.)\S++")
# A dollar sign opens mathematics before, and closes it after, anything but a space; and not
# before a digit: "$5 and $10" are prices.
_DOLLARS = re.compile(r"(?<!\\)\$(?=[^\s$])(?:[^$\\]|\\.)*+(?<=\S)\$(?![0-9])", re.DOTALL)
# What stands between two prices is no mathematics: "sie zahlt $4, er zahlt 7$", with three words in
# a row, or six characters of a script without spaces, outside commands and their arguments.
_SENTENCE = re.compile(r"(?:[^\W\d_]{2,}+[ \n,;.]+){2}[^\W\d_]{2}|[\u3040-\u30ff\u4e00-\u9fff]{6}")
_ASIDE = re.compile(r"\\[A-Za-z]++\*?(?:\s*+\{[^{}]*+\})*+|\{[^{}]*+\}")
_DISPLAYED = (("[asy]", "[/asy]"), ("$$", "$$"), (r"\[", r"\]"), (r"\(", r"\)"))
_ENVIRONMENT = re.compile(r"\\begin\{([A-Za-z]{1,30}\*?)\}")
_WORDS_INSIDE = re.compile(r"\\(?:text[a-z]*|emph|mbox|(?:sub)*section\*?|title)\s*+\{")
# A command, an index or a power whose arguments hold no others; the outer ones fall in a later
# round.
_ARGUMENT = re.compile(
    r"(?:\\[A-Za-z]++\*?|[\^_])(?:\s*+\[[^\[\]{}]*+\])?(?:\s*+\{[^{}]*+\})++(?!\s*+\{)|\{\s*+\}"
)
_ROUNDS = 6
_COMMAND = re.compile(r"\\(?:[A-Za-z]++|.)", re.DOTALL)


def prose(text: str) -> str:
    """The text without code blocks, inline code, LaTeX and web addresses."""
    text = _FENCED.sub("\n", text)
    text = _INLINE_CODE.sub(" ", text)
    for opening, closing in _DISPLAYED:
        text = _without(text, opening, closing)
    text = _without_environments(text)
    text = _DOLLARS.sub(_unless_prose, text)
    text = _ADDRESS.sub(" ", text)
    text = _WORDS_INSIDE.sub(" ", text)
    for _ in range(_ROUNDS):
        shorter = _ARGUMENT.sub(" ", text)
        if shorter == text:
            break
        text = shorter
    return _COMMAND.sub(" ", text)


def _unless_prose(formula: re.Match[str]) -> str:
    return formula[0] if _SENTENCE.search(_ASIDE.sub("", formula[0])) else " "


def _without(text: str, opening: str, closing: str) -> str:
    """The text without what stands between the two, themselves included."""
    kept, at = [], 0
    while (start := text.find(opening, at)) >= 0:
        end = text.find(closing, start + len(opening))
        if end < 0:
            break
        kept += [text[at:start], " "]
        at = end + len(closing)
    return "".join([*kept, text[at:]])


def _without_environments(text: str) -> str:
    r"""The text without \begin{name} ... \end{name}."""
    kept, at, unclosed = [], 0, set()
    for begin in _ENVIRONMENT.finditer(text):
        if begin.start() < at or begin[1] in unclosed or len(unclosed) > 50:
            continue
        closing = rf"\end{{{begin[1]}}}"
        end = text.find(closing, begin.end())
        if end < 0:
            unclosed.add(begin[1])
            continue
        kept += [text[at : begin.start()], " "]
        at = end + len(closing)
    return "".join([*kept, text[at:]])
