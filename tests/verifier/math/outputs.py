r"""Whole outputs and the answer that each gives: ways to conclude, times what is concluded."""

VALUES = ["42", "-7", r"\frac{3}{4}", r"2\sqrt{5}", "(3, -1)", "12.5"]
PLAIN = ["42", "-7", "3/4", "12.5", "1,250"]

MATH_ENDINGS = [
    r"<think>First $1$, then $\boxed{0}$.</think>Hence \boxed{@}.",
    r"So the result is \(\boxed{@}\).",
    "Adding up:\n\\[\n\\boxed{@}\n\\]",
    r"Case one gives \boxed{99}. But it fails, so $\boxed{ @ }$",
    r"<think>hm</think> **Final Answer**" "\n\n" r"\[ \boxed{@} \]" "\n\nI hope this helps.",
    r"The value is $\boxed{@}$, not \boxed{17",
    r"\boxed{\text{wrong}} was my first try; now \boxed{\displaystyle @}. Check: $5 = 5$.",
    "We get $x + 1 = 9$.\nThe answer is $@$.",
    r"After 12 steps, the final answer is \(@\).",
    "Some work.\n\nFinal Answer: $@$",
    "**Answer:** $@$",
    "**Answer**: $@$\n",
    "Answer: $$@$$",
    "### Final answer\n\nThe final answer is:\n\n$$@$$",
    "Since $a = 3$ and $b = 4$, we are done.\n\\[\n@\n\\]",
    "The answer to the problem is $@$.",
    "So the answer is: **$@$**",
    "I first thought the answer is $1$. On reflection the answer is $@$.",
    "<think>Is the answer is 5? Maybe.</think>\nThe answer is $@$.",
    "We conclude that the requested quantity equals $@$.",
    "Total for $n = 3$: $$1 + 1 = 2.$$ In the end we find $$@$$",
    r"<think>a</think>Thus the correct answer is $@$ because $1 < 2$.",
]
PLAIN_ENDINGS = [
    "Tom has 3 and 4.\n#### @",
    "The answer is @.",
    "the final answer is @",
    "Answer: @",
    "There are 7 days and 24 hours.\nANSWER: @",
    "Work with 8 and 9.\n\n**Answer: @**",
    "Thus we have 12 of them, and the answer is: @.",
    "It follows after 3 steps that the result is\n\n**@**",
    "@",
    "  @  \n",
    "<think>3, or 4?</think>\n@",
    "<think>3, or 4?</think>The answer is @, since 2 is even.",
    "Half of them and 3 more make **@**.",
    "She started with 3, and bought 9, so in total she has @",
    "First 3, then 9.\n\nSo it must be @.",
]
CHOICES = [
    ("**Final Answer**\n42", "42"),
    ("## Answer\n\n$x = 4$", "4"),
    ("<think>7</think><answer>42</answer>", "42"),
    ("Reasons.\n<answer> $\\frac12$ </answer>", "1/2"),
    ("I choose option (B).", "B"),
    ("Therefore the right choice is choice D.", "D"),
    ("The answer is exactly 42 (since $6 \\cdot 7 = 42$).", "42"),
    ("**The answer is 42.**", "42"),
    ("The answer is 42, and we are done.", "42"),
    ("Thus $x = 3$ and $y = 4$, so that $x + y = 7$.", "7"),
    ("We add: $$1 + 1 = 2.$$", "2"),
    ("The line is $y = 2x + 1$.", "y=2x+1"),
    ("Total = $45.50.", "45.5"),
    ("There are 12 apples left.", "12"),
    ("#### $18", "18"),
    ("The answer is $4$ or $5$.", "4 or 5"),
    ("The answer is $4$ or 5.", "4 or 5"),
    ("The answer is **4** or **5**.", "4 or 5"),
    ("Donc la réponse est 42.", "42"),
    ("La respuesta es $42$.", "42"),
    ("因此答案是 $42$。", "42"),
    ("Die Antwort ist: 42", "42"),
    ("So the sum is 3 + 4 = 7.", "7"),
    (r"Hence x = \sqrt{2}.", r"\sqrt2"),
    (r"The probability of that comes out as \frac{1}{3} in the long run.", "1/3"),
    ("The correct answer is (C).", "C"),
    ("Answer: C", "C"),
    ("The answer is **B**.", "B"),
    (r"Thus \boxed{\textbf{(D)}\ 12}", "D"),
    ("<think>A or B</think>\nThe correct option is E, so the answer is E.", "E"),
    (r"The answer is $\text{(A)}$.", "A"),
    ("**Answer: (B)**", "B"),
    ("Final answer: yes", "Yes"),
    ("So the answer is no.", "No"),
    ("The answer is $x = 5$.", "5"),
    (r"Hence \boxed{x = 5}.", "x=5"),
    ("The answer is 50%.", r"50\%"),
    ("The answer is $5.50.", "5.5"),
    ("She pays $5 and then $7, so the answer is $12.", "12"),
    ("She pays $5 and then $7, which is $12 in total.", "12"),
    ("The answer is 10 cm.", r"10\text{ cm}"),
    ("The answer is 1, 2, 3.", "1, 2, 3"),
    (r"Answer: \frac{1}{2}", "1/2"),
    (r"The answer is \frac{1}{2}.", "0.5"),
    ("The final answer is $\\{1, 2\\}$.", r"\{2, 1\}"),
    (r"\[x = 3 \quad\text{so}\quad \boxed{9}\]", "9"),
    (r"\boxed{\begin{pmatrix}1\\2\end{pmatrix}}", r"\begin{pmatrix}1\\2\end{pmatrix}"),
    (
        r"\boxed{\{1,\{2\}\}}" " is wrong; it is " r"\boxed{\left\{ \frac{1}{2} \right\}}",
        r"\{0.5\}",
    ),
    (r"the answer is $\boxed{4}$ or so I think, $5$", "4"),
]
NONE = ["", "   ", "I do not know.", "<think>42</think>", r"no box \boxed{ here", "</think>"]


def outputs() -> list[tuple[str, str]]:
    """Pairs of a whole output and its answer."""
    found = [(e.replace("@", v), v) for e in MATH_ENDINGS for v in VALUES]
    found += [(e.replace("@", v), v) for e in PLAIN_ENDINGS for v in PLAIN]
    return found + CHOICES


OUTPUTS = outputs()
