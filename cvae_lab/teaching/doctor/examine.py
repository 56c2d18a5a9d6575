"""Find mistakes in the source code of a student's trainer. The code is not run.

Each mistake is reported with file, line, reason and correction.
"""

import ast
import json
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from cvae_lab.data.pixels import DataError
from cvae_lab.teaching.doctor.rules import RULES, Rule

MAX_BYTES = 5_000_000  # maximum size of a source file; larger files are not read
CANNOT_SEE = (
    "Not checked: values that only exist at run time (shapes, data, command-line options), imported modules that are "
    "not in the folder, and mistakes that are not in this list."
)


@dataclass(frozen=True)
class Finding:
    """A mistake at one line of a file."""

    file: str
    line: int
    rule: Rule

    def __str__(self) -> str:
        kind = "note" if self.rule.note else "mistake"
        return (
            f"{self.file}:{self.line}: {kind}: {self.rule.name}: {self.rule.why}. Write {self.rule.instead}."
        )


def examine(path: Path, unread: Callable[[str], object] | None = None) -> list[Finding]:
    """Return the mistakes in a .py or .ipynb file, or in a folder or zip of such files, by file and line.

    In a notebook, lines are counted over all code cells together. Raises DataError if there is no such file, or if no
    file can be examined.

    Args:
        unread: called with the reason for each file that cannot be examined, if other files can. Without `unread`, the
            first such file raises DataError.
    """
    findings, errors, count = [], [], 0
    for name, read in sources(path):
        count += 1
        try:
            findings += examine_source(read(), name)
        except DataError as error:
            if unread is None:
                raise
            errors.append(error)
    if errors and len(errors) == count:
        raise errors[0]
    for error in errors:
        unread(str(error))
    return findings


def examine_source(source: str, name: str = "trainer.py") -> list[Finding]:
    """Return the mistakes in Python source text, by line. Raises DataError for invalid Python."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError) as error:
        line = getattr(error, "lineno", None) or 1
        raise DataError(f"{name}: line {line} is not valid Python ({error}); correct it first") from error
    found = {(line, rule) for rule in RULES for line in rule.find(tree)}
    return [
        Finding(name, line, rule) for line, rule in sorted(found, key=lambda pair: (pair[0], pair[1].name))
    ]


def sources(path: Path) -> Iterator[tuple[str, Callable[[], str]]]:
    """Yield (name, function that returns the Python source) of every .py and .ipynb file at a path.

    A zip is read without unpacking it.
    """
    if path.is_dir():
        files = sorted(f for f in path.rglob("*") if f.suffix in (".py", ".ipynb") and f.is_file())
        kept = [
            f for f in files if not {".ipynb_checkpoints", "__MACOSX"} & set(f.parts) and f.name[:2] != "._"
        ]
        texts = ((str(f.relative_to(path)), partial(_read, f)) for f in kept)
    elif zipfile.is_zipfile(path):
        texts = _from_zip(path)
    elif path.is_file():
        texts = iter([(path.name, partial(_read, path))])
    else:
        raise DataError(f"{path}: there is no such file; give a .py, .ipynb or .zip file, or a folder")
    count = 0
    for name, read in texts:
        count += 1
        yield name, partial(_source, name, read)
    if not count:
        raise DataError(f"{path}: contains no .py or .ipynb file; give the source code of the trainer")


def _source(name: str, read: Callable[[], str]) -> str:
    return _notebook_source(read(), name) if name.endswith(".ipynb") else read()


def _read(file: Path) -> str:
    if file.stat().st_size > MAX_BYTES:
        raise DataError(
            f"{file}: larger than {MAX_BYTES // 1_000_000} MB, so it is not read; give only source files"
        )
    return file.read_text(encoding="utf-8", errors="replace")


def _from_zip(path: Path) -> Iterator[tuple[str, Callable[[], str]]]:
    with zipfile.ZipFile(path) as archive:
        for item in archive.infolist():
            if item.filename.endswith((".py", ".ipynb")) and not item.filename.startswith("__MACOSX"):
                yield item.filename, partial(_read_from_zip, path, archive, item)


def _read_from_zip(path: Path, archive: zipfile.ZipFile, item: zipfile.ZipInfo) -> str:
    try:
        with archive.open(item) as file:
            content = file.read(MAX_BYTES + 1)  # the size given in the archive may be wrong
    except (zipfile.BadZipFile, RuntimeError, NotImplementedError, OSError, EOFError) as error:
        raise DataError(
            f"{path}: {item.filename} cannot be unpacked ({error}); create the zip file again"
        ) from error
    if len(content) > MAX_BYTES:
        raise DataError(
            f"{path}: {item.filename} is larger than {MAX_BYTES // 1_000_000} MB; remove it from the zip"
        )
    return content.decode("utf-8", errors="replace")


def _notebook_source(text: str, name: str) -> str:
    """Return all code cells as one Python source, in which shell commands and magics are comments."""
    try:
        cells = json.loads(text)["cells"]
        code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{name}: this is not a notebook ({error}); save it again in Jupyter") from error
    lines = "\n".join(code).splitlines()
    return "\n".join("# " + line if line.lstrip().startswith(("!", "%", "?")) else line for line in lines)
