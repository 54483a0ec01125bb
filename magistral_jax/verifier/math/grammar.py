r"""A cleaned answer read into a tree, by recursive descent. Nothing is evaluated.

What is ambiguous is not read, so that it equals only its own text: `a/bc`, `\sin x(x+1)`,
`\sqrt12`, `1/2x` is the coefficient 1/2 only where both parts are numbers. Decisions:
- `2\frac{1}{2}` and `2 1/2` are mixed numbers; other numbers side by side are not read;
- `^10` is the exponent ten, as in plain text;
- f, g and h before a bracket are functions, other letters factors unless an equals sign follows;
- a number behind a factor is read if it is a power or factorial: n(n+1)2^n, n2^n, but not x2^3;
- two or more capitals in a row are one name (a segment), so AB is not BA;
- d and a letter are a differential, no product.
"""

import re
from collections.abc import Callable
from fractions import Fraction

from magistral_jax.verifier.math import digits, units
from magistral_jax.verifier.math.atoms import Atoms
from magistral_jax.verifier.math.caps import MAX_DEPTH, Unreadable
from magistral_jax.verifier.math.nodes import (
    Apply,
    Constant,
    Group,
    Joined,
    Measured,
    Node,
    Num,
    Relation,
    Symbol,
    Words,
    is_expression,
    variables,
)
from magistral_jax.verifier.math.words import SCALES

_RELATIONS = {
    "=": "=",
    "<": "<",
    ">": ">",
    r"\le": "<=",
    r"\ge": ">=",
    r"\ne": "!=",
    r"\in": "in",
} | {r"\approx": "~"}
_NEW_FACTOR = re.compile(r"\s*[0-9]+ ?[!^]")
_NEW_POWER = re.compile(r"\s*[0-9]+ ?\^ ?(?:[A-Za-z]|\{[^{}]*[A-Za-z])")
_FUNCTION_NAME = re.compile(r" *([A-Za-z])(\([A-Za-z0-9, ]{1,20}\)) ?(?==)")
_SCALE_WORDS = re.compile(r'\s*"(dozen|hundred|thousand|million|billion|trillion)"', re.IGNORECASE)


def parse(text: str) -> Node:
    """The tree of a cleaned text. Raises Unreadable for what is not in the grammar."""
    return Parser(text).whole()


class Parser(Atoms):
    """Each method reads one level of the grammar, loosest first, from where the last stopped."""

    def whole(self) -> Node:
        node = self.statements()
        if not self.is_at_end():
            raise Unreadable(f"what follows position {self.at}")
        return node

    def statements(self) -> Node:
        """A bare list, or its only item."""
        items, words = [self.either()], set[str]()
        separators = set[str]()
        while (separator := self.peek()) in (",", ";") and self.take(separator):
            separators.add(separator)
            for word in ("and", "or"):
                if self.take_word(word):
                    words.add(word)
            items.append(self.either())
        if len(items) == 1:
            return items[0]
        if len(separators) > 1:
            raise Unreadable("commas and semicolons in one list")
        last = items[-1]
        # 1, 2 or 3: the last comma is a word
        if isinstance(last, Joined) and last.word == "or":
            items, words = [*items[:-1], *last.items], {"or"}
        if isinstance(last, Group) and last.opening == "" and words != {"or"}:
            items = [*items[:-1], *last.items]
        if "or" in words:
            return Joined("or", tuple(items))
        return Group("", "", tuple(items))

    def either(self) -> Node:
        items = [self.both()]
        while self.take_word("or"):
            items.append(self.both())
        return items[0] if len(items) == 1 else Joined("or", tuple(items))

    def both(self) -> Node:
        items = [self.relation()]
        while self.take_word("and"):
            items.append(self.relation())
        if len(items) == 1:
            return items[0]
        if any(isinstance(item, Relation) and item.signs != ("=",) for item in items):
            return Joined("and", tuple(items))
        return Group("", "", tuple(items))

    def relation(self) -> Node:
        parts, signs = [self.named_function() or self.ratio()], []
        while sign := self.take_relation():
            signs.append(sign)
            parts.append(self.ratio())
        return Relation(tuple(parts), tuple(signs)) if signs else parts[0]

    def named_function(self) -> Node | None:
        """N(n) in front of an equals sign, where no product can be meant."""
        match = _FUNCTION_NAME.match(self.text, self.at)
        if match is None:
            return None
        self.at = match.end()
        return Symbol(match[1] + match[2].replace(" ", ""))

    def take_relation(self) -> str | None:
        for spelling, sign in _RELATIONS.items():
            if self.take(spelling):
                return sign
        return None

    def ratio(self) -> Node:
        items = [self.union()]
        while not self.in_builder and self.take(":"):
            items.append(self.union())
        return items[0] if len(items) == 1 else Apply("ratio", tuple(items))

    def union(self) -> Node:
        node = self.intersection()
        while True:
            if self.take(r"\cup"):
                node = Apply("cup", (node, self.intersection()))
            elif self.take(r"\setminus"):
                node = Apply("setminus", (node, self.intersection()))
            else:
                return node

    def intersection(self) -> Node:
        node = self.quantity()
        while self.take(r"\cap"):
            node = Apply("cap", (node, self.quantity()))
        return node

    def quantity(self) -> Node:
        """A sum, with its unit; hours (and) minutes one after the other add up."""
        node = self.measured(self.sum())
        while isinstance(node, Measured):
            before = self.at
            self.tries += 1
            if self.tries > MAX_DEPTH:  # each goes over the rest of the text twice
                raise Unreadable("quantities inside quantities")
            is_linked = self.take_word("and")
            if not self.peek_number():
                self.at = before
                break
            more = self.measured(self.product())
            if is_linked and not _is_part(more, node):  # 2 hours and 3 hours are two answers
                self.at = before
                break
            if not isinstance(more, Measured) or more.dimension != node.dimension:
                raise Unreadable("two quantities in a row")
            total = Apply("+", (_scaled(node), _scaled(more)))
            node = Measured(total, Fraction(1), node.dimension)
        return node

    def measured(self, node: Node) -> Node:
        while scale := _SCALE_WORDS.match(self.text, self.at):
            node = Apply("*", (node, Num(Fraction(SCALES[scale[1].lower()]))))
            self.at = scale.end()
        if self.take_word("percent") or self.take_word("pct"):
            return Apply("/", (node, Num(Fraction(100))))
        if isinstance(node, Words) or (unit := units.read(self.text, self.at)) is None:
            return node
        factor, dimension, self.at = unit
        return Measured(node, factor, dimension)

    def sum(self) -> Node:
        terms = []
        sign = self.take_sign() or "+"
        while sign:
            term = self.product()
            terms.append(term if sign == "+" else Apply(_SIGNED[sign], (term,)))
            sign = self.take_sign()
        return terms[0] if len(terms) == 1 else Apply("+", tuple(terms))

    def take_sign(self) -> str | None:
        for sign in ("+", "-", r"\pm", r"\mp"):
            if self.take(sign):
                return sign
        return None

    def term(self) -> Node:
        """What a \\sum or \\prod goes over: all up to the next sign."""
        return self.product()

    def product(self) -> Node:
        node, divided = self.unary(), False
        while True:
            if self.take("*"):
                node = Apply("*", (node, self.unary()))
            elif self.take("/"):
                divisor = self.unary()
                divided = not (isinstance(node, Num) and isinstance(divisor, Num))
                node = Apply("/", (node, divisor))
            elif self.begins_factor() and not self.begins_unit(node):
                if divided:
                    raise Unreadable("a factor behind a quotient")
                node = self.beside(node)
            else:
                return node

    def begins_unit(self, node: Node) -> bool:
        """True if a word in text mode stands behind a number: a metre, not a factor m."""
        is_word = self.peek().startswith('"') and not variables(node)
        return is_word and units.read(self.text, self.at) is not None

    def beside(self, node: Node) -> Node:
        """The product with the next factor, or the mixed number."""
        is_number, start = isinstance(node, Num), self.at
        starts_with_digit = self.peek_number()
        factor = _ungrouped(self.power())
        wrap, factor = _unwrapped(factor)
        if not is_number or not (starts_with_digit or _is_plain_fraction(factor)):
            factor = wrap(factor)
            is_new_factor = self.begins_new_factor(node, start)
            if starts_with_digit and not is_new_factor:
                raise Unreadable("a number behind a factor")
            return Apply("*", (node, factor))
        assert isinstance(node, Num)
        if starts_with_digit:
            if not self.take("/"):
                raise Unreadable("two numbers in a row")
            factor = Apply("/", (factor, self.atom()))
            wrap = self.postfix if self.peek() in ("%", "°") else wrap
        whole, part = node.value, digits_of(factor)
        if part is None or whole.denominator != 1 or whole == 0 or not 0 < part < 1:
            raise Unreadable(f"no mixed number at position {start}")
        return wrap(Apply("+", (node, factor)))

    def begins_new_factor(self, node: Node, start: int) -> bool:
        r"""True for 2^n or 4! behind what no digit can belong to: n(n+1)2^n, \frac{n}{3}2^n."""
        if self.text[:start].rstrip()[-1:] in (")", "}"):
            return _NEW_FACTOR.match(self.text, start) is not None
        last = node.args[-1] if isinstance(node, Apply) and node.name == "*" else node
        if isinstance(last, Symbol):  # n2^n, but not x2^3
            return len(last.name) == 1 and _NEW_POWER.match(self.text, start) is not None
        return _NEW_FACTOR.match(self.text, start) is not None and _may_touch_digits(last)

    def unary(self) -> Node:
        if self.take("-"):
            return Apply("neg", (self.unary(),))
        if self.take("+"):
            return self.unary()
        return self.power()

    def power(self) -> Node:
        node = self.postfix(self.atom())
        if self.peek() == "^" or self.begins_factor():
            node = _ungrouped(node)
        if not self.take("^"):
            return node
        exponent = self.exponent()
        if isinstance(node, Constant) and node.name in ("R", "oo"):
            raise Unreadable("a power of a set")
        return self.postfix(Apply("^", (node, exponent)))

    def exponent(self) -> Node:
        if self.take("-"):
            return Apply("neg", (self.exponent(),))
        if self.peek() != "{" and (number := digits.number(self.text, self.skip())):
            self.at = number[1]
            node = number[0]
        else:
            node = self.atom() if self.peek() == "(" else self.argument()
        if self.take("^"):
            return Apply("^", (node, self.exponent()))
        return node


def _ungrouped(node: Node) -> Node:
    """A sum in square brackets that only group it: in 2[x + 3] and [x + 1]^2, but not in [x]^2."""
    match node:
        case Group("[", "]", (Apply("+") as inner,)) if is_expression(inner):
            return inner
        case _:
            return node


_SIGNED = {"-": "neg", r"\pm": "pm", r"\mp": "mp"}


def _scaled(node: Measured) -> Node:
    return Apply("*", (node.value, Num(node.factor)))


def _is_plain_fraction(node: Node) -> bool:
    return digits_of(node) is not None and isinstance(node, Apply)


def _may_touch_digits(node: Node) -> bool:
    """True behind 3! and (-1)^n, where 4! and 2^n can only be new factors."""
    is_power = isinstance(node, Apply) and node.name == "^" and bool(variables(node))
    return is_power or (isinstance(node, Apply) and node.name == "factorial")


def _is_part(more: Node, node: Measured) -> bool:
    """Minutes behind hours."""
    return (
        isinstance(more, Measured)
        and more.dimension == node.dimension
        and more.factor < node.factor
    )


def _unwrapped(node: Node) -> tuple[Callable[[Node], Node], Node]:
    r"""What % or ° made of a fraction, and the fraction: in 33\frac13% they mean the whole."""
    match node:
        case Apply("/", (Apply() as inner, Num(hundred))) if hundred == 100:
            return lambda whole: Apply("/", (whole, Num(Fraction(100)))), inner
        case Apply("degree", (inner,)):
            return lambda whole: Apply("degree", (whole,)), inner
        case _:
            return lambda whole: whole, node


def digits_of(node: Node) -> Fraction | None:
    """The value of a fraction of two whole numbers, as spelled."""
    match node:
        case Apply("/", (Num(top), Num(bottom))) if (
            top.denominator == bottom.denominator == 1 and bottom != 0
        ):
            return top / bottom
        case _:
            return None
