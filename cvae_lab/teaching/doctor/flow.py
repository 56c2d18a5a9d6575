"""Data-flow analysis of a student's trainer on its syntax tree: which kinds of values a variable may have.

The analysis visits the statements of one function in order. It records which variables contain frames, labels,
features, predictions, noise or z. The values of both branches of an `if` are merged. A loop over frames is analysed
twice, so that values from the previous iteration are known. No code is executed.
"""

import ast
import re
from dataclasses import dataclass

from cvae_lab.teaching.doctor.syntax import Function, first_value, loops_over_frames, name_of

_SEQUENCE = r"(s|_seq|_seqs|_sequence|_list|_batch|_clip|_tensor)?$"
_PART = r"^(input_|batch_|train_|val_|test_|gt_|true_)?"
FRAMES = re.compile(_PART + r"(img|image|frame|video|clip|rgb|x)" + _SEQUENCE, re.I)
LABELS = re.compile(_PART + r"(label|lab|pose|cond|condition|p|lbl|skeleton|keypoint)" + _SEQUENCE, re.I)


@dataclass(frozen=True)
class Tag:
    """One kind of content that a value may have.

    Args:
        kind: frames, labels (whole clips), frame, label (one step), prediction, posterior, prior, noise, uniform.
        offset: for frame and label: index minus the number of the loop's iteration; None if the index is constant or
            unknown. For frames and labels: number of frames that a slice such as x[1:] leaves out at the beginning.
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


class Flow:
    """The calls in one function, and the possible content of their arguments."""

    def __init__(self, function: Function, roles: dict[str, str]) -> None:
        self.roles, self.values, self.calls, self.loop = roles, {}, {}, None
        self.counters: dict[str, int] = {}  # loop variables, and the value of each in the first iteration
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
        if loops_over_frames(node) or self._iterates(node.target, node.iter):
            self.loop = node
        self._targets_from_loader(node.target)
        for _ in range(2):
            before = dict(self.values)
            self._block(node.body)
            for name, value in before.items():
                self.values[name] = self.values.get(name, NOTHING) | value
        self.loop = outer

    def _iterates(self, target: ast.expr, source: ast.expr, start: int = 0) -> bool:
        """Set the elements of `for x_t, p_t in zip(x[1:], p[1:])`; return whether any source is a clip."""
        name = name_of(source.func) if isinstance(source, ast.Call) else ""
        if name == "zip" and isinstance(target, ast.Tuple):
            pairs = zip(target.elts, source.args, strict=False)
            found = [self._iterates(*pair) for pair in pairs]  # a list, because each call sets its variable
            return any(found)
        if name == "enumerate" and isinstance(target, ast.Tuple) and source.args:
            first = source.args[1] if len(source.args) > 1 else None
            first = first or next((word.value for word in source.keywords), None)
            self.counters[name_of(target.elts[0])] = first.value if isinstance(first, ast.Constant) else 0
            return self._iterates(target.elts[1], source.args[0])
        clips = {tag for tag in self._value(source) if tag.kind in ("frames", "labels")}
        if name == "range" or not clips or not isinstance(target, ast.Name):
            return False
        self.values[target.id] = frozenset(Tag(tag.kind[:-1], tag.offset or 0) for tag in clips)
        return True

    def _targets_from_loader(self, target: ast.expr) -> None:
        """For `for img, label in loader` or `img, label = batch`, derive the content of variables from their names."""
        for part in ast.walk(target):
            for pattern, kind in ((FRAMES, "frames"), (LABELS, "labels")):
                if (
                    isinstance(part, ast.Name) and isinstance(target, ast.Tuple)
                    and pattern.match(part.id) and not self.values.get(part.id)
                ):  # fmt: skip
                    self.values[part.id] = frozenset({Tag(kind)})

    def _assign(self, target: ast.expr, source: ast.expr) -> None:
        if isinstance(target, ast.Name):
            self.values[target.id] = self._value(source)
        elif isinstance(target, ast.Tuple):
            pairs = isinstance(source, ast.Tuple) and len(source.elts) == len(target.elts)
            for index, part in enumerate(target.elts):
                self._assign(part, source.elts[index] if pairs else source)
            if not pairs and not self._value(source):
                self._targets_from_loader(target)

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
        start = first_value(self.loop) if self.loop and loops_over_frames(self.loop) else None
        whole = {"frame": "frames", "label": "labels"}
        return frozenset(
            Tag(whole[tag.kind]) if tag.kind in whole and start is not None and tag.offset == -start else tag
            for tag in value
        )

    def _subscript(self, node: ast.Subscript) -> Value:
        return frozenset(self._element(tag, node.slice) for tag in self._value(node.value))

    def _element(self, tag: Tag, index: ast.expr) -> Tag:
        """The content of `value[index]` if the value has this tag."""
        if tag.kind not in ("frames", "labels"):
            return tag
        shift, counters = tag.offset or 0, dict(self.counters)
        if self.loop and isinstance(self.loop.target, ast.Name) and loops_over_frames(self.loop):
            counters[self.loop.target.id] = 0
        parts = index.elts if isinstance(index, ast.Tuple) else [index]
        for part in parts:
            offset = _offset(part, counters)
            if offset is not None:
                return Tag(tag.kind[:-1], offset + shift)
        for part in parts:
            if isinstance(part, ast.Constant) and isinstance(part.value, int):
                return Tag(tag.kind[:-1], None, part.value + shift if part.value >= 0 else part.value)
            lower = part.lower if isinstance(part, ast.Slice) else None
            if isinstance(lower, ast.Constant) and isinstance(lower.value, int) and lower.value > 0:
                return Tag(tag.kind, shift + lower.value)
        return tag


def _offset(node: ast.expr, counters: dict[str, int]) -> int | None:
    """Index expression minus the number of the iteration, for a counter such as `t` or `t - 1`; None for others."""
    if isinstance(node, ast.Name) and node.id in counters:
        return counters[node.id]
    if (
        isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add | ast.Sub)
        and isinstance(node.left, ast.Name) and node.left.id in counters
        and isinstance(node.right, ast.Constant) and isinstance(node.right.value, int)
    ):  # fmt: skip
        return counters[node.left.id] + (1 if isinstance(node.op, ast.Add) else -1) * node.right.value
    return None
