"""Formulas of mixed models as lme4 reads them, and the columns that a data frame gives for them.

Terms, their order, the coding of categories and the names of columns are those of R's `terms.formula` and
`model.matrix`, so that a table can be held against lme4's line by line; libraries of formulas for Python code
interactions without main effects differently. What is not understood is refused with its place.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import pandas as pd

from clada.errors import InputError

Array = np.ndarray
Term = frozenset[str]
INTERCEPT: Term = frozenset()
"""The term without variables."""

_TOKEN = re.compile(r"\s*(?:(`[^`]+`|\.?[^\W\d][\w.]*)|(\d+(?:\.\d*)?(?:e[-+]?\d+)?)|(\|\||[-+*/:^()|,.~]))")
_PLAIN_NAME = re.compile(r"(?:[^\W\d_]|\.(?!\d))[\w.]*")
_FUNCTIONS: dict[str, Callable[[Array], Array]] = {
    "I": lambda x: x,
    "abs": np.abs,
    "exp": np.exp,
    "log": np.log,
    "log10": np.log10,
    "log1p": np.log1p,
    "log2": np.log2,
    "scale": lambda x: (x - np.nanmean(x)) / np.nanstd(x, ddof=1),
    "sqrt": np.sqrt,
}
_OPERATORS: dict[type[ast.operator], tuple[str, int, Callable[[Array, Array], Array]]] = {
    ast.Add: (" + ", 1, np.add),
    ast.Sub: (" - ", 1, np.subtract),
    ast.Mult: (" * ", 2, np.multiply),
    ast.Div: ("/", 2, np.divide),
    ast.Pow: ("^", 4, np.power),
}
"""How R writes each operator, how tightly it binds, and what it computes."""
_SIGN = 3  # how tightly a sign binds: -x^2 is -(x^2)


@dataclass(frozen=True)
class Terms:
    """The terms of one sum.

    Attributes:
        variables: Expressions as R writes them, in the order in which they first stand in the sum.
        terms: The intercept, then by the number of variables, then as written.
    """

    variables: tuple[str, ...]
    terms: tuple[Term, ...]


@dataclass(frozen=True)
class RandomTerm:
    """Effects that vary with one grouping factor and are correlated with each other.

    Attributes:
        terms: The effects.
        columns: Their combinations are the factor's levels.
        group: The factor as lme4 calls it.
    """

    terms: Terms
    columns: tuple[str, ...]
    group: str


@dataclass(frozen=True)
class MixedFormula:
    """The parts of a formula.

    Attributes:
        response: The expression before the tilde.
        fixed: The terms outside of bars.
        random: The terms with bars, as written.
        trees: Every expression by its text.
    """

    response: str
    fixed: Terms
    random: tuple[RandomTerm, ...]
    trees: dict[str, ast.expr]


def parse(text: str) -> MixedFormula:
    """The parts of a formula in lme4's notation.

    Args:
        text: For instance `log(rt) ~ surprisal * condition + (1 + surprisal | subject) + (1 | item)`. Terms are joined
            by + - * : / ^ and parentheses. Functions of columns are abs, exp, log, log2, log10, log1p, scale, sqrt, and
            I(...) with + - * / ^. Other names than R's stand in backticks.

    Raises:
        InputError: It is no such formula; the message names the place.
    """
    if not isinstance(text, str) or not text.strip():
        raise InputError("a formula is text, as 'rt ~ surprisal + (1 | subject) + (1 | item)'")
    return _Parser(text).formula()


def _plus(left: list[Term], right: Iterable[Term]) -> list[Term]:
    return list(dict.fromkeys([*left, *right]))


def _minus(left: list[Term], right: Iterable[Term]) -> list[Term]:
    gone = set(right)
    return [term for term in left if term not in gone]


def _by(left: list[Term], right: list[Term]) -> list[Term]:
    return list(dict.fromkeys(a | b for a in left for b in right))


class _Parser:
    """Reads a formula from left to right. As in R, ^ binds before :, that before * and /, these before + and -."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.tokens: list[str] = []
        self.places: list[int] = []
        self.at = 0
        at, end = 0, len(text.rstrip())
        while at < end:
            match = _TOKEN.match(text, at)
            if match is None:
                at = end - len(text[at:end].lstrip())
                self.places.append(at)
                raise self.error(f"{text[at]!r} means nothing there", -1)
            kind = match.lastindex or 0
            self.tokens.append(match[kind])
            self.places.append(match.start(kind))
            at = match.end()
        self.places.append(end)
        self.seen: list[str] = []
        self.random: list[RandomTerm] = []
        self.trees: dict[str, ast.expr] = {}

    def error(self, what: str, at: int | None = None) -> InputError:
        place = self.places[self.at if at is None else at]
        return InputError(f"cannot read the formula {self.text!r} at character {place + 1}: {what}")

    @property
    def token(self) -> str:
        return self.tokens[self.at] if self.at < len(self.tokens) else ""

    def take(self, wanted: str) -> bool:
        found = self.token == wanted
        self.at += found
        return found

    def expect(self, wanted: str) -> None:
        if not self.take(wanted):
            raise self.error(f"{wanted!r} is missing" + (f" before {self.token!r}" if self.token else ""))

    def closing(self, opening: int) -> int:
        """Place of the parenthesis that closes the one at that place."""
        depth = 0
        for at in range(opening, len(self.tokens)):
            depth += {"(": 1, ")": -1}.get(self.tokens[at], 0)
            if depth == 0:
                return at
        raise self.error("this parenthesis is not closed", opening)

    def formula(self) -> MixedFormula:
        if "~" not in self.tokens:
            raise self.error("'~' is missing between the response and its predictors", len(self.tokens))
        tilde = self.tokens.index("~")
        if tilde == 0:
            raise self.error("the response is missing before '~'")
        response = self.expression(0, tilde)
        self.at = tilde + 1
        fixed = self.sum()
        if self.token:
            raise self.error(f"{self.token!r} is not expected")
        if not self.random:
            raise InputError(f"the formula {self.text!r} has no random effect; add one, as (1 | subject)")
        return MixedFormula(response, self.ordered(fixed), tuple(self.random), self.trees)

    def ordered(self, terms: list[Term]) -> Terms:
        used = frozenset[str]().union(*terms)
        return Terms(tuple(name for name in self.seen if name in used), tuple(sorted(terms, key=len)))

    def sum(self) -> list[Term]:
        """Terms with + and - between them; those with bars are put aside."""
        total = [INTERCEPT]
        sign = self.token if self.token in ("+", "-") else ""
        self.at += bool(sign)
        while True:
            if self.token in ("0", "1"):
                with_intercept = (self.token == "1") != (sign == "-")
                self.at += 1
                rest = _minus(total, [INTERCEPT])
                total = [INTERCEPT, *rest] if with_intercept else rest
            elif self.token == "(" and self.bar() is not None:
                if sign == "-":
                    raise self.error("a random term cannot be taken away")
                self.random_term()
            else:
                term = self.product()
                total = _minus(total, term) if sign == "-" else _plus(total, term)
            sign = self.token
            if sign not in ("+", "-"):
                if sign in ("*", "/", ":", "^"):
                    raise self.error("numbers and random terms can only be added")
                return total
            self.at += 1

    def bar(self) -> int | None:
        """Place of the bar directly within the parentheses that begin here, if there is one."""
        depth = 0
        for at in range(self.at, self.closing(self.at)):
            depth += {"(": 1, ")": -1}.get(self.tokens[at], 0)
            if depth == 1 and self.tokens[at] in ("|", "||"):
                return at
        return None

    def product(self) -> list[Term]:
        left = self.interaction()
        while self.token in ("*", "/"):
            crossed = self.token == "*"
            self.at += 1
            right = self.interaction()
            if crossed:
                left = _plus(_plus(left, right), _by(left, right))
            else:
                left = _plus(left, _by([frozenset().union(*left)], right))
        return left

    def interaction(self) -> list[Term]:
        left = self.power()
        while self.take(":"):
            left = _by(left, self.power())
        return left

    def power(self) -> list[Term]:
        base = self.atom()
        total = base
        if self.take("^"):
            if [len(term) for term in base] == [1]:
                raise self.error("in formulas a power of one column is that column; its square is I(x^2)")
            if not self.token.isdigit() or self.token == "0":
                raise self.error("terms have whole powers from 1 on; the square of a column is I(x^2)")
            for _ in range(int(self.token) - 1):
                total = _plus(total, _by(total, base))
            self.at += 1
        return total

    def atom(self) -> list[Term]:
        if self.token == "(":
            if self.bar() is not None:
                raise self.error("random terms can only be added")
            self.at += 1
            inner = self.sum()
            self.expect(")")
            return _minus(inner, [INTERCEPT])
        if not _is_name(self.token):
            what = f"not {self.token!r}" if self.token else "and the formula ends"
            raise self.error(f"a column is expected here, {what}")
        first = self.at
        self.at += 1
        if self.token == "(":
            if self.bar() is not None:
                raise self.error("'+' is missing before this random term")
            self.at = self.closing(self.at) + 1
        variable = self.expression(first, self.at)
        if variable not in self.seen:
            self.seen.append(variable)
        return [frozenset([variable])]

    def random_term(self) -> None:
        opening, bar = self.at, self.bar()
        assert bar is not None
        self.at += 1
        outer, self.seen = self.seen, []
        effects = self.ordered(self.sum())
        self.seen = outer
        if self.at != bar:
            raise self.error(f"{self.token!r} is not expected before the bar")
        if not effects.terms:
            raise self.error("no effect is before the bar", opening)
        self.at += 1
        groups = self.groups()
        self.expect(")")
        parts = [effects]
        if self.tokens[bar] == "||":
            parts = [Terms(tuple(v for v in effects.variables if v in term), (term,)) for term in effects.terms]
        self.random += [RandomTerm(part, columns, name) for columns, name in groups for part in parts]

    def groups(self) -> list[tuple[tuple[str, ...], str]]:
        """The factors after a bar: g, g:h, or g/h, which is h:g beside g."""
        factors = [self.factor()]
        while self.take("/"):
            columns, name = self.factor()
            outer_columns, outer = factors[0]
            outer = f"({outer})" if ":" in outer else outer
            factors.insert(0, ((*columns, *outer_columns), f"{name}:{outer}"))
        return factors

    def factor(self) -> tuple[tuple[str, ...], str]:
        columns = []
        while True:
            if not _is_name(self.token):
                raise self.error("a grouping column is expected here")
            columns.append(self.token.strip("`"))
            self.at += 1
            if self.token == "(":
                raise self.error("functions of grouping columns are not supported; add the result as a column")
            if not self.take(":"):
                return tuple(columns), ":".join(columns)

    # -- Expressions of columns --

    def expression(self, first: int, last: int) -> str:
        """The expression of those tokens as R writes it; its tree is kept, every column under its own name."""
        names: list[str] = []
        pieces = []
        for token in self.tokens[first:last]:
            if _is_name(token):
                pieces.append(f"v{len(names)}")
                names.append(token.strip("`"))
            else:
                pieces.append("**" if token == "^" else token)
        try:
            tree = ast.parse(" ".join(pieces), mode="eval").body
        except SyntaxError:
            raise self.error("this is no expression of columns", first) from None
        for node in ast.walk(tree):
            if isinstance(node, ast.Name):
                node.id = names[int(node.id[1:])]
        text = self.written(tree, first)
        self.trees[text] = tree
        return text

    def written(self, node: ast.expr, first: int, within: int = 0) -> str:
        """An expression as R's `deparse` writes it.

        Raises:
            InputError: It holds what is not computed.
        """
        match node:
            case ast.Name(id=name):
                return name if _PLAIN_NAME.fullmatch(name) else f"`{name}`"
            case ast.Constant(value=int() | float() as number):
                return f"{number:.15g}"
            case ast.Call(func=ast.Name(id=name)) if name not in _FUNCTIONS:
                raise self.error(
                    f"the function {name}() is not supported, only {', '.join(sorted(_FUNCTIONS))}; add its result to "
                    "the data as a column",
                    first,
                )
            case ast.Call(func=ast.Name(id=name), args=[argument], keywords=[]):
                return f"{name}({self.written(argument, first)})"
            case ast.Call(func=ast.Name(id=name)):
                raise self.error(f"{name}() takes one expression", first)
            case ast.UnaryOp(op=ast.USub() | ast.UAdd() as sign, operand=operand):
                text = ("-" if isinstance(sign, ast.USub) else "+") + self.written(operand, first, _SIGN)
                return f"({text})" if within > _SIGN else text
            case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATORS:
                symbol, binds, _ = _OPERATORS[type(op)]
                # Only powers group from the right.
                sides = (binds + 1, binds) if isinstance(op, ast.Pow) else (binds, binds + 1)
                text = self.written(left, first, sides[0]) + symbol + self.written(right, first, sides[1])
                return f"({text})" if within > binds else text
        raise self.error("only columns, numbers, functions of one expression and + - * / ^ can be computed", first)


def _is_name(token: str) -> bool:
    return bool(token) and (token[0] in "`_" or token[0].isalpha() or (token[0] == "." and len(token) > 1))


# -- Columns --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Variable:
    """The values of one expression.

    Attributes:
        values: Numbers, or the number of the level; NaN where missing. Shape (rows,).
        levels: Names of a category's levels in order; None for numbers.
    """

    values: Array
    levels: tuple[str, ...] | None = None


def variable(frame: pd.DataFrame, tree: ast.expr, text: str) -> Variable:
    """An expression's values in every row of a frame, before any is left out, as R computes them.

    Raises:
        InputError: A column is not there or holds what cannot be used; a result is not finite.
    """
    if isinstance(tree, ast.Name):
        return _column(frame, tree.id)
    with np.errstate(all="ignore"):
        values = np.broadcast_to(_computed(frame, tree), len(frame))
    missing = np.zeros(len(frame), bool)
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and node.id in frame.columns:
            missing |= np.isnan(_column(frame, node.id).values)
    if bad := int((~np.isfinite(values) & ~missing).sum()):
        raise InputError(f"{text} is no finite number in {rows_text(bad)}; leave these out or compute something else")
    return Variable(values.astype(float))


def _computed(frame: pd.DataFrame, node: ast.expr) -> Array:
    match node:
        case ast.Constant(value=int() | float() as number):
            return np.asarray(float(number))
        case ast.Name(id=name):
            column = _column(frame, name)
            if column.levels not in (None, ("FALSE", "TRUE")):
                raise InputError(f"column {name!r} holds categories, with which nothing can be computed")
            return column.values
        case ast.Call(func=ast.Name(id=name), args=[argument]):
            return _FUNCTIONS[name](_computed(frame, argument))
        case ast.UnaryOp(op=sign, operand=operand):
            value = _computed(frame, operand)
            return -value if isinstance(sign, ast.USub) else value
        case ast.BinOp(left=left, op=op, right=right):
            return _OPERATORS[type(op)][2](_computed(frame, left), _computed(frame, right))
    raise AssertionError(node)


def _column(frame: pd.DataFrame, name: str) -> Variable:
    series = _series(frame, name)
    kind = series.dtype
    if isinstance(kind, pd.CategoricalDtype):
        if kind.ordered:
            raise InputError(
                f"column {name!r} is an ordered category, which lme4 codes by polynomials; "
                f"make it unordered with .cat.as_unordered(), or numeric"
            )
        return _category(series.cat.remove_unused_categories())
    if pd.api.types.is_bool_dtype(kind) or _all_are(series, bool):
        return _category(series.map({True: "TRUE", False: "FALSE"}).astype(pd.CategoricalDtype(["FALSE", "TRUE"])))
    if pd.api.types.is_complex_dtype(kind) or isinstance(kind, pd.PeriodDtype | pd.IntervalDtype):
        raise InputError(f"column {name!r} holds {kind}, neither numbers nor categories")
    if pd.api.types.is_numeric_dtype(kind) or _all_are(series, int | float | np.number):
        values = series.to_numpy(dtype=float, na_value=np.nan)
        if bad := int(np.isinf(values).sum()):
            raise InputError(f"column {name!r} is infinite in {rows_text(bad)}; leave these out")
        return Variable(values)
    if isinstance(kind, pd.StringDtype) or _all_are(series, str):
        return _category(series.astype(pd.CategoricalDtype(sorted(series.dropna().unique()))))
    what = "values of several kinds" if pd.api.types.is_object_dtype(kind) else kind
    raise InputError(f"column {name!r} holds {what}, neither numbers nor categories")


def _series(frame: pd.DataFrame, name: str) -> pd.Series:
    if name not in frame.columns:
        raise InputError(f"no column {name!r} in the data; columns are {', '.join(map(str, frame.columns))}")
    series = frame[name]
    if series.ndim > 1:
        raise InputError(f"the data has several columns {name!r}; give each its own name")
    return series


def _all_are(series: pd.Series, kinds: object) -> bool:
    """Whether a column of Python objects holds only values of a kind, and missing ones."""
    return pd.api.types.is_object_dtype(series) and all(isinstance(value, kinds) for value in series.dropna())  # type: ignore[arg-type]


def _category(series: pd.Series) -> Variable:
    levels = [f"{level:.15g}" if isinstance(level, float) else str(level) for level in series.cat.categories]
    codes = series.cat.codes.to_numpy(float)
    codes[codes < 0] = np.nan
    return Variable(codes, tuple(levels))


def rows_text(number: int) -> str:
    """A number of rows in words."""
    return f"{number:,} row" + "s" * (number != 1)


def grouping(frame: pd.DataFrame, columns: tuple[str, ...]) -> Array:
    """The number of each row's level, -1 where a column is missing. Shape (rows,)."""
    codes = np.zeros(len(frame), int)
    missing = np.zeros(len(frame), bool)
    for name in columns:
        own, levels = pd.factorize(_series(frame, name))
        missing |= own < 0
        codes = pd.factorize(codes * (len(levels) + 1) + own)[0]
    return np.where(missing, -1, codes)


def model_columns(terms: Terms, variables: dict[str, Variable], rows: int) -> tuple[Array, list[str]]:
    """The columns of terms and their names.

    A category is coded by contrasts to its first level if the term without it is part of a term before, and else by
    one column for each level; without an intercept, the first category has a column for each level.

    Args:
        terms: In R's order.
        variables: By text, without missing values.
        rows: How many rows there are.

    Returns:
        Matrix of shape (rows, columns), and the names that R gives to the columns.

    Raises:
        InputError: A category has one level.
    """
    order = {name: place for place, name in enumerate(terms.variables)}
    columns: list[Array] = []
    names: list[str] = []
    first_category = INTERCEPT not in terms.terms
    before: list[Term] = []
    for term in terms.terms:
        parts: list[tuple[Array, str]] = [(np.ones(rows), "")] if term else [(np.ones(rows), "(Intercept)")]
        for name in sorted(term, key=order.__getitem__):
            found = variables[name]
            if found.levels is None:
                coded = [(found.values, name)]
            else:
                rest = term - {name}
                full = first_category or not (not rest or any(rest <= other for other in before))
                first_category = False
                coded = _coded(found, name, full)
            parts = [
                (values * own, f"{label}:{own_label}" if label else own_label)
                for own, own_label in coded
                for values, label in parts
            ]
        columns += [values for values, _ in parts]
        names += [label for _, label in parts]
        before.append(term)
    return np.column_stack(columns) if columns else np.empty((rows, 0)), names


def _coded(category: Variable, name: str, full: bool) -> list[tuple[Array, str]]:
    assert category.levels is not None
    if len(category.levels) < 2:
        raise InputError(f"{name} has one level only, {category.levels[0]!r}, in the rows that are used; leave it out")
    return [
        ((category.values == number).astype(float), name + level)
        for number, level in enumerate(category.levels)
        if full or number
    ]
