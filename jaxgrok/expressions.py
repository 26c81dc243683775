"""Operations on x and y modulo p that a user writes: `x^2 + y^2`, `x/y`, `x/y if y%2 else x-y`.

    operation = parse("x^3+x*y^2+y")
    values, defined = operation.table(97)      # [97, 97] each

An expression has x, y, whole numbers, + - * / ^ and parentheses, and it is reckoned modulo p: x/y is x times the
inverse of y, so p must be a prime, and a pair whose divisor is 0 is left out. The condition of
`A if CONDITION else B` is reckoned in whole numbers: a sum (true unless it is 0, `y%2` among them) or a comparison
(`x<y`, `x+y==3`). Python's own parser reads the text, and nothing in it is executed.
"""

import ast
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int

MAX_LENGTH = 200  # characters
MAX_NUMBER = 1000  # after ^ and %
NAMED = {"x+y": "add", "x-y": "subtract", "x*y": "multiply", "x^2+x*y+y^2": "x2xyy2"}  # as other files name them
COMPARISONS = {ast.Eq: "==", ast.NotEq: "!=", ast.Lt: "<", ast.LtE: "<=", ast.Gt: ">", ast.GtE: ">="}
COMPARE = {
    **{ast.Eq: np.equal, ast.NotEq: np.not_equal, ast.Lt: np.less, ast.LtE: np.less_equal},
    **{ast.Gt: np.greater, ast.GtE: np.greater_equal},
}
SYMBOLS = {ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.Div: "/", ast.Pow: "^", ast.Mod: "%"}
OF_VALUES, OF_CONDITIONS = (ast.Add, ast.Sub, ast.Mult, ast.Div, ast.Pow), (ast.Add, ast.Sub, ast.Mult, ast.Mod)
ACCEPTED = "x, y, whole numbers, + - * / ^ and `A if CONDITION else B`, with + - * % and a comparison in the condition"
BINDING = {"+": 1, "-": 1, "*": 2, "/": 2, "%": 2, "^": 3}

Table = Int[np.ndarray, "P P"]


class Expression(NamedTuple):
    """An operation on x and y.

    text: in the one form that it is known by. divides: whether it divides, so that p must be a prime.
    """

    text: str
    divides: bool
    tree: ast.expr

    def table(self, p: int) -> tuple[Table, Bool[np.ndarray, "P P"]]:
        """(the values modulo p, whether each is defined), over x and y. Undefined values are 0."""
        x, y = np.indices((p, p), np.int64)
        values, defined = _Modulo(p, {"x": x, "y": y}).value(self.tree)
        return np.where(defined, values, 0), np.broadcast_to(defined, (p, p))


def parse(text: str) -> Expression:
    """The operation that a text writes. Raises ValueError, which says what is wrong."""
    if len(text) > MAX_LENGTH:
        raise ValueError(f"at most {MAX_LENGTH} characters")
    try:
        tree = ast.parse(text.strip().replace("^", "**"), mode="eval").body
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        raise ValueError("an expression such as x^2+y^2") from None
    written = _written(tree, 0)
    if isinstance(tree, ast.Name):
        raise ValueError("an expression such as x^2+y^2")
    if len(written) > MAX_LENGTH:
        raise ValueError(f"at most {MAX_LENGTH} characters, with the brackets of its one form: {written[:40]}...")
    if not any(isinstance(node, ast.Name) for node in ast.walk(tree)):
        raise ValueError("an expression with x or y")
    divides = any(isinstance(node, ast.Div) for node in ast.walk(tree))
    return Expression(written, divides, tree)


def _written(node: ast.expr, binding: int, in_condition: bool = False) -> str:
    """The text of a node without spaces, and without brackets that it does not need.

    binding: how tightly the operator around it binds. Raises ValueError for what has no place there.
    """
    if isinstance(node, ast.IfExp) and not in_condition:
        then, otherwise = _written(node.body, 1), _written(node.orelse, 1)
        text = f"{then} if {_written_condition(node.test)} else {otherwise}"
        return f"({text})" if binding else text
    if isinstance(node, ast.BinOp) and type(node.op) in (OF_CONDITIONS if in_condition else OF_VALUES):
        symbol = SYMBOLS[type(node.op)]
        own = BINDING[symbol]
        least = {"^": 0, "%": 1}.get(symbol)
        number = _number(node.right)
        if least is not None and (number is None or not least <= number <= MAX_NUMBER):
            raise ValueError(f"after {symbol} a whole number from {least} to {MAX_NUMBER}")
        left = _written(node.left, own + (symbol == "^"), in_condition)
        text = f"{left}{symbol}{_written(node.right, own + 1, in_condition)}"
        return f"({text})" if own < binding else text
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        text = f"-{_written(node.operand, 3, in_condition)}"
        return f"({text})" if binding > 1 else text
    if _number(node) is not None:
        return str(_number(node))
    if isinstance(node, ast.Name) and node.id in ("x", "y"):
        return node.id
    raise ValueError(ACCEPTED)


def _written_condition(node: ast.expr) -> str:
    if isinstance(node, ast.Compare) and len(node.ops) == 1 and type(node.ops[0]) in COMPARISONS:
        left, right = _written(node.left, 1, True), _written(node.comparators[0], 1, True)
        return f"{left}{COMPARISONS[type(node.ops[0])]}{right}"
    return _written(node, 1, True)


def _number(node: ast.expr) -> int | None:
    """The value of a whole number; None for another node."""
    value = node.value if isinstance(node, ast.Constant) else None
    return value if type(value) is int and value < 2**31 else None


class _Modulo:
    """Reckons modulo p, on arrays of numbers from 0 to p - 1."""

    def __init__(self, p: int, names: dict[str, Table]):
        self.p, self.names = p, names

    def value(self, node: ast.expr) -> tuple[Table, Bool[np.ndarray, "..."]]:
        """(the values, whether they are defined)."""
        if isinstance(node, ast.IfExp):
            holds = np.asarray(_whole(node.test, self.names)).astype(bool)
            (then, then_defined), (otherwise, otherwise_defined) = self.value(node.body), self.value(node.orelse)
            return np.where(holds, then, otherwise), np.where(holds, then_defined, otherwise_defined)
        if isinstance(node, ast.BinOp):
            return self._of_two(node)
        if isinstance(node, ast.UnaryOp):
            values, defined = self.value(node.operand)
            return -values % self.p, defined
        if isinstance(node, ast.Name):
            return self.names[node.id], np.array(True)
        number = _number(node)
        assert number is not None  # `parse` lets nothing else through
        return np.array(number % self.p), np.array(True)

    def _of_two(self, node: ast.BinOp) -> tuple[Table, Bool[np.ndarray, "..."]]:
        left, left_defined = self.value(node.left)
        if isinstance(node.op, ast.Pow):
            return self._power(left, _number(node.right) or 0), left_defined
        right, right_defined = self.value(node.right)
        defined = left_defined & right_defined
        if isinstance(node.op, ast.Add):
            return (left + right) % self.p, defined
        if isinstance(node.op, ast.Sub):
            return (left - right) % self.p, defined
        if isinstance(node.op, ast.Mult):
            return left * right % self.p, defined
        assert isinstance(node.op, ast.Div)
        return left * self._power(right, self.p - 2) % self.p, defined & (right != 0)  # Fermat

    def _power(self, base: Table, exponent: int) -> Table:
        result = np.ones_like(base)
        while exponent:
            if exponent % 2:
                result = result * base % self.p
            base, exponent = base * base % self.p, exponent // 2
        return result


def _whole(node: ast.expr, names: dict[str, Table]) -> Table:
    """The value of a condition, in whole numbers of any size."""
    if isinstance(node, ast.Compare):
        left, right = _whole(node.left, names), _whole(node.comparators[0], names)
        return COMPARE[type(node.ops[0])](left, right)
    if isinstance(node, ast.BinOp):
        left, right = _whole(node.left, names), _whole(node.right, names)
        reckon = {ast.Add: np.add, ast.Sub: np.subtract, ast.Mult: np.multiply, ast.Mod: np.mod}
        return reckon[type(node.op)](left, right)
    if isinstance(node, ast.UnaryOp):
        return -_whole(node.operand, names)
    if isinstance(node, ast.Name):
        return names[node.id].astype(object)
    return np.array(_number(node), object)
