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


def test_the_original_notebooks_are_found():
    assert (originals() / "03_training.ipynb").exists()
