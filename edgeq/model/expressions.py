"""Whether the texts in an exported program that PyTorch evaluates as Python are arithmetic and nothing else, and little
of it."""

from __future__ import annotations

import ast
import re

_LONGEST = 20_000
"""Characters of a text; sizes of real networks take some hundreds."""
_DEEPEST = 64
_MOST_BITS = 10_000
"""Of the integers that a text asks for; sizes have 64. Whatever else stands there counts as one."""

# What stays inside the double quotes that PyTorch puts around it.
QUOTABLE = re.compile(r'[^"\\\x00-\x1f]*')
_SYMBOL = re.compile(r"[a-z]+\d+|oo|int_oo|true|false|True|False")
_FUNCTIONS = {
    "Symbol", "Integer", "Float", "Rational", "Add", "Mul", "Pow", "Max", "Min", "Abs", "Eq", "Ne", "Lt", "Le", "Gt",
    "Ge", "And", "Or", "Not", "Equality", "Unequality", "LessThan", "GreaterThan", "StrictLessThan",
    "StrictGreaterThan", "floor", "ceiling", "Piecewise", "ExprCondPair", "FloorDiv", "ModularIndexing", "Where",
    "PythonMod", "Mod", "CleanDiv", "CeilToInt", "FloorToInt", "CeilDiv", "LShift", "RShift", "PowByNatural",
    "FloatPow", "FloatTrueDiv", "IntTrueDiv", "IsNonOverlappingAndDenseIndicator", "TruncToFloat", "TruncToInt",
    "RoundToInt", "RoundDecimal", "ToFloat", "Identity",
}  # fmt: skip
_RAISING = {"Pow", "PowByNatural", "FloatPow", "LShift"}
_GUARD_METHODS = {"size", "stride", "storage_offset", "dim", "numel"}
_GUARD_FUNCTIONS = {"max", "min", "abs", "int", "float"}
_ARITHMETIC = (
    ast.Expression, ast.Constant, ast.BinOp, ast.UnaryOp, ast.BoolOp, ast.Compare, ast.operator, ast.unaryop,
    ast.boolop, ast.cmpop, ast.expr_context, ast.Tuple, ast.keyword, ast.Name, ast.Call,
)  # fmt: skip


def is_expression(text: str) -> bool:
    """Whether a size expression is arithmetic over symbols and the known functions, and no other Python."""
    tree = _parse(text)
    if tree is None:
        return False
    called, symbols = set(), set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            if not (isinstance(node.func, ast.Name) and node.func.id in _FUNCTIONS):
                return False
            called.add(id(node.func))
            if node.func.id == "Symbol" and node.args:
                symbols.add(id(node.args[0]))
    for node in ast.walk(tree):
        if not isinstance(node, _ARITHMETIC):
            return False
        if isinstance(node, ast.Name) and id(node) not in called and not _SYMBOL.fullmatch(node.id):
            return False
        # A string is the name of a symbol; anywhere else it would be parsed, and evaluated, once more.
        name = node.value if isinstance(node, ast.Constant) else None
        if isinstance(name, str) and not (id(node) in symbols and name.isidentifier()):
            return False
    return _is_small(tree.body)


def is_guard(text: str) -> bool:
    """Whether a guard only compares sizes of the inputs, such as `L['x'].size()[0] <= 5`."""
    tree = _parse(text)
    # PyTorch puts the text of a guard between double quotes as well, in a message.
    if tree is None or not QUOTABLE.fullmatch(text):
        return False
    for node in ast.walk(tree):
        if not isinstance(node, (*_ARITHMETIC, ast.Attribute, ast.Subscript)):
            return False
        if isinstance(node, ast.Attribute):
            of_math = isinstance(node.value, ast.Name) and node.value.id == "math" and not node.attr.startswith("_")
            if not of_math and node.attr not in _GUARD_METHODS:
                return False
        if isinstance(node, ast.Name) and node.id not in {"L", "math"} | _GUARD_FUNCTIONS | _FUNCTIONS:
            return False
        if isinstance(node, ast.Call) and not isinstance(node.func, (ast.Name, ast.Attribute)):
            return False
    return _is_small(tree.body)


def _is_small(tree: ast.expr) -> bool:
    try:
        return _bits(tree, 0) <= _MOST_BITS
    except ValueError:
        return False


def _bits(node: ast.AST, depth: int) -> int:
    """No fewer bits than any integer takes that comes up in an expression of known numbers.

    Raises:
        ValueError: it is nested too deeply, or nothing says how far something is raised or shifted.
    """
    if depth > _DEEPEST:
        raise ValueError("nested too deeply")
    if isinstance(node, ast.Constant):
        return node.value.bit_length() if isinstance(node.value, int) else 1
    if isinstance(node, ast.BinOp) and isinstance(node.op, (ast.Pow, ast.LShift)):
        parts: list[ast.expr] = [node.left, node.right]
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in _RAISING:
        parts = [*node.args, *(keyword.value for keyword in node.keywords)]
    else:
        return 1 + sum(_bits(child, depth + 1) for child in ast.iter_child_nodes(node))
    if len(parts) != 2:
        raise ValueError("a base and an exponent are wanted")
    base = 1 + _bits(parts[0], depth + 1)
    return base * max(1, _exponent(parts[1]))


def _exponent(node: ast.expr) -> int:
    """The magnitude of an exponent, which must be written down: `2`, `-1`, `Integer(2)`, `Rational(1, 2)`."""
    if isinstance(node, ast.UnaryOp):
        return _exponent(node.operand)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("Integer", "Rational"):
        node = node.args[0] if node.args else node
    if isinstance(node, ast.Constant) and isinstance(node.value, int):
        return node.value
    raise ValueError("the exponent is not written down")


def _parse(text: str) -> ast.Expression | None:
    if len(text) > _LONGEST:
        return None
    try:
        return ast.parse(text.strip(), mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
