"""Rules about the loop over frames: frame, label and z as inputs of each module, and the sum of the losses."""

import ast
import re
from collections.abc import Iterator

from cvae_lab.teaching.doctor.flow import Call, Flow, Tag
from cvae_lab.teaching.doctor.syntax import Function, first_value, functions, name_of, names_in, roles_of

EVALUATION = re.compile(r"val|eval|test|infer|predict|generat|rollout|demo|submi", re.I)
LOGVAR = re.compile(r"log_?var|ln_?var|log_?sigma", re.I)


def is_evaluation(function: Function) -> bool:
    """Return whether a function has the name of a validation or test step."""
    return bool(EVALUATION.search(function.name)) and not re.search("train", function.name, re.I)


def _flows(tree: ast.Module) -> Iterator[tuple[Function, Flow]]:
    roles = roles_of(tree)
    for function in functions(tree):
        flow = Flow(function, roles)
        if flow.of_role("Decoder_Fusion") or flow.of_role("Generator"):
            yield function, flow


def _target(flow: Flow, call: Call) -> int | None:
    """Return the index of the predicted frame minus the loop variable.

    The index is derived from the loss in the same loop, or from the range of the loop if there is no such loss.
    """
    for other in flow.calls.values():
        if other.loop is call.loop and re.search(r"mse|criterion|l1", other.role, re.I):
            offsets = [tag.offset for value in other.arguments for tag in value if tag.kind == "frame"]
            if len(offsets) == 1 and offsets[0] is not None:
                return offsets[0]
    start = first_value(call.loop) if call.loop else None
    return None if start is None else 1 - start


def _offsets(value: frozenset[Tag], kind: str) -> set[int]:
    return {tag.offset for tag in value if tag.kind == kind and tag.offset is not None}


def posterior_of_previous_frame(tree: ast.Module) -> Iterator[int]:
    """Find a posterior whose input is the previous frame, true or predicted, instead of the frame to be predicted."""
    for function, flow in _flows(tree):
        for call in flow.of_role("Gaussian_Predictor"):
            target = _target(flow, call) if call.loop and call.arguments else None
            seen = _offsets(call.arguments[0], "frame") if call.arguments else set()
            predicted = (
                call.arguments and Tag("prediction") in call.arguments[0] and not is_evaluation(function)
            )
            if target is not None and (seen == {target - 1} or (predicted and target not in seen)):
                yield call.node.lineno


def label_off_by_one(tree: ast.Module) -> Iterator[int]:
    """Find a decoder whose input is the label of another frame than the predicted frame."""
    for function, flow in _flows(tree):
        for call in flow.of_role("Decoder_Fusion"):
            target = _target(flow, call) if call.loop and len(call.arguments) > 1 else None
            labels = _offsets(call.arguments[1], "label") if len(call.arguments) > 1 else set()
            if target is not None and len(labels) == 1 and labels != {target}:
                yield _line_of_label(function, call)


def _line_of_label(function: Function, call: Call) -> int:
    """Return the last line before a call of the decoder that encodes the label for this call."""
    name = name_of(call.node.args[1]) if len(call.node.args) > 1 else ""
    lines = [
        a.lineno for a in ast.walk(function)
        if isinstance(a, ast.Assign) and name and any(name in names_in(t) for t in a.targets)
    ]  # fmt: skip
    return max((line for line in lines if line <= call.node.lineno), default=call.node.lineno)


def posterior_in_evaluation(tree: ast.Module) -> Iterator[int]:
    """Find z sampled from the posterior, whose input is the true frame, in validation or test."""
    yield from _training_step_in_evaluation(tree)
    for function, flow in _flows(tree):
        if not is_evaluation(function):
            continue
        for call in flow.of_role("Decoder_Fusion"):
            z = call.arguments[2] if len(call.arguments) > 2 else frozenset()
            if Tag("posterior") in z and not {Tag("noise"), Tag("uniform")} & z:
                yield call.node.lineno


def _training_step_in_evaluation(tree: ast.Module) -> Iterator[int]:
    """Find a validation function that calls the training step, which samples z from the posterior."""
    steps = {
        function.name for function, flow in _flows(tree)
        if re.search("train", function.name, re.I) and function.name != "train" and flow.of_role("Gaussian_Predictor")
    }  # fmt: skip
    for function in functions(tree):
        if is_evaluation(function):
            for node in ast.walk(function):
                if isinstance(node, ast.Call) and name_of(node.func) in steps:
                    yield node.lineno


def teacher_forced_evaluation(tree: ast.Module) -> Iterator[int]:
    """Find true previous frames as the input of the decoder in validation or test."""
    for function in functions(tree):
        for node in ast.walk(function) if is_evaluation(function) else ():
            if isinstance(node, ast.Call) and any(
                re.search(r"^tf|teacher|forc", word.arg or "", re.I)
                and isinstance(word.value, ast.Constant) and word.value.value
                for word in node.keywords
            ):  # fmt: skip
                yield node.lineno
    for function, flow in _flows(tree):
        if not is_evaluation(function):
            continue
        for call in flow.of_role("Decoder_Fusion"):
            previous = call.arguments[0] if call.arguments else frozenset()
            if _offsets(previous, "frame") and Tag("prediction") not in previous:
                yield call.node.lineno


def loss_of_last_frame(tree: ast.Module) -> Iterator[int]:
    """Find a loss that is computed from the last frame only, or in the loop over frames without a sum."""
    roles = set(roles_of(tree).items())
    decoders = {name for name, role in roles if role in ("Generator", "Decoder_Fusion")}
    for function in functions(tree):
        for loop in ast.walk(function):
            if isinstance(loop, ast.For) and names_in(loop) & decoders and not any(
                isinstance(inner, ast.For) and inner is not loop and names_in(inner) & decoders
                for inner in ast.walk(loop)
            ):  # fmt: skip
                yield from _unsummed(function, loop)


def _unsummed(function: Function, loop: ast.For) -> Iterator[int]:
    inside = list(ast.walk(loop))
    plain = {
        t.id for a in inside if isinstance(a, ast.Assign) for t in _flat(a.targets)
        if isinstance(t, ast.Name) and t.id not in names_in(a.value)
    }  # fmt: skip
    kept = {name_of(n.func.value) for n in inside if isinstance(n, ast.Call) and name_of(n.func) == "append"
            and isinstance(n.func, ast.Attribute)}  # fmt: skip
    after = [n for n in ast.walk(function) if getattr(n, "lineno", 0) > (loop.end_lineno or 0)]
    for node in after:
        if _is_loss(node):
            names = {part.id for part in ast.walk(node) if isinstance(part, ast.Name)}
            if names and names & plain and not names & kept:
                yield node.lineno
    read_later = {n.id for n in after if isinstance(n, ast.Name)}
    for statement in inside:
        if isinstance(statement, ast.Assign) and _is_loss(statement.value):
            name = name_of(statement.targets[0])
            others = [n for n in inside if isinstance(n, ast.stmt) and n is not statement and n is not loop]
            used = any(name in names_in(n) for n in others if not isinstance(n, ast.If | ast.For | ast.With))
            if name in plain and name in read_later and not used:
                yield statement.lineno


def _flat(targets: list[ast.expr]) -> Iterator[ast.expr]:
    for target in targets:
        yield from target.elts if isinstance(target, ast.Tuple) else [target]


def _is_loss(node: ast.AST) -> bool:
    """Return whether an expression is a loss: a call of a loss function, a mean squared error, or a KL divergence."""
    if isinstance(node, ast.BinOp):
        return any(_is_loss(part) for part in (node.left, node.right))
    if not isinstance(node, ast.Call):
        return False
    if re.search(r"mse|criterion|l1_loss|smooth_l1|kl", name_of(node.func), re.I):
        return True
    inner = (
        node.args[0] if node.args and names_in(node.func) & {"torch"} else getattr(node.func, "value", node)
    )
    if name_of(node.func) not in ("mean", "sum") or inner is node:
        return False
    squares = any(
        isinstance(part, ast.BinOp) and isinstance(part.op, ast.Pow) and isinstance(part.left, ast.BinOp)
        for part in ast.walk(inner)
    )
    names = names_in(inner)
    return squares or ("exp" in names and any(LOGVAR.search(name) for name in names)) or _is_loss(inner)
