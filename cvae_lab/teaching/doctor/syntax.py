"""Helpers for the syntax tree of a student's trainer: names, functions, scopes, and loops over frames."""

import ast
from collections.abc import Iterator

ROLES = ("RGB_Encoder", "Label_Encoder", "Gaussian_Predictor", "Decoder_Fusion", "Generator")
ATTRIBUTES = {
    "frame_transformation": "RGB_Encoder",
    "label_transformation": "Label_Encoder",
    **{role: role for role in ROLES[2:]},
}
"""Attribute names in the code of the course, and the module of each."""

Function = ast.FunctionDef | ast.AsyncFunctionDef


def roles_of(tree: ast.AST) -> dict[str, str]:
    """Map names to modules: the names in ATTRIBUTES, and every `self.NAME = RGB_Encoder(...)` or `NAME = ...`."""
    roles = dict(ATTRIBUTES)
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call):
            value = node.value
            while isinstance(value.func, ast.Attribute) and isinstance(value.func.value, ast.Call):
                value = value.func.value  # RGB_Encoder(3, 128).to(device)
            made = name_of(value.func)
            for target in node.targets:
                if made in ROLES and name_of(target):
                    roles[name_of(target)] = made
    return roles


def name_of(node: ast.AST) -> str:
    """Return the last part of a dotted name: `torch.randn_like` gives randn_like."""
    if isinstance(node, ast.Attribute):
        return node.attr
    return node.id if isinstance(node, ast.Name) else ""


def names_in(node: ast.AST) -> set[str]:
    """Return every name and attribute in an expression."""
    return {name_of(part) for part in ast.walk(node)} - {""}


def functions(tree: ast.AST) -> Iterator[Function]:
    """Yield every function of a file, and its statements outside functions and classes as a function `main`."""
    yield from (node for node in ast.walk(tree) if isinstance(node, Function))
    outside = [
        s
        for s in getattr(tree, "body", [])
        if not isinstance(s, ast.ClassDef | ast.Import | ast.ImportFrom | Function)
    ]
    if outside and isinstance(tree, ast.Module):
        empty = ast.arguments([], [], None, [], [], None, [])
        yield ast.FunctionDef(
            "main", empty, outside, [], lineno=outside[0].lineno, end_lineno=outside[-1].end_lineno
        )


def definitions(function: Function) -> dict[str, ast.expr]:
    """Return the last expression assigned to each variable of a function."""
    return {
        name_of(t): a.value
        for a in ast.walk(function)
        if isinstance(a, ast.Assign)
        for t in a.targets
        if isinstance(t, ast.Name)
    }


def scopes(tree: ast.Module) -> Iterator[ast.Module | Function]:
    """Yield the file, whose scope is the code outside all functions, and then every function."""
    yield tree
    yield from functions(tree)


def nodes_of(scope: ast.Module | Function) -> Iterator[ast.AST]:
    """Yield the nodes of a function with those of its inner functions, or the nodes of a file outside its functions."""
    if isinstance(scope, Function):
        yield from ast.walk(scope)
        return
    waiting: list[ast.AST] = [scope]
    while waiting:
        node = waiting.pop()
        yield node
        waiting.extend(child for child in ast.iter_child_nodes(node) if not isinstance(child, Function))


def loops_over_frames(loop: ast.For) -> bool:
    """Whether a loop is `for NAME in range(...)`, with or without a progress bar."""
    return isinstance(loop.target, ast.Name) and bool({"range", "trange"} & names_in(loop.iter))


def first_value(loop: ast.For) -> int | None:
    """Return the first value of `for i in range(...)`; None if it is not a constant; 0 for a loop over a clip."""
    if not loops_over_frames(loop):
        return 0
    for node in ast.walk(loop.iter):
        if isinstance(node, ast.Call) and name_of(node.func) in ("range", "trange"):
            if len(node.args) == 1:
                return 0
            start = node.args[0]
            return start.value if isinstance(start, ast.Constant) else None
    return None
