"""The working copy of the notebooks. Files that a student changed are never overwritten."""

import pytest

from cvae_lab.teaching.workspace import copy_notebooks, originals


@pytest.fixture
def source(tmp_path):
    folder = tmp_path / "source"
    (folder / "solutions").mkdir(parents=True)
    for name in ("00_start.ipynb", "solutions/00_start.ipynb"):
        (folder / name).write_text(f"version 1 of {name}")
    return folder


def test_notebooks_and_solutions_are_copied(source, tmp_path):
    lines = copy_notebooks(tmp_path / "work", source)
    assert len(lines) == 2
    assert (tmp_path / "work/solutions/00_start.ipynb").read_text() == "version 1 of solutions/00_start.ipynb"


def test_a_changed_copy_is_kept_and_the_new_version_is_written_beside_it(source, tmp_path):
    work = tmp_path / "work"
    copy_notebooks(work, source)
    (work / "00_start.ipynb").write_text("my answers")
    assert copy_notebooks(work, source) == []  # the original did not change, so there is no new version
    (source / "00_start.ipynb").write_text("version 2")
    (line,) = copy_notebooks(work, source)
    assert "unchanged" in line
    assert (work / "00_start.ipynb").read_text() == "my answers"
    assert (work / "00_start.new.ipynb").read_text() == "version 2"
    assert copy_notebooks(work, source) == []


def test_a_copy_without_changes_is_updated(source, tmp_path):
    work = tmp_path / "work"
    copy_notebooks(work, source)
    (source / "00_start.ipynb").write_text("version 2")
    (line,) = copy_notebooks(work, source)
    assert line.endswith("updated")
    assert (work / "00_start.ipynb").read_text() == "version 2"
    assert not (work / "00_start.new.ipynb").exists()


def test_an_installed_package_copies_the_results_that_its_notebooks_read(source, tmp_path):
    """An installed wheel has no folder ../figures, so the results are copied to a folder beside the notebooks."""
    (source / "04.ipynb").write_text('runs = "../figures/reference"')
    records = tmp_path / "figures"
    (records / "reference/a-seed0").mkdir(parents=True)
    (records / "reference/a-seed0/result.json").write_text("{}")
    (records / "bench.json").write_text("{}")
    (records / "moves.png").write_bytes(b"not read by a notebook")
    work = tmp_path / "work"
    for expected in (3, 0):
        assert len(copy_notebooks(work, source, records)) == expected
        assert (work / "04.ipynb").read_text() == 'runs = "figures/reference"'
        copied = sorted(str(f.relative_to(work)) for f in (work / "figures").rglob("*") if f.is_file())
        assert copied == ["figures/bench.json", "figures/reference/a-seed0/result.json"]


def test_the_original_notebooks_are_found():
    assert (originals() / "03_training.ipynb").exists()
