r"""Evaluate the formulas of docs/derivation.md: a parser of the LaTeX that the page uses, on concrete float64 arrays.

- Factors side by side are multiplied: as matrices, or as numbers where one is a number. A 1 × 1 matrix is a number.
- \odot needs two arrays of one shape and binds weaker than a product. A column is added to every column of a matrix.
- \sum reaches to the next + or - outside of brackets; \log, \max and the like take the factor that follows.
- W_1[k,j] is an element and W_1[:,j] a column, counted from 1; brackets that group are written \left[ and \right].
- \frac{\partial a}{\partial b} is the derivative, by a complex step, of a in every element of b.
- An index that nothing binds takes every value that its position allows; one index cannot run along axes of two sizes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from itertools import product as cartesian
from typing import Any

import numpy as np
from algebra import (
    STEP,
    Index,
    Node,
    Scope,
    ShapeMismatchError,
    Symbol,
    UnboundIndexError,
    add,
    differentiate,
    divide,
    hadamard,
    multiply,
    number,
    single,
    total,
)

TOKEN = re.compile(
    r"\s+|\\hat\{y\}|\\mathrm\{\w+\}|\\left[\[(]|\\right[\])]|\\[a-zA-Z]+|\d+(?:\.\d+)?|dZ|dW|db|dz|[a-zA-Z]|[-+=,:'^_()\[\]{}<>]"
)
FACTOR = re.compile(
    r"\w+|\(|\\left[\[(]|\\hat\{y\}|\\mathrm\{\w+\}|\\(?:frac|sum|sqrt|delta|theta|beta|epsilon|lambda|alpha|pi|sigma|log|max|min|tanh|Phi)"
)
FUNCTIONS = {r"\sigma", "f", r"\log", r"\max", r"\min", r"\tanh", r"\Phi", "softmax", "sigmoid"}


def undefined(scope: Scope) -> np.ndarray:
    """A fraction with a change above the line and none below."""
    raise ShapeMismatchError("a change that is divided by no change")


def combined(operation: Callable[..., Any], *parts: Node) -> Node:
    return lambda scope: operation(*(part(scope) for part in parts))


class Parser:
    """A recursive-descent parser; every method consumes tokens and returns what evaluates them."""

    def __init__(self, text: str, note: bool) -> None:
        self.tokens = [match.group() for match in TOKEN.finditer(text) if not match.group().isspace()]
        if "".join(self.tokens) != re.sub(r"\s+", "", text):
            raise SyntaxError(f"cannot read {text}")
        self.note, self.at = note, 0

    def peek(self, *expected: str) -> bool:
        return self.at < len(self.tokens) and self.tokens[self.at] in expected

    def accept(self, *expected: str) -> str | None:
        if not self.peek(*expected):
            return None
        self.at += 1
        return self.tokens[self.at - 1]

    def expect(self, token: str) -> None:
        if not self.accept(token):
            raise SyntaxError(f"expected {token} at {self.tokens[self.at :]}")

    def sides(self) -> list[Node]:
        sides = [self.sum()]
        while self.accept("="):
            sides.append(self.sum())
        if self.at < len(self.tokens):
            raise SyntaxError(f"cannot read {self.tokens[self.at :]}")
        return sides

    def sum(self) -> Node:
        sign = self.accept("-", "+")
        left = self.term()
        left = combined(np.negative, left) if sign == "-" else left
        while sign := self.accept("+", "-"):
            right = self.term()
            left = combined(add, left, combined(np.negative, right) if sign == "-" else right)
        return left

    def term(self) -> Node:
        left = self.product()
        while self.accept(r"\odot"):
            left = combined(hadamard, left, self.product())
        return left

    def product(self) -> Node:
        left = self.factor()
        while self.at < len(self.tokens) and FACTOR.fullmatch(self.tokens[self.at]):
            left = combined(multiply, left, self.factor())
        return left

    def factor(self) -> Node:
        value = self.atom()
        while self.accept("^"):
            if self.peek("{") and self.tokens[self.at + 1] == r"\top":
                self.at += 3
                value = combined(np.transpose, value)
            else:
                value = combined(np.power, value, self.group())
        return value

    def group(self) -> Node:
        """What stands in braces, or one token."""
        if not self.accept("{"):
            return self.atom()
        value = self.sum()
        self.expect("}")
        return value

    def atom(self) -> Node:
        token = self.tokens[self.at] if self.at < len(self.tokens) else "the end"
        self.at += 1
        if re.fullmatch(r"\d+(\.\d+)?", token):
            return lambda scope: np.asarray(float(token))
        if token == r"\frac":
            return self.fraction()
        if token == r"\sum":
            return self.sigma()
        if token == r"\sqrt":
            return combined(np.sqrt, self.group())
        if token in ("(", r"\left(", r"\left["):
            return self.brackets({"(": ")", r"\left(": r"\right)", r"\left[": r"\right]"}[token])
        if token == r"\vert":
            inside = self.sum()
            self.expect(r"\vert")
            return combined(lambda value: value * np.where(value.real < 0, -1, 1), inside)
        function = token.removeprefix(r"\mathrm{").rstrip("}")
        if function in FUNCTIONS:
            return self.function(function)
        if token == "e" and self.accept("^"):
            return combined(np.exp, self.group())
        if re.fullmatch(r"[a-zA-Z]+|\\hat\{y\}|\\(?:delta|theta|beta|epsilon|lambda|alpha|pi)", token):
            return self.symbol(token)
        raise SyntaxError(f"cannot read {token} in {''.join(self.tokens)}")

    def brackets(self, closing: str) -> Node:
        start = self.at
        inside = self.sum()
        if self.accept(","):
            return self.list(start, closing)
        if self.accept(">"):  # 1 where it holds, 0 where it does not
            inside = combined(lambda a, b: np.asarray(float(a.real > b.real)), inside, self.sum())
        self.expect(closing)
        return inside

    def list(self, start: int, closing: str) -> Node:
        r"""(first, second, \ldots, last): columns side by side. `second` may be left out."""
        end = next(k for k in range(self.at, len(self.tokens)) if self.tokens[k] == closing and self.balanced(start, k))
        text = self.tokens[start:end]
        dots = text.index(r"\ldots")
        last, first = text[dots + 2 :], text[: self.at - 1 - start]
        prefix = next(k for k, (a, b) in enumerate(zip(first, last, strict=False)) if a != b)
        suffix = len(first) - prefix - 1
        stop = Parser("".join(last[prefix : len(last) - suffix]).strip("{}"), self.note).index()

        def element(at: int) -> list[str]:
            return [*first[:prefix], str(at), *first[prefix + 1 :]]

        begin = int(first[prefix])
        if last[len(last) - suffix :] != first[prefix + 1 :] or text[self.at - start : dots] not in (
            [],
            [*element(begin + 1), ","],
        ):
            raise SyntaxError(f"cannot continue {''.join(text)}")
        self.at = end + 1

        def evaluate(scope: Scope) -> np.ndarray:
            columns = [
                Parser(" ".join(element(k)), self.note).sum()(scope) for k in range(begin, stop.value(scope) + 1)
            ]
            return number(np.hstack([column.reshape(-1, 1) for column in columns]))

        return evaluate

    def balanced(self, start: int, end: int) -> bool:
        text = self.tokens[start:end]
        return all(text.count(a) == text.count(b) for a, b in ("()", "{}", "[]"))

    def function(self, name: str) -> Node:
        slope = bool(self.accept("'"))
        if name in (r"\max", r"\min") and self.accept("_"):
            over = self.index()
            inside = self.symbol(self.letter())
            if inside.subscripts != (over,):
                raise SyntaxError(f"the largest {inside.name} over {over.name}")
            whole = Symbol(inside.name)
            return lambda scope: scope.network.functions[name](whole(scope), None)
        if name in (r"\max", r"\min"):
            self.expect("(")
            pair = [self.sum()]
            self.expect(",")
            pair.append(self.sum())
            self.expect(")")
            return lambda scope: scope.network.functions[name](*(side(scope) for side in pair))
        inside = self.atom() if self.peek("(") else self.factor()
        if slope:
            return lambda scope: np.imag(scope.network.functions[name](inside(scope) + 1j * STEP)) / STEP
        return lambda scope: scope.network.functions[name](inside(scope))

    def fraction(self) -> Node:
        self.expect("{")
        differential = self.accept(r"\partial")
        above = self.sum()
        self.expect("}")
        self.expect("{")
        if self.accept(r"\partial"):
            below = self.symbol(self.letter())
            self.expect("}")
            return lambda scope: differentiate(above, below, scope)
        divisor = self.sum()
        self.expect("}")
        if differential:
            return undefined
        return combined(divide, above, divisor)

    def sigma(self) -> Node:
        self.expect("_")
        names, bounds = [], None
        if self.accept("{"):
            names.append(self.letter())
            while self.accept(","):
                names.append(self.letter())
            if self.accept("="):
                bounds = [self.index()]
            self.expect("}")
        else:
            names.append(self.letter())
        if bounds:
            self.expect("^")
            self.expect("{")
            bounds.append(self.index())
            self.expect("}")
        body = self.term()
        for name in reversed(names):
            body = partial(total, body, name, bounds)
        return body

    def letter(self) -> str:
        self.at += 1
        return self.tokens[self.at - 1]

    def index(self) -> Index:
        """i, 2, l+1, m, n_2 or n_2-1."""
        name = self.letter()
        if self.accept("_"):
            name += "_" + self.letter()
        sign = self.accept("+", "-")
        offset = int(sign + self.letter()) if sign else 0
        return replace(single(name), offset=int(name) + offset if name.isdigit() else offset)

    def indices(self, closing: str) -> tuple[Index | str, ...]:
        """Indices up to a closing bracket, with or without commas; one may be :, or nothing before the first comma."""
        found: list[Index | str] = []
        while not self.accept(closing):
            if self.accept(","):
                found += [":"] * (len(found) == 0)
                continue
            found.append(":" if self.accept(":") else self.index())
        return tuple(found)

    def symbol(self, name: str) -> Symbol:
        subscripts: tuple[Index | str, ...] = ()
        element: tuple[Index | str, ...] = ()
        superscript = None
        while self.peek("_") or (
            self.note and self.peek("^") and self.tokens[self.at + 1 : self.at + 3][-1] != r"\top"
        ):
            kind = self.letter()
            braces = bool(self.accept("{"))
            if kind == "^":
                parentheses = bool(self.accept("("))
                superscript = self.index() if braces else single(self.letter())
                self.expect(")") if parentheses else None
                self.expect("}") if braces else None
            elif self.accept(r"\alpha"):
                name += "_alpha"
                self.expect("}") if braces else None
            else:
                subscripts = self.indices("}") if braces else (single(self.letter()),)
        if self.accept("["):
            element = self.indices("]")
        return Symbol(name, subscripts, superscript, element)


def evaluate(text: str, scope: Scope) -> Iterator[tuple[Scope, list[np.ndarray]]]:
    """The sides of an equation (or the value of an expression) for every combination of its free indices."""
    yield from _every(Parser(text, scope.network.note).sides(), scope)


def _every(sides: list[Node], scope: Scope) -> Iterator[tuple[Scope, list[np.ndarray]]]:
    if not scope.allowed():
        return
    try:
        yield scope, [number(side(scope)) for side in sides]
    except UnboundIndexError as free:
        for value in free.values:
            yield from _every(sides, scope.bind(free.name, value, free.size))


def bindings(conditions: list[str], scope: Scope) -> Iterator[Scope]:
    r"""The scopes that conditions allow: l=1, \ldots, L-2 or h\neq j."""
    ranges = [re.fullmatch(r"(\w)=(\d+), \\ldots, (.+)", text) for text in conditions]
    names = [(m[1], range(int(m[2]), Parser(m[3], False).index().value(scope) + 1)) for m in ranges if m]
    apart = [re.fullmatch(r"(\w)\\neq (\w)", text) for text in conditions]
    scope = replace(scope, apart=tuple((m[1], m[2]) for m in apart if m))
    for values in cartesian(*(allowed for _, allowed in names)):
        bound = scope
        for (name, _), value in zip(names, values, strict=True):
            bound = bound.bind(name, value, None)
        yield bound
