"""Commands of the command line. Each module has `add_commands`, and one function for every command.

A command's function has the name of the command, with _ instead of -. The argument of the function is the parsed
options, and the result is an exit status or None. Each function imports the modules that it uses, so that help is shown
quickly.
"""

import argparse
import ast
from collections.abc import Callable, Sequence
from typing import Any

Add = Callable[..., argparse.ArgumentParser]
"""Function that creates a command from a name, a sentence and examples (`__main__._command`)."""

DATA = "tiny, small, full or varied (synthetic), or a folder with the layout of the course data"
WORKERS = "number of parallel processes; 0: one per core"
SCHEDULER = (
    "address of a running Dask scheduler, for example tcp://10.0.0.1:8786; default: processes on this machine"
)


def add_parameters(command: argparse.ArgumentParser) -> None:
    """Add the option -p, which sets parameters."""
    command.add_argument(
        "-p", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"), dest="params",
        help="set a parameter; may be given several times; `cvae-lab params` lists names and defaults",
    )  # fmt: skip


def values(pairs: Sequence[Sequence[str]], reserved: Sequence[str] = ("data",)) -> dict[str, Any]:
    """Return the parameters given by -p. A value that is a Python literal is evaluated; other values are text.

    Args:
        reserved: names that the command sets itself. Raises ConfigError if a reserved name is given.
    """
    from cvae_lab.config import ConfigError

    for name, _ in pairs:
        if name in reserved:
            raise ConfigError(
                f"this command does not accept -p {name}, because the command sets {name}; see the option --help of "
                f"the command."
            )
    return {name: _literal(text) for name, text in pairs}


def _literal(text: str) -> Any:  # noqa: ANN401
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return text


def log_line(text: str) -> None:
    """Print a line immediately, also to a pipe."""
    print(text, flush=True)
