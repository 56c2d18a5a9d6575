"""Rules about noise, training and checkpoints. Each function yields the lines with its mistake."""

import ast
import re
from collections.abc import Iterator

from cvae_lab.teaching.doctor.flow import Function, functions, name_of, names_in, nodes_of, scopes

NOISE_NAME = re.compile(r"^(eps|epsilon|noise|z|latent|sample)", re.I)
OPTIMIZER = re.compile(r"opt|adam|sgd|scaler", re.I)
LOGVAR = re.compile(r"log_?var|lnvar", re.I)


def uniform_noise(tree: ast.Module) -> Iterator[int]:
    """z or its noise is drawn by `torch.rand`, which is uniform."""
    for function in functions(tree):
        reparameterises = "reparam" in function.name.lower()
        for node in ast.walk(function):
            if isinstance(node, ast.Call) and name_of(node.func) in ("rand", "rand_like", "uniform_") and (
                names_in(node.func) & {"torch", "np", "numpy"} or name_of(node.func) != "rand"
            ):  # fmt: skip
                targets = [
                    name_of(t)
                    for a in ast.walk(function)
                    if isinstance(a, ast.Assign) and node in ast.walk(a.value)
                    for t in a.targets
                ]
                if reparameterises or any(NOISE_NAME.match(name) for name in targets):
                    yield node.lineno


def logvar_as_deviation(tree: ast.Module) -> Iterator[int]:
    """`mu + logvar * eps` or `mu + exp(logvar) * eps`: the factor must be exp(logvar / 2)."""
    for function in functions(tree):
        defined = {
            name_of(t): a.value
            for a in ast.walk(function)
            if isinstance(a, ast.Assign)
            for t in a.targets
            if isinstance(t, ast.Name)
        }
        for node in ast.walk(function):
            if not (isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add)):
                continue
            for mean, product in ((node.left, node.right), (node.right, node.left)):
                if not (re.search(r"mu|mean", name_of(mean), re.I) and isinstance(product, ast.BinOp)):
                    continue
                if isinstance(product.op, ast.Mult) and any(
                    _is_variance(part, defined) for part in (product.left, product.right)
                ):
                    yield node.lineno


def _is_variance(node: ast.expr, defined: dict[str, ast.expr], depth: int = 0) -> bool:
    """Whether an expression is logvar itself, or exp(logvar) without the factor 1/2."""
    if isinstance(node, ast.Name):
        if LOGVAR.search(node.id):
            return True
        source = defined.get(node.id)
        return (
            depth < 3
            and source is not None
            and "exp" in names_in(source)
            and _is_variance(source, {}, depth + 1)
        )
    if not isinstance(node, ast.Call) or name_of(node.func) not in ("exp", "exp_"):
        return False
    inner = node.args[0] if node.args else node.func.value
    return isinstance(inner, ast.Name | ast.Attribute) and bool(LOGVAR.search(name_of(inner)))


def one_draw_per_epoch(tree: ast.Module) -> Iterator[int]:
    """The random decision about teacher forcing is made outside the loop over batches."""
    for function in functions(tree):
        loaders = [
            n for n in ast.walk(function)
            if isinstance(n, ast.For) and any("loader" in name.lower() for name in names_in(n.iter))
        ]  # fmt: skip
        inside = {id(n) for loop in loaders for n in ast.walk(loop)}
        for node in ast.walk(function):
            draws = isinstance(node, ast.Compare) and {"random", "rand", "uniform"} & names_in(node)
            if (
                loaders
                and draws
                and id(node) not in inside
                and re.search("tf|teacher|forc", _text(node), re.I)
            ):
                yield node.lineno


def _text(node: ast.AST) -> str:
    return " ".join(sorted(names_in(node)))


def unshuffled_clips(tree: ast.Module) -> Iterator[int]:
    """The training loader does not shuffle."""
    for function in functions(tree):
        if "train" not in function.name.lower():
            continue
        for node in ast.walk(function):
            if isinstance(node, ast.Call) and name_of(node.func) == "DataLoader":
                words = {word.arg: word.value for word in node.keywords}
                shuffle, sampler = words.get("shuffle"), words.get("sampler") or words.get("batch_sampler")
                off = shuffle is None or (isinstance(shuffle, ast.Constant) and shuffle.value is False)
                if off and sampler is None:
                    yield node.lineno


def optimizer_not_saved(tree: ast.Module) -> Iterator[int]:
    """A checkpoint contains no optimizer state, or contains the weights of the model in its place."""
    for node in ast.walk(tree):
        if not (
            isinstance(node, ast.Call) and name_of(node.func) == "save" and "torch" in names_in(node.func)
        ):
            continue
        for saved in node.args[:1]:
            if not isinstance(saved, ast.Dict):
                continue
            keys = {
                k.value: v
                for k, v in zip(saved.keys, saved.values, strict=True)
                if isinstance(k, ast.Constant)
            }
            optimizers = [v for k, v in keys.items() if re.search("opt", str(k), re.I)]
            resumes = {"epoch", "last_epoch"} & set(keys) or optimizers
            good = any(re.search(r"opt", _text(v.func.value), re.I) for v in optimizers if _state_dict(v))
            if resumes and not good:
                yield (optimizers[0] if optimizers else node).lineno


def _state_dict(node: ast.expr) -> bool:
    return (
        isinstance(node, ast.Call)
        and name_of(node.func) == "state_dict"
        and isinstance(node.func, ast.Attribute)
    )


def restarted_schedules(tree: ast.Module) -> Iterator[int]:
    """After a checkpoint is loaded, the learning-rate schedule starts again from its beginning."""
    schedules = [n for n in ast.walk(tree) if isinstance(n, ast.Call) and re.search(r"LR$", name_of(n.func))]
    if not schedules:
        return
    for function, restored in _resuming(tree):
        own = [n for n in ast.walk(function) if n in schedules]
        continues = any(word.arg == "last_epoch" for n in own for word in n.keywords)
        if not continues and not any(re.search("sched", text, re.I) for text in restored):
            yield own[0].lineno if own else function.lineno


def optimizer_not_restored(tree: ast.Module) -> Iterator[int]:
    """After a checkpoint is loaded, the optimizer is new and its saved state is not restored."""
    for function, restored in _resuming(tree):
        makes = [
            n for n in ast.walk(function)
            if isinstance(n, ast.Call) and re.search(r"Adam|SGD|RMSprop|Muon|Lion", name_of(n.func))
        ]  # fmt: skip
        if makes and not any(re.search("opt", text, re.I) for text in restored):
            yield makes[0].lineno


def _resuming(tree: ast.Module) -> Iterator[tuple[Function, list[str]]]:
    """Yield each function that resumes training from a checkpoint, and the names of the objects that it restores."""
    for function in functions(tree):
        calls = [n for n in ast.walk(function) if isinstance(n, ast.Call)]
        loads = any(name_of(n.func) == "load" and "torch" in names_in(n.func) for n in calls)
        restored = [_text(n.func) for n in calls if name_of(n.func) == "load_state_dict"]
        epochs = [t for n in ast.walk(function) if isinstance(n, ast.Assign) for t in n.targets]
        makes = any(re.search(r"LR$|Adam|SGD", name_of(n.func)) for n in calls)
        if loads and restored and (makes or any("epoch" in name_of(target) for target in epochs)):
            yield function, restored


def short_mean(tree: ast.Module) -> Iterator[int]:
    """The mean PSNR is a sum divided by the number of frames minus one."""
    for node in ast.walk(tree):
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div) and isinstance(node.right, ast.BinOp):
            divisor = node.right
            one_less = isinstance(divisor.op, ast.Sub) and ast.unparse(divisor.right) == "1"
            counts = "len" in names_in(divisor.left) and "sum" in names_in(node.left)
            if one_less and counts and re.search("psnr", _text(node), re.I):
                yield node.lineno


def separate_clips(tree: ast.Module) -> Iterator[int]:
    """Clips of the data set do not overlap, so most windows of frames are never used."""
    for function in functions(tree):
        if function.name == "__getitem__":
            arguments = [argument.arg for argument in function.args.args[1:]]
            for node in ast.walk(function):
                if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult):
                    names = names_in(node)
                    if names & set(arguments) and any(re.search(r"len", name, re.I) for name in names):
                        yield node.lineno
                        break


def accumulated_ramp(tree: ast.Module) -> Iterator[int]:
    """A cyclical ramp is computed by repeated addition, so it does not reach its last value."""
    for function in functions(tree):
        if re.search("cycl|anneal|frange", function.name, re.I):
            for loop in ast.walk(function):
                if isinstance(loop, ast.While) and any(isinstance(n, ast.AugAssign) for n in ast.walk(loop)):
                    yield loop.lineno


def hidden_eval(tree: ast.Module) -> Iterator[int]:
    """A module defines its own `eval` method, so batch norm and dropout stay in training mode."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef) and any(name_of(base) == "Module" for base in node.bases):
            for method in node.body:
                if isinstance(method, Function) and method.name == "eval":
                    yield method.lineno


def missing_zero_grad(tree: ast.Module) -> Iterator[int]:
    """Gradients are never set to zero between steps.

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
    """Whether a node calls `zero_grad`, assigns to a `.grad`, or calls `.grad.zero_()`."""
    if isinstance(node, ast.Assign):
        return any(isinstance(target, ast.Attribute) and target.attr == "grad" for target in node.targets)
    if not isinstance(node, ast.Call):
        return False
    return name_of(node.func) == "zero_grad" or (
        name_of(node.func) in ("zero_", "fill_", "detach_") and "grad" in names_in(node.func)
    )


def _is_optimizer_step(node: ast.AST) -> bool:
    """Whether a node calls `step` of an optimizer, a scaler or a list of them, by the name of the object."""
    return (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr == "step"
        and bool(OPTIMIZER.search(_text(node.func.value)))
        and not re.search(r"sched", name_of(node.func.value), re.I)
    )


def averaged_kl(tree: ast.Module) -> Iterator[int]:
    """The KL is averaged over latents instead of summed."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and name_of(node.func) == "mean":
            inner = node.args[0] if node.args else getattr(node.func, "value", node)
            names = names_in(inner)
            if "exp" in names and any(LOGVAR.search(name) for name in names) and isinstance(inner, ast.BinOp):
                yield node.lineno
