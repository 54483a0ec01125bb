r"""An answer's text with one spelling for what LaTeX, Unicode and plain text spell in many ways.

Words come out in double quotes, `10 \text{ cm}` as `10 "cm"`, so that no word is mistaken for a
product of letters. Full NFKC would turn a square into 52, so only what is listed is mapped.
"""

# ruff: noqa: RUF001 (look-alikes are what this file is about)

import re
import unicodedata
from functools import lru_cache

from magistral_jax.verifier.math.words import FUNCTIONS, LABELS, WORDS

_SUPERSCRIPTS = {c: str(i) for i, c in enumerate("⁰¹²³⁴⁵⁶⁷⁸⁹")} | {"⁻": "-", "⁺": "+", "ⁿ": "n"}
_SUBSCRIPTS = {c: str(i) for i, c in enumerate("₀₁₂₃₄₅₆₇₈₉")}
_VULGAR = {"½": (1, 2), "⅓": (1, 3), "⅔": (2, 3), "¼": (1, 4), "¾": (3, 4), "⅕": (1, 5)} | {
    "⅖": (2, 5),
    "⅗": (3, 5),
    "⅘": (4, 5),
    "⅙": (1, 6),
    "⅚": (5, 6),
    "⅛": (1, 8),
    "⅜": (3, 8),
    "⅝": (5, 8),
    "⅞": (7, 8),
}
_GREEK_NAMES = (
    "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi pi rho sigma "
    "tau upsilon phi chi psi omega Gamma Delta Theta Lambda Xi Pi Sigma Phi Psi Omega"
)
_GREEK = dict(
    zip(
        "αβγδεζηθικλμνξπρστυφχψωΓΔΘΛΞΠΣΦΨΩ",
        _GREEK_NAMES.split(),
        strict=True,
    )
)
_CHARACTERS = str.maketrans(
    {c: rf"\frac{{{n}}}{{{d}}}" for c, (n, d) in _VULGAR.items()}
    | {c: rf"\{name} " for c, name in _GREEK.items()}
    | {"−": "-", "–": "-", "﹣": "-", "－": "-", "＋": "+", "×": "*", "·": "*", "⋅": "*", "∗": "*"}
    | {"∙": "*", "÷": "/", "∕": "/", "⁄": "/", "／": "/", "＝": "=", "＜": "<", "＞": ">"}
    | {"≤": r"\le ", "≥": r"\ge ", "⩽": r"\le ", "⩾": r"\ge ", "≠": r"\ne ", "≈": r"\approx "}
    | {"±": r"\pm ", "∓": r"\mp ", "∞": r"\infty ", "√": r"\sqrt ", "∛": r"\sqrt[3]"}
    | {"∪": r"\cup ", "∩": r"\cap ", "∈": r"\in ", "∅": r"\emptyset ", "∖": r"\setminus "}
    | {"ℝ": r"\mathbb{R}", "ℤ": r"\mathbb{Z}", "ℚ": r"\mathbb{Q}", "ℕ": r"\mathbb{N}"}
    | {"ℂ": r"\mathbb{C}", "º": "°", "˚": "°", "∘": "°", "，": ",", "、": ",", "；": ";"}
    | {"．": ".", "。": ".", "：": ":", "％": "%", "（": "(", "）": ")", "［": "[", "］": "]"}
    | {"′": "'", "’": "'", "…": r"\ldots ", "⌊": r"\lfloor ", "⌋": r"\rfloor "}
    | {"⌈": r"\lceil ", "⌉": r"\rceil ", "⟨": r"\langle ", "⟩": r"\rangle ", "∣": "|"}
    | {"\u2009": r"\,", "\u202f": r"\,", "\u2008": r"\,", "\u00a0": r"\,", '"': "'"}
)
_HYPERBOLIC = ("sinh", "cosh", "tanh", "coth")
_SIZES = ("big", "Big", "bigg", "Bigg")
_COMMANDS = (
    dict.fromkeys(("dfrac", "tfrac", "cfrac"), r"\frac")
    | dict.fromkeys(("dbinom", "tbinom"), r"\binom")
    | dict.fromkeys(("cdot", "times", "ast", "bullet"), "*")
    | dict.fromkeys(("left", "right", "displaystyle", "textstyle", "limits", "nolimits"), "")
    | dict.fromkeys((size + side for size in _SIZES for side in ("", "l", "m", "r")), "")
    | dict.fromkeys(("mathopen", "mathclose", "mathord", "mathinner"), "")
    | {"lparen": "(", "rparen": ")", "bigcup": r"\cup ", "bigcap": r"\cap "}
    | dict.fromkeys(("simeq", "doteq", "thickapprox", "approxeq"), r"\approx ")
    | dict.fromkeys(("nicefrac", "sfrac", "flatfrac"), r"\frac")
    | {"textdollar": r"\$", "mathdollar": r"\$"}
    | dict.fromkeys(("middle", "boldsymbol", "bold", "bm", "scriptstyle", "!", "mathstrut"), "")
    | dict.fromkeys((";", ":", ">", " ", "quad", "qquad", "space", "enspace", "\n"), " ")
    | dict.fromkeys(("leq", "leqslant", "leqq"), r"\le ")
    | dict.fromkeys(("geq", "geqslant", "geqq"), r"\ge ")
    | dict.fromkeys(("neq", "not="), r"\ne ")
    | dict.fromkeys(("dots", "cdots", "dotsc", "dotsb", "dotso"), r"\ldots ")
    | dict.fromkeys(("mid", "vert", "lvert", "rvert"), "|")
    | dict.fromkeys(("varnothing",), r"\emptyset ")
    | dict.fromkeys(("lor", "vee"), ' "or" ')
    | dict.fromkeys(("land", "wedge"), ' "and" ')
    | dict.fromkeys(("lbrace",), r"\{")
    | dict.fromkeys(("rbrace",), r"\}")
    | dict.fromkeys(("infin", "inf"), r"\infty ")
    | {
        "div": "/",
        "degree": "°",
        "degrees": "°",
        "prime": "'",
        "%": "%",
        "backslash": r"\setminus ",
    }
    | {"varepsilon": r"\epsilon ", "varphi": r"\phi ", "vartheta": r"\theta ", "lt": "<", "gt": ">"}
    | {f"arc{name}": rf"\ar{name} " for name in _HYPERBOLIC}
    | {"tg": r"\tan ", "ctg": r"\cot ", "arctg": r"\arctan ", "arcctg": r"\arccot "}
    | {"bar": r"\overline", "lbrack": "[", "rbrack": "]", "colon": ":", "imath": "i", "mathrm": ""}
    | {"cap": r"\cap ", "cup": r"\cup ", "setminus": r"\setminus ", "smallsetminus": r"\setminus "}
)
_STYLE = re.compile(
    r"\\(?:text(?:bf|it|rm|sf|tt|normal|sc|up)?|mbox|hbox|mathrm|textrm|mathbf|mathit|mathsf|mathtt"
    r"|mathcal|boldsymbol|operatorname\*?|bf|rm)\s*\{((?:[^{}]|\{[^{}]*\})*)\}"
)
_DECORATION = re.compile(
    r"\\(?:color|hspace\*?|vspace\*?|textcolor)\s*\{[^{}]*\}|\\h?phantom\s*(?:\{[^{}]*\}|[^{}\s\\])"
    r"|\\(?:large|Large|LARGE|huge|small|normalsize)(?![A-Za-z])|\\tag\*?\s*\{[^{}]*\}"
    r"|\\(?:underline|mathbf|mathit|mathrm|mathsf|mathcal|thinspace|noindent)(?![A-Za-z{])"
    r"|\\underline(?=\{)"
)
# No blank inside the second sign and no digit behind it: else it is money.
_MATH_SPAN = re.compile(r"(?<![\\$])\$([^\s$](?:[^$\n]*?[^\s$\\])?)\$(?!\d)")
_FRENCH = re.compile(
    r"(^|[ =]|\\(?:cup|cap|in) ?)"
    r"(?:\]([^\[\]()]*[,;][^\[\]()]*)([\[\]])|\[([^\[\]()]*[,;][^\[\]()]*)\[)"
)
# Behind a row of a matrix: more room below it, or rows without anything.
_ROW_END = re.compile(
    r"\\\\(?:\s*\[-?[0-9.]+ ?(?:pt|em|ex|mm|cm)\])?(?:\s*\\\\(?:\[-?[0-9.]+ ?(?:pt|em)\])?)*"
)
# Without & it is no definition by cases.
_SYSTEM = re.compile(
    r"\\begin\{cases\}([^&]*)\\end\{cases\}"
    r"|\\left\s*\\\{\s*\\begin\{array\}\{[lrc]\}([^&]*)\\end\{array\}\s*\\right\s*\."
)
_ALIGNED = re.compile(r"\\begin\{(aligned|align\*?|gathered|split)\}(.*?)\\end\{\1\}", re.DOTALL)
# Plain TeX's and the starred matrices, as the others.
_PLAIN_MATRIX = re.compile(r"\\(p?matrix)\s*\{((?:[^{}]|\{(?:[^{}]|\{[^{}]*\})*\})*)\}")
_STARRED = re.compile(r"\\(begin|end)\{([bpBvV]?matrix)\*\}(?:\[[lrc]\])?")
_LABEL = re.compile(r'((?:"[A-Za-z]+" ?){1,8})[:=] ?(?=[-+0-9.\\({\[$])(?!.*"[A-Za-z]+" ?[:=])')
_ANNOUNCED = re.compile(r'^(?:"the" )?(?:"final" )?"answer"(?: "is" ?:?| ?:) ?', re.IGNORECASE)
_WORDINGS = {
    '"empty" "set"': r"\emptyset ",
    '"per" "cent"': '"percent"',
    '"degrees" "Celsius"': "°C",
    '"degrees" "Fahrenheit"': "°F",
}
_COMMAND = re.compile(r"\\([A-Za-z]+|.|\n)[ ]*", re.DOTALL)
_LETTERS = re.compile(r'"[^"]*"|\\[A-Za-z]+|[A-Za-z]+')
_MONEY = re.compile(
    r"(?:\\?\$|(?P<euro>€)|(?P<pound>£))\s*(?P<amount>[0-9][0-9,]*(?:\.[0-9]+)?|\.[0-9]+)"
    r'(?P<scale>\s*"(?:thousand|million|billion|trillion)")?(?:\s*"dollars?")?'
)
_GROUPED = re.compile(
    r"(?<![0-9.,])([1-9][0-9]{0,2})((?:\s*(?:\{,\}|,?\s*\\!|\\,)\s*[0-9]{3})+)(?![0-9])"
)
_SPACED = re.compile(r"(?<![0-9.,^_{/])([1-9][0-9]{0,2})((?: [0-9]{3})+)(?![0-9/])")
_THOUSANDS = re.compile(r"(?<![0-9.,])([1-9][0-9]{0,2})((?:,[0-9]{3})+)(?![0-9,])")


@lru_cache(256)
def clean(text: str) -> str:
    r"""The text in one spelling: `\dfrac12`, `1/2` stay apart, but each is spelled one way."""
    if not text.isascii():
        text = _plain_characters(text)
    text = text.strip()
    text = text[:-1] if re.search(r"(?<!\\)\\$", text) else text  # half of a forced blank
    text = _without_frame(text)
    text = _MATH_SPAN.sub(r"\1", text) if text.count("$") - text.count(r"\$") == 2 else text
    text = text.replace("{}", "").replace(r"\text{,}", "{,}")
    text = re.sub(r"\\num\{([0-9.]+)\}", r"\1", text)
    text = _PLAIN_MATRIX.sub(r"\\begin{\1}\2\\end{\1}", text)
    text = _STARRED.sub(r"\\\1{\2}", text)
    if r"\begin" in text:
        text = re.sub(r"\\cr(?![A-Za-z])", r"\\\\", text)
    text = re.sub(r"\^\s*\{?\s*\\(?:top|intercal|mathsf\s*\{?T\}?)\s*\}?", "^T", text)
    if r"\begin" not in text:  # else a line break; here an escape too many
        text = re.sub(r"\\\\(?=[A-Za-z]{2})", r"\\", text)
    else:
        text = _SYSTEM.sub(_system, _ALIGNED.sub(_aligned, text))
        text = _ROW_END.sub(r"\\\\", text)
    text = text.replace(r"\\%", "%").replace(r"\%", "%").replace("{:}", ":")
    text = re.sub(r"\^\s*(?:\{\s*\\circ\s*\}|\\circ(?![A-Za-z]))", "°", text)
    text = _GROUPED.sub(lambda m: m[1] + re.sub(r"[^0-9]", "", m[2]), text)
    text = re.sub(r"\\(?:thinspace|,)(?![A-Za-z])", r"\\,", text)
    text = _DECORATION.sub("", text)
    text = re.sub(r"\\mathbb ?([A-Z])", r"\\mathbb{\1}", text)
    text = re.sub(r"\{([^{}]*)\\choose(?![A-Za-z])([^{}]*)\}", r"\\binom{\1}{\2}", text)
    text = re.sub(r"(^|\{)([^{}]*)\\over(?![A-Za-z])([^{}]*)(\}|$)", _over, text)
    text = re.sub(r"\{\s*\\(?:rm|bf|it|sf)\s+([^{}]*)\}", r"\\text{\1}", text)
    text = re.sub(r"(?<=[0-9]) [xX] (?=10 ?\^)", "*", text)
    text = re.sub(r"\\(?:text|mathrm)\{([0-9A-F]+)\}(?=\s*_)", r"\1", text)  # a numeral
    for _ in range(4):  # styles inside styles
        changed = _STYLE.sub(lambda m: _quoted(m[1]), text)
        if changed == text:
            break
        text = changed
    text = re.sub(r"\\(?:left|right)\s*\|", "|", text)
    text = re.sub(r"\\(?:left|right)\s*\.(?![0-9])", "", text)
    text = re.sub(r"\\not\s*=", r"\\ne ", text)
    text = _COMMAND.sub(_command, text)
    text = text.replace("~", " ")
    text = re.sub(r"\^\s*°", "°", text)
    text = _MONEY.sub(_money, _LETTERS.sub(_letters, text))
    text = re.sub(r"<=|=<", r"\\le ", re.sub(r">=", r"\\ge ", text.replace("!=", r"\ne ")))
    text = text.replace("**", "^")
    text = re.sub(r"\+/-|\+-", r"\\pm ", text)
    text = " ".join(text.split())
    text = re.sub(r"^(?:=|\\approx|\\implies|\\therefore|:)\s*", "", text)
    text = re.sub(r"(?<!\.)[.,;:]$", "", text).rstrip()
    text = _without_label(_ANNOUNCED.sub("", text))
    text = re.sub(r"^\\angle ?= ?", "", text)
    for wording, spelling in _WORDINGS.items():
        text = text.replace(wording, spelling)
    if text.lower() == '"all" "real" "numbers"':
        return r"\mathbb{R}"
    text = re.sub(r"(?<=[)\]]) U (?=[(\[])", r" \\cup ", text)
    text = _FRENCH.sub(_french, text)
    text = _SPACED.sub(lambda m: m[1] + m[2].replace(" ", ""), text)
    return re.sub(r"^(-?)0+(?=[0-9]+$)", r"\1", text)


def readings(cleaned: str) -> tuple[str, ...]:
    """The text with commas between thousands read as such outside brackets, and as it stands."""
    merged, depth, start = [], 0, 0
    pieces: list[tuple[str, bool]] = []
    for at, c in enumerate(cleaned):
        if c in "([{":
            if depth == 0:
                pieces.append((cleaned[start:at], True))
                start = at
            depth += 1
        elif c in ")]}":
            depth = max(0, depth - 1)
            if depth == 0:
                pieces.append((cleaned[start : at + 1], False))
                start = at + 1
    pieces.append((cleaned[start:], depth == 0))
    for piece, is_outside in pieces:
        merged.append(_THOUSANDS.sub(_joined, piece) if is_outside else piece)
    text = "".join(merged)
    return (text,) if text == cleaned else (text, cleaned)


def spelled(cleaned: str) -> str:
    """What two texts share if they differ in nothing but blanks, quotes and single braces."""
    text = re.sub(r"([_^]|\\pmod ?)\{([A-Za-z0-9]|\\[A-Za-z]+ ?)\}(?![0-9])", r"\1\2", cleaned)
    text = re.sub(r"\\frac ?([0-9])(?![0-9]*\})", r"\\frac{\1}", text)
    text = re.sub(r"(\\frac\{[^{}]*\}) ?([0-9])(?![0-9])", r"\1{\2}", text)
    text = text.replace('" "', "\0").replace('"', "")
    text = re.sub(r"(?<=[0-9.]) (?=[0-9.])|(?<=[A-Za-z]) (?=[A-Za-z])", "\0", text)
    return text.replace(" ", "").replace("\0", " ")


def _plain_characters(text: str) -> str:
    out = []
    for c in text.translate(_CHARACTERS):
        if c in _SUPERSCRIPTS or c in _SUBSCRIPTS:
            out.append(
                f"^{{{_SUPERSCRIPTS[c]}}}" if c in _SUPERSCRIPTS else f"_{{{_SUBSCRIPTS[c]}}}"
            )
        elif unicodedata.category(c) != "Cf":
            out.append(str(unicodedata.decimal(c, c)))
    joined = "".join(out)
    return joined.replace("}^{", "").replace("}_{", "") if "}^{" in joined else joined


def _without_frame(text: str) -> str:
    r"""The text inside `$...$`, `\(...\)`, `\[...\]`, and a box that is all there is."""
    for _ in range(4):
        before = text
        text = text.removesuffix(".") if re.search(r"[$)\]}]\.$", text) else text
        if match := re.fullmatch(r"\$\$?([^$]*[^$\\])\$\$?", text):
            text = match[1].strip()
        elif re.fullmatch(r"\$(?:[^$\\]|\\[^$])+\$(?:[^$\\]*\$(?:[^$\\]|\\[^$])+\$)+", text):
            text = text.replace("$", "")
        elif match := re.fullmatch(r"\$((?:[^$\\]|\\.)+)\$", text):
            text = match[1].strip()
        elif match := re.fullmatch(r"\\\((.*)\\\)|\\\[(.*)\\\]", text, re.DOTALL):
            inner = match[1] if match[1] is not None else match[2]
            text = inner.strip() if r"\)" not in inner and r"\]" not in inner else text
        elif match := re.fullmatch(r"\\f?boxed\s*\{(.*)\}", text, re.DOTALL):
            text = match[1].strip() if _is_balanced(match[1]) else text
        elif match := re.fullmatch(r"\*\*([^*]+)\*\*", text):
            text = match[1].strip()
        if text == before:
            break
    return text


def _is_balanced(text: str) -> bool:
    depth = 0
    for c in text:
        depth += (c == "{") - (c == "}")
        if depth < 0:
            return False
    return depth == 0


def _quoted(content: str) -> str:
    content = re.sub(r"(\\?)\$", lambda m: m[0] if m[1] else "", content)
    return " " + re.sub(r"(?<!\\)(?<![A-Za-z])[A-Za-z]+", lambda m: f'"{m[0]}"', content) + " "


def _command(match: re.Match[str]) -> str:
    name = match[1]
    if name in _COMMANDS:
        return _COMMANDS[name]
    if name == ",":
        return " "
    if name == "$":
        return "$"
    return f"\\{name} " if name.isalpha() else f"\\{name}"


def _letters(match: re.Match[str]) -> str:
    text = match[0]
    # Seconds and minutes, but for sec(x) and min(1, 2).
    is_unit = text.strip('"') in ("sec", "min") and not re.match(
        r"\s*[({]", match.string[match.end() :][:3]
    )
    if text[0] in '"\\':
        inner = text.strip('"')
        # \text{sin}, \operatorname{lcm}
        is_function = text[0] == '"' and inner.lower() in FUNCTIONS and not is_unit
        return rf"\{FUNCTIONS[inner.lower()]} " if is_function else text
    if text in FUNCTIONS and not is_unit:
        return rf"\{FUNCTIONS[text]} "
    if len(text) >= 4 or text.lower() in WORDS:
        return f'"{text}"'
    return text


def _money(match: re.Match[str]) -> str:
    unit = "euros" if match["euro"] else "pounds sterling" if match["pound"] else "dollars"
    words = " ".join(f'"{word}"' for word in unit.split())
    return f"{match['amount']}{match['scale'] or ''} {words}"


def _over(match: re.Match[str]) -> str:
    if bool(match[1]) != bool(match[4]):
        return match[0]
    return rf"\frac{{{match[2]}}}{{{match[3]}}}"


def _without_label(text: str) -> str:
    """12 of `"total" "cost" = 12`, where all words are such as name what is asked for."""
    match = _LABEL.match(text)
    if match is None or not {w.strip('"').lower() for w in match[1].split()} <= LABELS:
        return text
    return text[match.end() :]


def _aligned(match: re.Match[str]) -> str:
    return rf"\begin{{cases}}{match[2].replace('&', '')}\end{{cases}}"


def _system(match: re.Match[str]) -> str:
    inner = match[1] if match[1] is not None else match[2]
    return re.sub(r"[,;]?\s*\\\\", ",", inner.rstrip("\\ "))


def _french(match: re.Match[str]) -> str:
    """]1, 2[ as (1, 2)."""
    if match[2] is not None:
        return f"{match[1]}({match[2]}{')' if match[3] == '[' else ']'}"
    return f"{match[1]}[{match[4]})"


def _joined(match: re.Match[str]) -> str:
    return match[1] + match[2].replace(",", "")
