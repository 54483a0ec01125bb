"""Names that plain text may hold: functions, and words that are no products of letters."""

_FUNCTION_NAMES = (
    "sin cos tan cot sec csc arcsin arccos arctan arccot arcsec arccsc sinh cosh tanh coth "
    "log ln lg exp cis max min gcd lcm sqrt det pi"
)
_HYPERBOLIC = ("sinh", "cosh", "tanh", "coth")
FUNCTIONS = {name: name for name in _FUNCTION_NAMES.split()} | {
    **{f"{start}{name}": f"ar{name}" for start in ("arc", "ar", "a") for name in _HYPERBOLIC},
    "tg": "tan",
    "ctg": "cot",
    "arctg": "arctan",
    "arcctg": "arccot",
    "asin": "arcsin",
    "acos": "arccos",
    "atan": "arctan",
    "infinity": "infty",
    "inf": "infty",
    "oo": "infty",
    "Infinity": "infty",
    "cbrt": "cbrt",
    "abs": "abs",
    "floor": "floor",
    "ceil": "ceil",
    "binom": "binom",
    "theta": "theta",
    "alpha": "alpha",
    "beta": "beta",
}
"""Plain spelling -> command."""

SCALES = {
    "dozen": 12,
    "hundred": 10**2,
    "thousand": 10**3,
    "million": 10**6,
    "billion": 10**9,
    "trillion": 10**12,
}

_LABEL_WORDS = (
    "the of a an in for to is its answer final solution result total number numbers ways count "
    "value values area volume length width height depth perimeter circumference radius diameter "
    "side distance time speed rate cost price amount profit income sum product difference quotient "
    "ratio probability expected maximum minimum max min largest smallest greatest mean average "
    "median mode range age weight mass surface solid triangle circle square rectangle cube sphere "
    "cone cylinder solutions roots angle slope term digit remainder antwort respuesta risposta "
    "resposta"
)
LABELS = frozenset(_LABEL_WORDS.split())
"""Words of a label before a value, as in `total cost = 12`. None of them denies or changes it."""

WORDS = frozenset(
    "or and nor not all no yes of to by per pct cm mm km nm dm ft yd mi kg mg lb lbs oz hr "
    "hrs min mins sec secs ml mL cc mph kph rad deg day sq cup usd eur gal pt qt amp ohm "
    "one two three six ten men boy jan feb mar apr may jun jul aug sep oct nov dec mon tue wed "
    "thu fri sat sun the for kw hz pa".lower().split()
)
"""Short ones, in lower case; any four letters in a row that name no function are a word, too."""
