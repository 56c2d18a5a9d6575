"""A working copy of the notebooks for a student, outside version control.

A notebook that the student has changed is never overwritten. If the original has changed, the new version is written
to another file in the same folder.
"""

import hashlib
import json
from pathlib import Path

from cvae_lab.data.files import replacing, write_text

RECORD = ".originals.json"  # hashes of the originals that were copied


def originals() -> Path:
    """Return the folder of the notebooks: in the installed package, or beside the package in a checkout."""
    package = Path(__file__).parents[1]
    installed = package / "notebooks"
    return installed if installed.is_dir() else package.parent / "notebooks"


def copy_notebooks(folder: Path, source: Path | None = None) -> list[str]:
    """Copy the notebooks and their solutions to `folder`; return one line per file that was written.

    A copy that is equal to an earlier original is replaced by the current original. A copy that the student has changed
    is kept. If there is a newer original, it is written to `NAME.new.ipynb` in the same folder.
    """
    source = source or originals()
    folder.mkdir(parents=True, exist_ok=True)
    record_file = folder / RECORD
    record = json.loads(record_file.read_text()) if record_file.exists() else {}
    lines = []
    for original in sorted([*source.glob("*.ipynb"), *source.glob("solutions/*.ipynb")]):
        name = original.relative_to(source).as_posix()
        copy, digest = folder / name, _digest(original)
        changed = copy.exists() and _digest(copy) not in (digest, record.get(name))
        if changed and record.get(name) != digest:
            beside = copy.with_suffix(".new.ipynb")
            _copy(original, beside)
            lines.append(f"{beside}: new version of the notebook; your {copy.name} is unchanged")
        elif not changed and (not copy.exists() or _digest(copy) != digest):
            lines.append(f"{copy}: {'updated' if copy.exists() else 'copied'}")
            _copy(original, copy)
        record[name] = digest
    write_text(record_file, json.dumps(record, indent=2))
    return lines


def _copy(original: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with replacing(target) as temporary:
        temporary.write_bytes(original.read_bytes())


def _digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()
