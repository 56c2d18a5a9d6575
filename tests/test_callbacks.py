"""Check that widget callbacks and cells share no mutable state, because they may run in different threads."""

import ast
import json
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "notebooks"
WITH_CALLBACKS = sorted(path for path in ROOT.glob("**/*.ipynb") if "interactive_output(" in path.read_text())


def cells(path):
    """Return the syntax tree of every code cell that contains only Python."""
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "code" and not source.lstrip().startswith(("%", "!")):
            yield ast.parse(source)


def assigned(tree):
    """Return the names that the cell assigns at its top level, including functions and imports."""
    found = set()
    inner = [node for function in ast.walk(tree) if isinstance(function, ast.FunctionDef | ast.Lambda)
             for node in ast.walk(function) if node is not function]  # fmt: skip
    for node in set(ast.walk(tree)) - set(inner):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
    return found


def free_names(function):
    """Return the names that a function reads from outside when it runs. Default values are not included."""
    arguments = function.args
    own = {a.arg for a in [*arguments.args, *arguments.kwonlyargs, arguments.kwarg, arguments.vararg] if a}
    body = function.body if isinstance(function.body, list) else [function.body]
    nodes = [node for part in body for node in ast.walk(part) if isinstance(node, ast.Name)]
    own |= {node.id for node in nodes if isinstance(node.ctx, ast.Store)}
    return {node.id for node in nodes} - own


@pytest.mark.parametrize("path", WITH_CALLBACKS, ids=lambda path: path.stem)
def test_no_later_cell_changes_a_name_that_a_callback_reads(path):
    trees = list(cells(path))
    functions = {node.name: node for tree in trees for node in tree.body if isinstance(node, ast.FunctionDef)}
    for index, tree in enumerate(trees):
        for call in ast.walk(tree):
            if isinstance(call, ast.Call) and getattr(call.func, "attr", "") == "interactive_output":
                callback = call.args[0]
                read, todo = set(), [callback if isinstance(callback, ast.Lambda) else functions[callback.id]]
                while todo:
                    new = free_names(todo.pop()) - read
                    read |= new
                    todo += [functions[name] for name in new if name in functions]
                later = set().union(*map(assigned, trees[index + 1 :]))
                assert not read & later, f"cell {index}: a later cell assigns {sorted(read & later)}"


@pytest.mark.parametrize("path", WITH_CALLBACKS, ids=lambda path: path.stem)
def test_no_cell_sets_a_mode_of_torch_that_a_callback_would_not_have(path):
    """Gradient mode and autocast are set per thread. A callback in another thread has the default modes."""
    for tree in cells(path):
        for node in tree.body:
            if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
                name = ast.unparse(node.value.func)
                assert "set_grad_enabled" not in name
                assert "autocast" not in name
