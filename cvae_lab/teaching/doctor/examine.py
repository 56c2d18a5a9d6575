"""Read a student's trainer without running it; report each mistake with file, line, reason and remedy."""

import ast
import json
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cvae_lab.data.pixels import DataError
from cvae_lab.teaching.doctor.rules import RULES, Rule

MAX_BYTES = 5_000_000  # of one source file; larger files are not read
CANNOT_SEE = (
    "Not seen: values that only exist at run time (shapes, data, options given on the command line), code in imported "
    "modules that are not in the folder, and mistakes outside this list."
)


@dataclass(frozen=True)
class Finding:
    """One mistake in one place."""

    file: str
    line: int
    rule: Rule

    def __str__(self) -> str:
        kind = "note" if self.rule.note else "mistake"
        return (
            f"{self.file}:{self.line}: {kind}: {self.rule.name}: {self.rule.why}. Write {self.rule.instead}."
        )


def examine(path: Path) -> list[Finding]:
    """Return the findings in a .py or .ipynb file, a folder or a zip of them, by file and line.

    In a notebook, lines are counted over all code cells together. Raises DataError where nothing can be read.
    """
    findings = []
    for name, source in sources(path):
        findings += examine_source(source, name)
    return findings


def examine_source(source: str, name: str = "trainer.py") -> list[Finding]:
    """Return the findings in Python source text, by line. Raises DataError where it is no valid Python."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError) as error:
        line = getattr(error, "lineno", None) or 1
        raise DataError(f"{name}: line {line} is not valid Python ({error}); correct it first") from error
    found = {(line, rule) for rule in RULES for line in rule.find(tree)}
    return [
        Finding(name, line, rule) for line, rule in sorted(found, key=lambda pair: (pair[0], pair[1].name))
    ]


def sources(path: Path) -> Iterator[tuple[str, str]]:
    """Yield (name, Python source) of every .py and .ipynb in a file, folder or zip; archives are not unpacked."""
    if path.is_dir():
        files = sorted(f for f in path.rglob("*") if f.suffix in (".py", ".ipynb") and f.is_file())
        texts = ((str(f.relative_to(path)), _read(f)) for f in files if ".ipynb_checkpoints" not in f.parts)
    elif zipfile.is_zipfile(path):
        texts = _from_zip(path)
    elif path.is_file():
        texts = iter([(path.name, _read(path))])
    else:
        raise DataError(f"{path}: no such file; give a .py, .ipynb or .zip file, or a folder")
    count = 0
    for name, text in texts:
        count += 1
        yield name, _notebook_source(text, name) if name.endswith(".ipynb") else text
    if not count:
        raise DataError(f"{path}: holds no .py or .ipynb file; give the trainer's source")


def _read(file: Path) -> str:
    if file.stat().st_size > MAX_BYTES:
        raise DataError(
            f"{file}: larger than {MAX_BYTES // 1_000_000} MB, so it is not read; give the source alone"
        )
    return file.read_text(encoding="utf-8", errors="replace")


def _from_zip(path: Path) -> Iterator[tuple[str, str]]:
    with zipfile.ZipFile(path) as archive:
        for item in archive.infolist():
            if item.filename.endswith((".py", ".ipynb")) and not item.filename.startswith("__MACOSX"):
                with archive.open(item) as file:
                    content = file.read(MAX_BYTES + 1)  # bounded, whatever size the archive claims
                if len(content) > MAX_BYTES:
                    raise DataError(
                        f"{path}: {item.filename} is larger than {MAX_BYTES // 1_000_000} MB; leave it out"
                    )
                yield item.filename, content.decode("utf-8", errors="replace")


def _notebook_source(text: str, name: str) -> str:
    """All code cells as one source; lines with shell commands and magics become comments."""
    try:
        cells = json.loads(text)["cells"]
        code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{name}: not a notebook ({error}); save it again in Jupyter") from error
    lines = "\n".join(code).splitlines()
    return "\n".join("# " + line if line.lstrip().startswith(("!", "%", "?")) else line for line in lines)
