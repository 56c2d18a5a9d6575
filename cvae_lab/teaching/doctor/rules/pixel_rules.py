"""Rule about the conversion of frames to uint8."""

import ast
import re
from collections.abc import Iterator

from cvae_lab.teaching.doctor.syntax import functions, name_of, names_in, nodes_of, roles_of, scopes

BOUNDED = re.compile(r"clamp_?|clip_?|sigmoid_?|save_image|make_grid|hardtanh")
FRAME_NAME = re.compile(r"im(g|age)|frame|pred|out|video|recon|gen|fake|sample", re.I)


def wrapped_pixels(tree: ast.Module) -> Iterator[int]:
    """Find frames that are converted to uint8 without a clamp, so that values outside [0, 1] wrap around."""
    roles = {name for name, role in roles_of(tree).items() if role == "Generator"}
    predictions = [n for n in ast.walk(tree) if isinstance(n, ast.Assign) and names_in(n.value) & roles]
    if predictions and all(_bounds(n.value, set()) for n in predictions):
        return  # every prediction is clamped directly after its computation
    helpers = {function.name for function in functions(tree) if _bounds(function, set())}
    scaled_elsewhere = any(_scales(node) for node in ast.walk(tree))
    for scope in scopes(tree):
        nodes = list(nodes_of(scope))
        if any(_bounds(node, helpers) for node in nodes if isinstance(node, ast.Call)):
            continue
        scales = any(isinstance(n, ast.Constant) and n.value in (255, 256) for n in nodes)
        for node in nodes:
            converted = _converted(node) if isinstance(node, ast.Call) else None
            if converted is None:
                continue
            frames = scaled_elsewhere and any(FRAME_NAME.search(name) for name in names_in(converted))
            if scales or frames or "ToPILImage" in names_in(node):
                yield node.lineno


def _bounds(node: ast.AST, helpers: set[str]) -> bool:
    """Return whether the code calls a function that limits values, or one of `helpers`."""
    calls = (part for part in ast.walk(node) if isinstance(part, ast.Call))
    return any(BOUNDED.fullmatch(name_of(call.func)) or name_of(call.func) in helpers for call in calls)


def _scales(node: ast.AST) -> bool:
    """Return whether a node multiplies by 255 or assigns 255 to a variable."""
    if isinstance(node, ast.BinOp):
        return isinstance(node.op, ast.Mult) and any(map(_is_255, (node.left, node.right)))
    if isinstance(node, ast.Call):
        return name_of(node.func) in ("mul", "mul_", "multiply") and any(map(_is_255, node.args))
    return isinstance(node, ast.Assign) and _is_255(node.value)


def _is_255(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value in (255, 256)


def _converted(node: ast.Call) -> ast.expr | None:
    """Return the expression that a call converts to uint8, or None if the call is no such conversion."""
    name = name_of(node.func)
    if isinstance(node.func, ast.Call):
        return node.args[0] if name_of(node.func.func) == "ToPILImage" and node.args else None
    method = node.func.value if isinstance(node.func, ast.Attribute) else None
    to_bytes = any(re.search("uint8|ByteTensor", ast.dump(part)) for part in (*node.args, *node.keywords))
    if name == "byte" or (name in ("astype", "to", "type") and to_bytes):
        return method
    if name in ("uint8", "to_pil_image"):
        return node.args[0] if node.args else None
    if name in ("array", "asarray", "tensor", "as_tensor") and node.args:
        return node.args[0] if any(re.search("uint8", ast.dump(part)) for part in node.keywords) else None
    return None
