"""Command line of the package: `cvae-lab COMMAND`, or `python -m cvae_lab COMMAND`.

Exit status: 0 success, 1 error with an explanation in one line, 2 wrong usage, 143 terminated by SIGTERM.
"""

import argparse
import signal
import sys
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from typing import Any

COMMANDS = (
    *("cvae_lab.runs.commands." + name for name in (
        "data", "video", "training", "pretraining", "prediction", "comparison", "benchmark", "records",
    )),
    "cvae_lab.teaching.commands",
)  # fmt: skip
"""The modules that add commands, in the order of the help text."""

CONTINUE = "to continue, run the same command again; for `train`, add --resume."


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse and run one command; return its exit status."""
    options = parser().parse_args(arguments)
    try:
        with _sigterm_as_exception():
            return getattr(import_module(options.module), options.function)(options) or 0
    except KeyboardInterrupt:
        print(f"cvae-lab: interrupted; {CONTINUE}", file=sys.stderr)
        return 1
    except _Terminated:
        print(f"cvae-lab: terminated; {CONTINUE}", file=sys.stderr)
        return 128 + signal.SIGTERM
    except (ValueError, OSError, RuntimeError) as error:
        print(f"cvae-lab: {error}", file=sys.stderr)
        return 1


class _Terminated(BaseException):
    """Exception for SIGTERM. `except Exception` does not handle a BaseException like a failed run."""


@contextmanager
def _sigterm_as_exception() -> Iterator[None]:
    """Raise _Terminated on SIGTERM, so that incomplete files are removed, workers stopped and locks released."""

    def terminate(*_: Any) -> None:  # noqa: ANN401
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a second signal does not interrupt the clean-up
        raise _Terminated

    try:
        before = signal.signal(signal.SIGTERM, terminate)
    except ValueError:  # not in the main thread, where signals cannot be handled
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class _Help(argparse.RawDescriptionHelpFormatter):
    """Help formatter that keeps the line breaks of examples and shows the default values of options."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        text = action.help or ""
        if not action.option_strings or "default" in text or action.default in (argparse.SUPPRESS, None, []):
            return text
        default = " ".join(map(str, action.default)) if isinstance(action.default, list) else action.default
        return f"{text} (default: {'off' if default is False else str(default).replace('%', '%%')})"


def parser() -> argparse.ArgumentParser:
    """Return the parser of all commands, without importing torch or pandas, so that help is shown quickly."""
    root = argparse.ArgumentParser(
        "cvae-lab", description="Pose-conditioned video prediction with a conditional VAE.", formatter_class=_Help,
        epilog="examples:\n  cvae-lab sweep --out runs/first -p minutes 4\n  cvae-lab predict runs/first\n\n"
        "`cvae-lab COMMAND --help` explains a command.\n`cvae-lab params` lists all parameters.",
    )  # fmt: skip
    commands = root.add_subparsers(required=True, metavar="command")
    for module in COMMANDS:
        import_module(module).add_commands(partial(_command, commands, module=module))
    return root


def _command(
    commands: Any,  # noqa: ANN401
    name: str,
    text: str,
    *examples: str,
    module: str,
    aliases: Sequence[str] = (),
) -> argparse.ArgumentParser:
    """Add a command that imports `module` and calls the function of the same name, with _ instead of -."""
    shown = "".join(f"\n  cvae-lab {name} {example}".rstrip() for example in examples)
    command = commands.add_parser(
        name, help=text, description=textwrap.fill(f"{text[0].upper()}{text[1:]}.", 78),
        formatter_class=_Help, aliases=aliases,
        epilog=f"example{'s' if len(examples) > 1 else ''}:{shown}",
    )  # fmt: skip
    command.set_defaults(function=name.replace("-", "_"), module=module)
    return command


if __name__ == "__main__":
    sys.exit(main())
