"""Whether the texts in an exported program that PyTorch evaluates as Python are arithmetic and nothing else."""

from __future__ import annotations

import ast
import re

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
    return True


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
    return True


def _parse(text: str) -> ast.Expression | None:
    try:
        return ast.parse(text.strip(), mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
