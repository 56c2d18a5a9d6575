"""Data-flow analysis of a student's trainer on its syntax tree: which kinds of values a variable may have.

The analysis visits the statements of one function in order. It records which variables contain frames, labels,
features, predictions, noise or z. The values of both branches of an `if` are merged. A loop over frames is analysed
twice, so that values from the previous iteration are known. No code is executed.
"""

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass

ROLES = ("RGB_Encoder", "Label_Encoder", "Gaussian_Predictor", "Decoder_Fusion", "Generator")
ATTRIBUTES = {
    "frame_transformation": "RGB_Encoder",
    "label_transformation": "Label_Encoder",
    **{role: role for role in ROLES[2:]},
}
"""Attribute names in the code of the course, and the module of each."""

FRAMES = re.compile(r"^(img|imgs|image|images|frame|frames|x|video|videos|clip)$", re.I)
LABELS = re.compile(r"^(label|labels|pose|poses|cond|p|lbl|lbls)$", re.I)

Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Tag:
    """One kind of content that a value may have.

    Args:
        kind: frames, labels (whole clips), frame, label (one step), prediction, posterior, prior, noise, uniform.
        offset: for frame and label: index minus the loop variable; None if the index is constant or unknown.
        constant: for frame and label: the constant index.
    """

    kind: str
    offset: int | None = None
    constant: int | None = None


Value = frozenset[Tag]
NOTHING: Value = frozenset()


@dataclass(frozen=True)
class Call:
    """A call of one of the five modules or of a loss in a function, with the possible content of its arguments."""

    role: str
    node: ast.Call
    arguments: tuple[Value, ...]
    loop: ast.For | None


def roles_of(tree: ast.AST) -> dict[str, str]:
    """Map attribute names to modules: the names in ATTRIBUTES, and every `self.NAME = RGB_Encoder(...)`."""
    roles = dict(ATTRIBUTES)
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call):
            made = name_of(node.value.func)
            for target in node.targets:
                if isinstance(target, ast.Attribute) and made in ROLES:
                    roles[target.attr] = made
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
    """Yield every function of a file."""
    return (node for node in ast.walk(tree) if isinstance(node, Function))


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


class Flow:
    """The calls in one function, and the possible content of their arguments."""

    def __init__(self, function: Function, roles: dict[str, str]) -> None:
        self.roles, self.values, self.calls, self.loop = roles, {}, {}, None
        for argument in function.args.args:
            for pattern, kind in ((FRAMES, "frames"), (LABELS, "labels")):
                if pattern.match(argument.arg):
                    self.values[argument.arg] = frozenset({Tag(kind)})
        self._block(function.body)

    def of_role(self, role: str) -> list[Call]:
        """Return the calls of one module, in order."""
        return [call for call in self.calls.values() if call.role == role]

    def _block(self, statements: list[ast.stmt]) -> None:
        for statement in statements:
            self._statement(statement)

    def _statement(self, node: ast.stmt) -> None:
        if isinstance(node, ast.Assign):
            for target in node.targets:
                self._assign(target, node.value)
        elif (
            isinstance(node, ast.AugAssign | ast.AnnAssign | ast.Expr | ast.Return) and node.value is not None
        ):
            self._value(node.value)
        elif isinstance(node, ast.If):
            self._value(node.test)
            self._branches(node.body, node.orelse)
        elif isinstance(node, ast.For):
            self._for(node)
        elif isinstance(node, ast.While | ast.With | ast.Try):
            self._block(node.body)

    def _branches(self, *bodies: list[ast.stmt]) -> None:
        before, after = dict(self.values), {}
        for body in bodies:
            self.values = dict(before)
            self._block(body)
            for name, value in self.values.items():
                after[name] = after.get(name, NOTHING) | value
        self.values = after

    def _for(self, node: ast.For) -> None:
        outer = self.loop
        counts = isinstance(node.target, ast.Name) and "range" in names_in(node.iter)
        self.loop = node if counts else outer
        self._targets_from_loader(node.target)
        for _ in range(2):
            before = dict(self.values)
            self._block(node.body)
            for name, value in before.items():
                self.values[name] = self.values.get(name, NOTHING) | value
        self.loop = outer

    def _targets_from_loader(self, target: ast.expr) -> None:
        """For a loop such as `for img, label in loader`, derive the content of the variables from their names."""
        for part in ast.walk(target):
            for pattern, kind in ((FRAMES, "frames"), (LABELS, "labels")):
                if isinstance(part, ast.Name) and isinstance(target, ast.Tuple) and pattern.match(part.id):
                    self.values[part.id] = frozenset({Tag(kind)})

    def _assign(self, target: ast.expr, source: ast.expr) -> None:
        if isinstance(target, ast.Name):
            self.values[target.id] = self._value(source)
        elif isinstance(target, ast.Tuple):
            pairs = isinstance(source, ast.Tuple) and len(source.elts) == len(target.elts)
            for index, part in enumerate(target.elts):
                self._assign(part, source.elts[index] if pairs else source)

    def _value(self, node: ast.expr) -> Value:
        if isinstance(node, ast.Name):
            return self.values.get(node.id, NOTHING)
        if isinstance(node, ast.Call):
            return self._call(node)
        if isinstance(node, ast.Subscript):
            return self._subscript(node)
        found = NOTHING
        for part in ast.iter_child_nodes(node):
            if isinstance(part, ast.expr):
                found |= self._value(part)
        return found

    def _call(self, node: ast.Call) -> Value:
        name = name_of(node.func)
        arguments = tuple(self._value(part) for part in (*node.args, *(word.value for word in node.keywords)))
        joined = frozenset().union(*arguments)
        if isinstance(node.func, ast.Attribute):
            joined |= self._value(node.func.value)
            if name == "append" and isinstance(node.func.value, ast.Name):
                self.values[node.func.value.id] = self._sequence(joined)
        if re.match(r"randn|normal", name):
            return frozenset({Tag("noise")})
        if name in ("rand", "rand_like", "uniform", "uniform_"):
            return frozenset({Tag("uniform")})
        role = self.roles.get(name, "")
        if role or re.search(r"mse|criterion|l1_loss|smooth_l1|kl", name, re.I):
            self.calls[id(node)] = Call(role or name, node, arguments, self.loop)
        if role == "Gaussian_Predictor":
            return frozenset({Tag("posterior")})
        if role in ("Generator", "Decoder_Fusion"):
            return frozenset({Tag("prediction")})
        return joined

    def _sequence(self, value: Value) -> Value:
        """Return what a list contains after `append(value)` in a loop: all frames if the loop begins at frame 0."""
        start = first_value(self.loop) if self.loop else None
        whole = {"frame": "frames", "label": "labels"}
        return frozenset(
            Tag(whole[tag.kind]) if tag.kind in whole and start is not None and tag.offset == -start else tag
            for tag in value
        )

    def _subscript(self, node: ast.Subscript) -> Value:
        value = self._value(node.value)
        index = _index(node.slice, self.loop.target.id if self.loop else "")
        single = {"frames": "frame", "labels": "label"}
        return frozenset(
            Tag(single[tag.kind], *index) if tag.kind in single and index else tag for tag in value
        )


def _index(node: ast.expr, variable: str) -> tuple[int | None, int | None] | None:
    """(offset from the loop variable, constant index) of an index expression; None if neither is known."""
    parts = node.elts if isinstance(node, ast.Tuple) else [node]
    for part in parts:
        if isinstance(part, ast.Constant) and isinstance(part.value, int):
            return None, part.value
        if isinstance(part, ast.Name) and part.id == variable and variable:
            return 0, None
        if (
            isinstance(part, ast.BinOp) and isinstance(part.op, ast.Add | ast.Sub)
            and isinstance(part.left, ast.Name) and part.left.id == variable and variable
            and isinstance(part.right, ast.Constant)
        ):  # fmt: skip
            return (1 if isinstance(part.op, ast.Add) else -1) * part.right.value, None
    return None


def first_value(loop: ast.For) -> int | None:
    """Return the first value of `for i in range(...)`; None if it is not a constant."""
    for node in ast.walk(loop.iter):
        if isinstance(node, ast.Call) and name_of(node.func) == "range":
            if len(node.args) == 1:
                return 0
            start = node.args[0]
            return start.value if isinstance(start, ast.Constant) else None
    return None
