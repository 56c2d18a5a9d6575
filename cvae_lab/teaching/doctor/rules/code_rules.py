"""Rules about training, checkpoints and output. Each function yields the lines that contain one kind of mistake."""

import ast
import re
from collections.abc import Iterator
from typing import NamedTuple

from cvae_lab.teaching.doctor.syntax import (
    Function,
    definitions,
    functions,
    name_of,
    names_in,
    nodes_of,
    scopes,
)

OPTIMIZER = re.compile(r"opt|adam|sgd|scaler", re.I)
TEACHER_FORCING = re.compile(r"tf|teacher|forc", re.I)


def one_draw_per_epoch(tree: ast.Module) -> Iterator[int]:
    """Find a random decision about teacher forcing outside the loop over batches."""
    for function in functions(tree):
        loaders = [n for n in ast.walk(function) if isinstance(n, ast.For) and _over_batches(n)]
        inside = {id(n) for loop in loaders for n in ast.walk(loop)}
        for node in ast.walk(function) if loaders else ():
            if id(node) in inside or not isinstance(node, ast.Assign | ast.If):
                continue
            drawn = node.value if isinstance(node, ast.Assign) else node.test
            names = [name_of(t) for t in node.targets] if isinstance(node, ast.Assign) else []
            random = {"random", "rand", "uniform", "bernoulli", "binomial"} & names_in(drawn)
            if random and not names_in(drawn) & {"randperm", "seed"} and TEACHER_FORCING.search(
                " ".join([_text(drawn), *names])
            ):  # fmt: skip
                yield drawn.lineno


def _over_batches(loop: ast.For) -> bool:
    """Return whether a loop is over the batches of a data loader."""
    names = " ".join(names_in(loop.iter))
    return bool(re.search(r"loader|(^|[ _])dl($|[ _])|batches", names, re.I))


def _text(node: ast.AST) -> str:
    return " ".join(sorted(names_in(node)))


def unshuffled_clips(tree: ast.Module) -> Iterator[int]:
    """Find a training loader that does not shuffle."""
    for function in functions(tree):
        for node in ast.walk(function):
            if isinstance(node, ast.Call) and name_of(node.func) == "DataLoader":
                targets = [
                    name_of(t) for a in ast.walk(function) if isinstance(a, ast.Assign) and a.value is node
                    for t in a.targets
                ]  # fmt: skip
                names = " ".join([*(targets or [function.name]), *names_in(node)])
                if not re.search("train", names, re.I) or re.search("val|test", " ".join(targets), re.I):
                    continue
                words = {word.arg: word.value for word in node.keywords}
                shuffle, sampler = words.get("shuffle"), words.get("sampler") or words.get("batch_sampler")
                off = shuffle is None or (isinstance(shuffle, ast.Constant) and shuffle.value is False)
                if off and sampler is None:
                    yield node.lineno


def optimizer_not_saved(tree: ast.Module) -> Iterator[int]:
    """Find a checkpoint without optimizer state, or with the weights of the model as optimizer state."""
    for node, keys in _saved(tree):
        if keys:
            optimizers = [v for k, v in keys.items() if re.search("opt", str(k), re.I)]
            resumes = {"epoch", "last_epoch"} & set(keys) or optimizers
            good = any(re.search(r"opt", _text(v.func.value), re.I) for v in optimizers if _state_dict(v))
            if resumes and not good:
                yield (optimizers[0] if optimizers else node).lineno


def _saved(tree: ast.Module) -> Iterator[tuple[ast.Call, dict[str, ast.expr]]]:
    """Yield each torch.save of a dict, with the expression of each key. The dict may be a variable."""
    for function in functions(tree):
        defined = definitions(function)
        for node in ast.walk(function):
            if isinstance(node, ast.Call) and name_of(node.func) == "save" and "torch" in names_in(node.func):
                saved = node.args[0] if node.args else None
                saved = defined.get(saved.id, saved) if isinstance(saved, ast.Name) else saved
                if isinstance(saved, ast.Dict):
                    pairs = zip(saved.keys, saved.values, strict=True)
                    yield node, {str(k.value): v for k, v in pairs if isinstance(k, ast.Constant)}
                elif isinstance(saved, ast.Call) and name_of(saved.func) == "dict":
                    yield node, {word.arg: word.value for word in saved.keywords if word.arg}


def _state_dict(node: ast.expr) -> bool:
    return (
        isinstance(node, ast.Call)
        and name_of(node.func) == "state_dict"
        and isinstance(node.func, ast.Attribute)
    )


def restarted_schedules(tree: ast.Module) -> Iterator[int]:
    """Find a learning-rate schedule that starts again from the beginning after a checkpoint is loaded."""
    schedules = _calls(tree, r"LR$")
    for resume in _resumes(tree) if schedules else ():
        own = [n for n in _calls(resume.function, r"LR$") if n.lineno > resume.line]
        continues = any(word.arg == "last_epoch" for n in own for word in n.keywords)
        if not continues and not any(re.search("sched", text, re.I) for text in resume.restored):
            yield own[0].lineno if own else resume.line


def optimizer_not_restored(tree: ast.Module) -> Iterator[int]:
    """Find an optimizer whose saved state is not restored after a checkpoint is loaded."""
    optimizers = _calls(tree, OPTIMIZERS)
    for resume in _resumes(tree) if optimizers else ():
        own = [n for n in _calls(resume.function, OPTIMIZERS) if n.lineno > resume.line]
        if not any(re.search("opt", text, re.I) for text in resume.restored):
            yield own[0].lineno if own else resume.line


OPTIMIZERS = r"Adam|SGD|RMSprop|Muon|Lion"


class _Resume(NamedTuple):
    """A function that resumes training: the line that loads the checkpoint, and the objects that it restores."""

    function: Function
    line: int
    restored: list[str]


def _resumes(tree: ast.Module) -> Iterator[_Resume]:
    """Yield each function that loads a checkpoint to continue training: it restores an epoch or makes an optimizer."""
    for function in functions(tree):
        loads = [n.lineno for n in _calls(function, "^load$") if "torch" in names_in(n.func)]
        restored = [_text(n.func) for n in _calls(function, "^load_state_dict$")]
        epochs = [t for n in ast.walk(function) if isinstance(n, ast.Assign) for t in n.targets]
        makes = [n for n in _calls(function, rf"LR$|{OPTIMIZERS}") if n.lineno > min(loads, default=0)]
        if loads and restored and (makes or any("epoch" in name_of(target) for target in epochs)):
            yield _Resume(function, loads[0], restored)


def _calls(tree: ast.AST, pattern: str) -> list[ast.Call]:
    return [n for n in ast.walk(tree) if isinstance(n, ast.Call) and re.search(pattern, name_of(n.func))]


def short_mean(tree: ast.Module) -> Iterator[int]:
    """Find a mean PSNR that is a sum divided by the number of frames minus one."""
    for node in ast.walk(tree):
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div) and isinstance(node.right, ast.BinOp):
            divisor = node.right
            one_less = isinstance(divisor.op, ast.Sub) and ast.unparse(divisor.right) == "1"
            counts = "len" in names_in(divisor.left) and "sum" in names_in(node.left)
            if one_less and counts and re.search("psnr", _text(node), re.I):
                yield node.lineno
        elif (
            isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div) and ast.unparse(node.right) == "628"
        ):
            yield node.lineno


def separate_clips(tree: ast.Module) -> Iterator[int]:
    """Find a data set whose clips do not overlap, so that most windows of frames are never used."""
    for function in functions(tree):
        if function.name == "__getitem__":
            arguments = [argument.arg for argument in function.args.args[1:]]
            for node in ast.walk(function):
                if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult):
                    names = names_in(node)
                    parts = (node.left, node.right)
                    fixed = any(
                        isinstance(part, ast.Constant) and part.value in (8, 10, 16, 32) for part in parts
                    )
                    lengths = re.compile(r"len|n_frames|num_frames|window|seq|clip", re.I)
                    if names & set(arguments) and (fixed or any(lengths.search(name) for name in names)):
                        yield node.lineno
                        break


def accumulated_ramp(tree: ast.Module) -> Iterator[int]:
    """Find a cyclical ramp that is computed by repeated addition and does not reach its last value."""
    for loop in ast.walk(tree):
        if isinstance(loop, ast.While):
            for part in ast.walk(loop):
                if isinstance(part, ast.AugAssign) and isinstance(part.op, ast.Add):
                    is_count = isinstance(part.value, ast.Constant) and isinstance(part.value.value, int)
                    if not is_count and name_of(part.target) in names_in(loop.test):
                        yield loop.lineno
                        break


def hidden_eval(tree: ast.Module) -> Iterator[int]:
    """Find a module with its own `eval` method, so that batch norm and dropout stay in training mode."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef) and any(name_of(base).endswith("Module") for base in node.bases):
            for method in node.body:
                if isinstance(method, Function) and method.name == "eval":
                    yield method.lineno


def missing_zero_grad(tree: ast.Module) -> Iterator[int]:
    """Find training steps between which gradients are never set to zero.

    `backward` and the step of the optimizer may be in different functions, or outside all functions.
    """
    if any(_resets_gradients(node) for node in ast.walk(tree)):
        return
    steps = any(_is_optimizer_step(node) for node in ast.walk(tree))
    for scope in scopes(tree):
        calls = [node for node in nodes_of(scope) if isinstance(node, ast.Call)]
        backward = [node.lineno for node in calls if name_of(node.func) == "backward"]
        if backward and (steps or any(name_of(node.func).endswith("step") for node in calls)):
            yield min(backward)
            return


def _resets_gradients(node: ast.AST) -> bool:
    """Return whether a node calls `zero_grad`, assigns to a `.grad`, or calls `.grad.zero_()`."""
    if isinstance(node, ast.Assign):
        return any(isinstance(target, ast.Attribute) and target.attr == "grad" for target in node.targets)
    if not isinstance(node, ast.Call):
        return False
    return name_of(node.func) == "zero_grad" or (
        name_of(node.func) in ("zero_", "fill_", "detach_") and "grad" in names_in(node.func)
    )


def _is_optimizer_step(node: ast.AST) -> bool:
    """Return whether a node calls `step` of an object with the name of an optimizer, a scaler or a list of these."""
    return (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr == "step"
        and bool(OPTIMIZER.search(_text(node.func.value)))
        and not re.search(r"sched", name_of(node.func.value), re.I)
    )
