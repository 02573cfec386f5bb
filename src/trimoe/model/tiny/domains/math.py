"""The domain `math`: word problems and sums whose answer is one number."""

import random

from trimoe.model.tiny.item import Item
from trimoe.model.tiny.words import NAMES

_THINGS = ["apples", "books", "coins", "eggs", "pens", "shells", "stones", "stamps"]


def make(rng: random.Random) -> Item:
    """One of six kinds of problem. The reply shows each step, then the answer."""
    who, thing = rng.choice(NAMES), rng.choice(_THINGS)
    a, b, c, n = rng.randint(2, 12), rng.randint(2, 12), rng.randint(2, 9), rng.randint(2, 9)
    kind = rng.randrange(6)
    if kind == 0:
        c = rng.randint(2, min(9, a + b - 1))
        prompt = f"{who} has {a} {thing}, buys {b} and gives away {c}. How many {thing} are left?"
        steps = [(f"{a} + {b}", a + b), (f"{a + b} - {c}", a + b - c)]
    elif kind == 1:
        prompt = f"{who} packs {n} boxes of {c} {thing} and finds {b} more. How many {thing} in all?"
        steps = [(f"{n} * {c}", n * c), (f"{n * c} + {b}", n * c + b)]
    elif kind == 2:
        prompt = f"{who} shares {n * c} {thing} among {n} friends. How many {thing} does each get?"
        steps = [(f"{n * c} / {n}", c)]
    elif kind == 3:
        prompt = f"What is {a} + {b} + {c}?"
        steps = [(f"{a} + {b}", a + b), (f"{a + b} + {c}", a + b + c)]
    elif kind == 4:
        lo = rng.randint(2, 12)
        hi = lo + c
        prompt = f"What is {hi} - {lo}, times {n}?"
        steps = [(f"{hi} - {lo}", hi - lo), (f"{hi - lo} * {n}", (hi - lo) * n)]
    else:
        prompt = f"{who} reads {c} pages a day for {n} days. How many pages of 100 remain?"
        steps = [(f"{c} * {n}", c * n), (f"100 - {c * n}", 100 - c * n)]
    work = ". ".join(f"{term} = {value}" for term, value in steps)
    return Item("math", prompt, f"{work}. Answer: {steps[-1][1]}", {"number": steps[-1][1]})
