"""Copy the notebooks to a student's own folder, outside version control.

A notebook that the student has changed is never overwritten. If the original has changed, the new version is written
to another file in the same folder.
"""

import hashlib
import json
import shutil
from pathlib import Path

from cvae_lab.data.files import replacing, write_text

RECORD = ".originals.json"  # hashes of the originals that were copied
RECORDS = (
    "reference",
    "studies",
    "handout",
    "bench.json",
)  # files and folders in figures/ that the notebooks read


def originals() -> Path:
    """Return the folder of the notebooks: in the installed package, or beside the package in a checkout."""
    package = Path(__file__).parents[1]
    installed = package / "notebooks"
    return installed if installed.is_dir() else package.parent / "notebooks"


def installed_records() -> Path | None:
    """Return the folder of the committed results in an installed wheel, or None in a checkout."""
    folder = Path(__file__).parents[1] / "figures"
    return folder if folder.is_dir() else None


def copy_notebooks(folder: Path, source: Path | None = None, records: Path | None = None) -> list[str]:
    """Copy the notebooks and their solutions to `folder`; return one line per file that was written.

    A copy that is equal to an earlier original is replaced by the current original. A copy that the student has changed
    is kept. A newer original is then written to `NAME.new.ipynb` in the same folder.

    Args:
        records: committed results that the notebooks read. The results are copied to `folder`/figures, where the copied
            notebooks read these files. Without `records`, a notebook reads ../figures/, the folder of a checkout.
    """
    if source is None:
        source, records = originals(), installed_records()
    folder.mkdir(parents=True, exist_ok=True)
    record_file = folder / RECORD
    record = json.loads(record_file.read_text()) if record_file.exists() else {}
    lines = []
    for original in sorted([*source.glob("*.ipynb"), *source.glob("solutions/*.ipynb")]):
        name = original.relative_to(source).as_posix()
        copy, content = folder / name, original.read_bytes()
        if records is not None:
            content = content.replace(b"../figures/", b"figures/")
        digest = hashlib.sha256(content).hexdigest()
        changed = copy.exists() and _digest(copy) not in (digest, record.get(name))
        if changed and record.get(name) != digest:
            beside = copy.with_suffix(".new.ipynb")
            _write(beside, content)
            lines.append(f"{beside}: new version of the notebook; your {copy.name} is unchanged")
        elif not changed and (not copy.exists() or _digest(copy) != digest):
            lines.append(f"{copy}: {'updated' if copy.exists() else 'copied'}")
            _write(copy, content)
        record[name] = digest
    if records is not None:
        copy_records(records, folder / "figures")
    write_text(record_file, json.dumps(record, indent=2))
    return lines


def copy_records(source: Path, target: Path) -> None:
    """Copy the results in RECORDS that exist, and replace earlier copies."""
    for name in RECORDS:
        if (source / name).is_dir():
            shutil.rmtree(target / name, ignore_errors=True)
            shutil.copytree(source / name, target / name)
        elif (source / name).exists():
            target.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source / name, target / name)


def _write(target: Path, content: bytes) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with replacing(target) as temporary:
        temporary.write_bytes(content)


def _digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()
