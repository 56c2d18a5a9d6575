"""Rules about noise, standard deviation and KL of the latent.

Each function yields the lines with one kind of mistake.
"""

import ast
import re
from collections.abc import Iterator

from cvae_lab.teaching.doctor.syntax import Function, definitions, functions, name_of, names_in, roles_of

NOISE_NAME = re.compile(r"^(eps|epsilon|noise|z|latent|sample)", re.I)
LOGVAR = re.compile(r"log_?var|ln_?var|log_?sigma", re.I)
DEVIATION = re.compile(r"std|sigma|scale|dev", re.I)


def uniform_noise(tree: ast.Module) -> Iterator[int]:
    """Find z or noise of z that is drawn by `torch.rand`, which is uniform."""
    decoders = {name for name, role in roles_of(tree).items() if role == "Decoder_Fusion"}
    for function in functions(tree):
        reparameterises = "reparam" in function.name.lower()
        decoded = {
            id(part) for n in ast.walk(function) if isinstance(n, ast.Call) and name_of(n.func) in decoders
            for argument in n.args for part in ast.walk(argument)
        }  # fmt: skip
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
                if reparameterises or id(node) in decoded or any(NOISE_NAME.match(name) for name in targets):
                    yield node.lineno


def logvar_as_deviation(tree: ast.Module) -> Iterator[int]:
    """Find `mu + logvar * eps` or `mu + exp(logvar) * eps`, where the factor must be exp(logvar / 2)."""
    for function in functions(tree):
        defined = definitions(function)
        arguments = [a.arg for a in function.args.args if a.arg != "self"]
        if re.search("reparam|sample_z|sample_latent", function.name, re.I) and len(arguments) >= 2:
            mean, variance = arguments[:2]
            if not DEVIATION.search(variance.replace("log_sigma", "")):
                yield from _scaled_by(function, mean, variance, defined)
        for node in ast.walk(function):
            if (
                isinstance(node, ast.Call)
                and name_of(node.func) in ("Normal", "normal")
                and len(node.args) > 1
            ) and _is_variance(node.args[1], defined):
                yield node.lineno
            if not (isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add)):
                continue
            for mean, product in ((node.left, node.right), (node.right, node.left)):
                if not (re.search(r"mu|mean", name_of(mean), re.I) and isinstance(product, ast.BinOp)):
                    continue
                if isinstance(product.op, ast.Mult) and any(
                    _is_variance(part, defined) for part in (product.left, product.right)
                ):
                    yield node.lineno


def _scaled_by(function: Function, mean: str, variance: str, defined: dict[str, ast.expr]) -> Iterator[int]:
    """Yield sums of the first argument and a product of noise with the second argument, or with its exponential."""
    wrong = [variance, f"torch.exp({variance})", f"{variance}.exp()"]
    wrong += [name for name, value in defined.items() if ast.unparse(value) in wrong]
    for node in ast.walk(function):
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
            pairs = ((node.left, node.right), (node.right, node.left))
            for first, product in pairs:
                if (
                    ast.unparse(first) == mean
                    and isinstance(product, ast.BinOp)
                    and isinstance(product.op, ast.Mult)
                ) and (ast.unparse(product.left) in wrong or ast.unparse(product.right) in wrong):
                    yield node.lineno


def _is_variance(node: ast.expr, defined: dict[str, ast.expr], depth: int = 0) -> bool:
    """Return whether an expression is logvar, or exp(logvar) without the factor 1/2."""
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


def averaged_kl(tree: ast.Module) -> Iterator[int]:
    """Find a KL that is averaged over latents instead of summed."""
    for function in functions(tree):
        defined = definitions(function)
        for node in ast.walk(function):
            if isinstance(node, ast.Call) and name_of(node.func) == "mean":
                whole = not node.args or "torch" in names_in(node.func)
                inner = node.args[0] if node.args and whole else getattr(node.func, "value", node)
                inner = defined.get(inner.id, inner) if isinstance(inner, ast.Name) else inner
                names = names_in(inner)
                kl = (
                    "exp" in names
                    and any(LOGVAR.search(name) for name in names)
                    and isinstance(inner, ast.BinOp)
                )
                if kl and "sum" not in names:
                    yield node.lineno
