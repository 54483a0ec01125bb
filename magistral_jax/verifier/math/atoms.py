"""The tight levels of the grammar: brackets, functions, commands, names, what stands behind them.

The loose levels (grammar.py) are reached through the abstract methods at the top.
"""

import re
from abc import ABC, abstractmethod
from fractions import Fraction
from functools import reduce

from magistral_jax.verifier.math import digits
from magistral_jax.verifier.math.caps import MAX_DEPTH, MAX_NODES, MAX_TERMS, Unreadable
from magistral_jax.verifier.math.exact import exact
from magistral_jax.verifier.math.matrices import determinant
from magistral_jax.verifier.math.nodes import (
    EMPTY_SET,
    Apply,
    Constant,
    Group,
    Matrix,
    Measured,
    Node,
    Num,
    Symbol,
    Words,
    replaced,
    variables,
    walk,
)

_FUNCTION_NAMES = (
    "sin cos tan cot sec csc arcsin arccos arctan arccot arcsec arccsc sinh cosh tanh coth arsinh "
    "arcosh artanh arcoth log ln lg exp cis"
)
FUNCTIONS = frozenset(_FUNCTION_NAMES.split())
_INVERSES = {name: f"arc{name}" for name in ("sin", "cos", "tan", "cot", "sec", "csc")} | {
    name: f"ar{name}" for name in ("sinh", "cosh", "tanh", "coth")
}
_CALLS = frozenset(["max", "min", "gcd", "lcm", "abs", "floor", "ceil", "cbrt"])
_GREEK_NAMES = (
    "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi rho sigma tau "
    "upsilon phi chi psi omega Gamma Delta Theta Lambda Xi Pi Sigma Phi Psi Omega ell"
)
_NAMES = frozenset(_GREEK_NAMES.split())
_ACCENTS = ("overline", "vec", "hat", "tilde", "overrightarrow", "widehat", "dot")
_MATRICES = ("pmatrix", "bmatrix", "Bmatrix", "matrix", "smallmatrix", "vmatrix", "array")
_CLOSING = {"(": (")", "]"), "[": ("]", ")"), r"\{": (r"\}",), r"\langle": (r"\rangle",)}
_TOKEN = re.compile(r'\\[A-Za-z]+|\\.|"[^"]*"|.', re.DOTALL)
_SUBSCRIPT = re.compile(r"_ ?(?:\{([A-Za-z0-9+\-*,. \"\\]{1,20})\}|([A-Za-z0-9]))")
_UNIT_NAMES = "cm mm km nm dm ft yd mi kg mg lb oz hr ml mL kw hz pa qt pt"
_TWO_LETTER_UNITS = frozenset(_UNIT_NAMES.split())
_NUMBER_START = re.compile(r"[0-9]|\.[0-9]")


class Atoms(ABC):
    """A position in a text, and the reading of what is smallest there."""

    def __init__(self, text: str) -> None:
        self.text, self.at, self.depth, self.bars, self.in_builder = text, 0, 0, 0, False
        self.tries = 0

    @abstractmethod
    def statements(self) -> Node: ...

    @abstractmethod
    def union(self) -> Node: ...

    @abstractmethod
    def relation(self) -> Node: ...

    @abstractmethod
    def power(self) -> Node: ...

    @abstractmethod
    def term(self) -> Node: ...

    def skip(self) -> int:
        while self.at < len(self.text) and self.text[self.at] == " ":
            self.at += 1
        return self.at

    def is_at_end(self) -> bool:
        return self.skip() >= len(self.text)

    def peek(self) -> str:
        """The next token, or "" at the end."""
        match = _TOKEN.match(self.text, self.skip())
        return match[0] if match else ""

    def take(self, token: str) -> bool:
        if self.peek() != token:
            return False
        self.at += len(token)
        return True

    def need(self, *tokens: str) -> str:
        for token in tokens:
            if self.take(token):
                return token
        raise Unreadable(f"no {tokens[0]} at position {self.at}")

    def take_word(self, word: str) -> bool:
        token = self.peek()
        if token[:1] != '"' or token[1:-1].lower() != word:
            return False
        self.at += len(token)
        return True

    def peek_number(self) -> bool:
        return _NUMBER_START.match(self.text, self.skip()) is not None

    def begins_factor(self) -> bool:
        """True if what comes next multiplies what came before."""
        token = self.peek()
        if not token or token in ")]}|,;:=<>+-*/^!_&'%°":
            return token == "|" and self.bars == 0 and not self.in_builder
        if token[0] == '"':
            return len(token) == 3 or token[1:-1] in _TWO_LETTER_UNITS
        if token[0] == "\\" and len(token) > 1:
            return token[1:] in FUNCTIONS | _CALLS | _NAMES | _FACTOR_COMMANDS
        return token.isalnum() or token in "([{." or token == "\\{"

    def atom(self) -> Node:
        if self.depth > MAX_DEPTH:
            raise Unreadable("depth")
        self.depth += 1
        try:
            return self._atom()
        finally:
            self.depth -= 1

    def _atom(self) -> Node:
        start = self.skip()
        if number := digits.number(self.text, start):
            self.at = number[1]
            return number[0]
        token = self.peek()
        self.at += len(token)
        if token in _CLOSING:
            return self.bracketed(token)
        if token == "{":
            inner = self.statements()
            self.need("}")
            return inner
        if token == "|":
            self.bars += 1
            inner = self.union()
            self.need("|")
            self.bars -= 1
            return Apply("abs", (inner,))
        if token.startswith("\\") and len(token) > 1:
            return self.command(token[1:])
        if token.startswith('"'):
            return self.words(token)
        if token.isascii() and token.isalpha():
            return self.letter(token)
        raise Unreadable(f"{token!r} at position {start}")

    def argument(self) -> Node:
        """What a command takes: a brace group, one digit, one letter, or a command of its own."""
        token = self.peek()
        if token.isdigit():
            self.at += 1
            return Num(Fraction(int(token)))
        if token == "(":
            raise Unreadable("a round bracket where a brace belongs")
        if not token or token in ")]}|,;:=<>+-*/^!_&'%°":
            raise Unreadable("no argument")
        return self.atom()

    def bracketed(self, opening: str) -> Node:
        bars, self.bars = self.bars, 0
        inside, self.in_builder = self.in_builder, opening == r"\{"
        try:
            if opening == r"\{" and self.take(r"\}"):
                return EMPTY_SET
            inner = self.statements()
            if opening == r"\{" and (self.take("|") or self.take(":")):
                inner = Apply("builder", (inner, self.statements()))
                self.need(r"\}")
                return inner
            closing = self.need(*_CLOSING[opening])
        finally:
            self.bars, self.in_builder = bars, inside
        is_bare_list = isinstance(inner, Group) and inner.opening == ""
        if opening == "(" and closing == ")" and not is_bare_list:
            return inner
        items = inner.items if isinstance(inner, Group) and is_bare_list else (inner,)
        return Group(opening.strip("\\"), closing.strip("\\"), items)

    def words(self, token: str) -> Node:
        word = token[1:-1]
        if len(word) == 1:
            return self.letter(word)
        if word in _TWO_LETTER_UNITS:
            return Apply("*", (Symbol(word[0]), Symbol(word[1])))
        found = [word]
        while self.peek().startswith('"') and self.peek()[1:-1].lower() not in ("or", "and"):
            token = self.peek()
            found.append(token[1:-1])
            self.at += len(token)
        return Words(" ".join(found).lower())

    def letter(self, first: str) -> Node:
        """A variable, a constant, or a run of letters that is one name."""
        run = re.compile(r"[A-Za-z]*").match(self.text, self.at)
        rest = run[0] if run else ""
        if first.isupper() and rest and rest.isupper():
            self.at += len(rest)
            return self.named(first + rest)
        if first == "d" and len(rest) == 1:
            self.at += 1
            return self.named(first + rest)
        if first in ("e", "i") and not self.text.startswith("_", self.at):
            return Constant(first)
        if first in "fgh" and self.text[self.at : self.at + 1] in ("(", "'"):
            return self.function_value(first)
        return self.named(first)

    def special_value(self, name: str) -> Node:
        r"""\Gamma(\frac14), \zeta(3): a number of its own, where it is no pole."""
        argument = exact(self.atom())
        if argument is None or argument <= _LEAST[name]:
            raise Unreadable(f"a value of the function {name}")
        return Symbol(f"{name}({argument})")

    def function_value(self, name: str) -> Node:
        """f(x), f'(x), f(2): a quantity of its own."""
        match = re.compile(r"'*\(([A-Za-z0-9, +\-]{1,20})\)").match(self.text, self.at)
        if match is None:
            raise Unreadable("a function's value")
        self.at = match.end()
        return Symbol(name + match[0].replace(" ", ""))

    def named(self, name: str) -> Node:
        if match := _SUBSCRIPT.match(self.text, self.skip()):
            self.at = match.end()
            inner = (match[1] or match[2]).replace(" ", "").replace('"', "")
            name = f"{name}_{{{inner}}}"
        while self.take("'"):
            name += "'"
        return Symbol(name)

    def command(self, name: str) -> Node:
        if name in FUNCTIONS:
            return self.function(name)
        if name in _CALLS:
            opening = self.need("(", "{", r"\{")
            inner = self.statements()
            self.need({"(": ")", "{": "}"}.get(opening, r"\}"))
            is_list = isinstance(inner, Group) and inner.opening == ""
            items = inner.items if isinstance(inner, Group) and is_list else (inner,)
            if name == "cbrt":
                return Apply("root", (*items, Num(Fraction(3))))
            return Apply(name, items)
        if name in _NAMES:
            if name in _LEAST and self.peek() == "(":
                return self.special_value(name)
            return self.named(name)
        if name in _ACCENTS:
            inner = self.argument()
            if name == "overline" and not variables(inner) and Constant("i") in walk(inner):
                return Apply("conjugate", (inner,))
            if not isinstance(inner, Symbol | Constant):
                raise Unreadable("an accent over more than a name")
            return self.named(f"{name}({inner.name})")
        match name:
            case "frac":
                return self.fraction()
            case "sqrt":
                return self.root()
            case "binom":
                return Apply("binom", (self.argument(), self.argument()))
            case "pi" | "infty":
                return Constant("pi" if name == "pi" else "oo")
            case "emptyset":
                return EMPTY_SET
            case "mathbb":
                return self.number_set()
            case "lfloor" | "lceil":
                inner = self.union()
                self.need(r"\r" + name[1:])
                return Apply(name[1:], (inner,))
            case "begin":
                return self.matrix()
            case "sum" | "prod":
                return self.series("+" if name == "sum" else "*")
            case "det":
                return determinant(self.atom())
            case "angle":
                inner = self.atom()
                if isinstance(inner, Symbol):
                    return Symbol(f"angle {inner.name}")
        raise Unreadable(f"the command {name}")

    def number_set(self) -> Node:
        self.need("{")
        self.need("R")
        self.need("}")
        return Constant("R")

    def series(self, operation: str) -> Node:
        r"""\sum_{k=1}^{10} k written out; other bounds than numbers are not read."""
        self.need("_")
        self.need("{")
        letter = self.letter_here()
        name = Constant("i") if letter == "i" else self.named(letter)
        self.need("=")
        first = exact(self.union())
        self.need("}")
        self.need("^")
        last = exact(self.argument())
        if first is None or last is None or first.denominator != 1 or last.denominator != 1:
            raise Unreadable("a series without numbers as its bounds")
        if not 0 <= last - first < MAX_TERMS:
            raise Unreadable("a series of no terms, or of more than the cap")
        body = self.term()
        if any(re.search(rf"(?<![A-Za-z]){letter}(?![A-Za-z])", n[1:]) for n in variables(body)):
            raise Unreadable("an index inside a name")
        if sum(1 for _ in walk(body)) * int(last - first + 1) > MAX_NODES:
            raise Unreadable("a series of more nodes than the cap")
        terms = [replaced(body, name, Num(first + i)) for i in range(int(last - first) + 1)]
        if operation == "+":
            return Apply("+", tuple(terms))
        return reduce(lambda a, b: Apply("*", (a, b)), terms)

    def letter_here(self) -> str:
        token = self.peek()
        if not (token.isascii() and token.isalpha()):
            raise Unreadable("no name")
        self.at += 1
        return token

    def fraction(self) -> Node:
        top = self.argument()
        is_braced = self.text[self.at - 1] == "}"
        bottom = self.argument()
        is_braced = is_braced and self.text[self.at - 1] == "}"
        if not is_braced and self.text[self.at : self.at + 1].isdigit():
            raise Unreadable("digits behind a fraction")
        return Apply("/", (top, bottom))

    def root(self) -> Node:
        degree: Node = Num(Fraction(2))
        if self.take("["):
            degree = self.union()
            self.need("]")
        if self.peek() == "(":
            return Apply("root", (self.atom(), degree))
        inner = self.argument()
        is_digit = self.text[self.at - 1].isdigit()
        if is_digit and self.text[self.at : self.at + 1].isdigit():
            raise Unreadable("digits behind a root")
        return Apply("root", (inner, degree))

    def function(self, name: str) -> Node:
        base: Node | None = None
        exponent: Node | None = None
        for _ in range(2):
            if name == "log" and base is None and self.take("_"):
                base = self.argument()
            elif exponent is None and self.take("^"):
                sign = self.take("-")
                exponent = self.argument()
                exponent = Apply("neg", (exponent,)) if sign else exponent
        inner = self.function_argument()
        if exponent in (Apply("neg", (Num(Fraction(1)),)), Num(Fraction(-1))):
            if name not in _INVERSES:
                raise Unreadable("the inverse of a function")
            return Apply(_INVERSES[name], (inner,))
        if name == "cis":
            return Apply("^", (Constant("e"), Apply("*", (Constant("i"), inner))))
        node = Apply(name, (inner,) if base is None else (inner, base))
        return node if exponent is None else Apply("^", (node, exponent))

    def function_argument(self) -> Node:
        if self.peek() in ("(", "{", "["):
            opening = self.peek()
            self.at += 1
            inner = self.union()
            self.need({"(": ")", "{": "}", "[": "]"}[opening])
            return inner
        if self.take("-"):
            return Apply("neg", (self.function_argument(),))
        node = self.power()
        while self.begins_factor():
            token = self.peek()
            if token.startswith("\\") and token[1:] in FUNCTIONS:
                break
            if token in ("(", "[") or self.peek_number():
                raise Unreadable("where a function's argument ends")
            node = Apply("*", (node, self.power()))
        return node

    def matrix(self) -> Node:
        name = self._environment()
        if name not in _MATRICES:
            raise Unreadable(f"the environment {name}")
        if name == "array":
            self._environment()
        rows, row = [], [self.relation()]
        while True:
            if self.take("&"):
                row.append(self.relation())
            elif self.take(r"\\"):
                rows.append(tuple(row))
                if self.peek() == r"\end":
                    row = []
                    break
                row = [self.relation()]
            else:
                break
        self.need(r"\end")
        if self._environment() != name:
            raise Unreadable("an environment's end")
        rows = [*rows, tuple(row)] if row else rows
        if len({len(row) for row in rows}) != 1:
            raise Unreadable("rows of different length")
        matrix = Matrix(tuple(rows))
        return determinant(matrix) if name == "vmatrix" else matrix

    def _environment(self) -> str:
        match = re.compile(r'\s*\{"?([a-zA-Z|]+)"?\}').match(self.text, self.at)
        if match is None:
            raise Unreadable("an environment's name")
        self.at = match.end()
        return match[1]

    def postfix(self, node: Node) -> Node:
        while True:
            if self.take("%"):
                node = Apply("/", (node, Num(Fraction(100))))
            elif self.take("!"):
                if self.peek() == "!":
                    raise Unreadable("a double factorial")
                node = Apply("factorial", (node,))
            elif self.take("°"):
                node = self.degrees(node)
            else:
                return node

    def degrees(self, node: Node) -> Node:
        for letter, name in (("C", "celsius"), ("F", "fahrenheit")):
            if self.take(letter) or self.take(f'"{letter}"'):
                return Measured(node, Fraction(1), ((name, 1),))
        return Apply("degree", (node,))


_LEAST = {"Gamma": 0, "zeta": 1}
"""Functions that are read above these arguments only, where they have no pole."""
_FACTOR_COMMANDS = frozenset(
    (
        "frac",
        "sqrt",
        "binom",
        "pi",
        "sum",
        "prod",
        "emptyset",
        "lfloor",
        "lceil",
        "begin",
        "mathbb",
        *_ACCENTS,
    )
)
