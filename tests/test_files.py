"""Atomic writes: files are always complete, and temporary files of killed processes are removed."""

import contextlib
import os
import signal
import subprocess
import sys
import time

import pytest

from cvae_lab.data import files

WRITER = """
import sys, time
from cvae_lab.data.files import replacing
with replacing(sys.argv[1]) as temporary:
    temporary.write_text("half of it")
    print("written", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def writer(tmp_path):
    """Start a process that has begun to write last.pt and then sleeps."""
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, tmp_path / "last.pt"], stdout=subprocess.PIPE, text=True
    )
    with process:
        assert process.stdout.readline() == "written\n"
        yield process
        process.kill()


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_replaced_when_the_write_is_complete(tmp_path):
    (tmp_path / "a.txt").write_text("old")
    with files.replacing(tmp_path / "a.txt") as temporary:
        temporary.write_text("new")
        assert (tmp_path / "a.txt").read_text() == "old"
        assert temporary.suffix == ".txt"
    assert (tmp_path / "a.txt").read_text() == "new"
    assert names(tmp_path) == ["a.txt"]


def test_an_error_keeps_the_old_file_and_removes_the_temporary_one(tmp_path):
    (tmp_path / "a.txt").write_text("old")
    with contextlib.suppress(RuntimeError), files.replacing(tmp_path / "a.txt") as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert (tmp_path / "a.txt").read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


def test_the_temporary_file_of_a_killed_process_is_removed_by_the_next_write(tmp_path, writer):
    (left,) = names(tmp_path)
    assert str(writer.pid) in left
    writer.send_signal(signal.SIGKILL)
    writer.wait()
    assert names(tmp_path) == [left]
    files.write_text(tmp_path / "other.txt", "done")
    assert names(tmp_path) == ["other.txt"]


def test_the_temporary_file_of_a_running_process_is_kept(tmp_path, writer):
    before = names(tmp_path)
    files.remove_stale(tmp_path)
    assert names(tmp_path) == before


def test_other_files_are_kept(tmp_path):
    for name in (".hidden", "last.pt", ".last.12345.pt", "a.tmp-host-1.txt", ".a.tmp-elsewhere-1.txt"):
        (tmp_path / name).write_text("")
    files.remove_stale(tmp_path)
    assert len(names(tmp_path)) == 5


def test_a_temporary_file_of_another_machine_is_removed_after_a_day(tmp_path):
    file = tmp_path / ".a.tmp-elsewhere-1.txt"
    file.write_text("")
    os.utime(file, times=(time.time() - 90_000,) * 2)
    files.remove_stale(tmp_path)
    assert names(tmp_path) == []
