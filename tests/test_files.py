"""Atomic writes: files are always complete, and temporary files of killed processes are removed."""

import contextlib
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from cvae_lab.config import RunConfig
from cvae_lab.data import files, load
from cvae_lab.runs.folder import RunFolder
from cvae_lab.training import fit

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
    """Start a process that begins to write last.pt and then sleeps."""
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


def names_and_texts(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_a_text_that_does_not_fit_is_reported_with_the_file_and_the_room_it_needs(small_disk):
    files.write_text(small_disk / "config.json", "old")
    message = r"The disk is full: .*config\.json needs 1\.0 MB, and 0\.[0-9] MB are free \(No space left"
    with pytest.raises(OSError, match=message):
        files.write_text(small_disk / "config.json", "x" * 1_000_000)
    assert names_and_texts(small_disk) == {"config.json": b"old"}


def test_a_library_that_fills_the_disk_is_reported_with_the_file(small_disk):
    message = r"The disk is full: .*a\.npy needs more than 0\.[0-9] MB, and 0\.[0-9] MB are free"
    with pytest.raises(OSError, match=message), files.replacing(small_disk / "a.npy") as temporary:
        np.savetxt(temporary, np.zeros(100_000))
    assert names(small_disk) == []


def test_a_run_folder_on_a_full_disk_keeps_what_it_had(small_disk):
    """The predictions of a finished run do not fit on the disk. The run continues when there is enough space."""
    config = RunConfig.from_params("tiny", epochs=1, width=8, clips_per_epoch=10, precision="float32")
    run, data = RunFolder(small_disk / "run"), load("tiny")
    run.path.mkdir()
    state = run.begin(config)

    def train():
        for _ in fit(state, data, config.train):
            run.log(state, config)
        run.finish(config, data, pictures=False)

    with pytest.raises(OSError, match=r"The disk is full: .*run/.* needs [0-9.]+ MB, and"):
        train()
    run.unlock()
    assert not run.done
    assert all("tmp-" not in name for name in names(run.path))


def test_a_run_removes_the_files_of_a_killed_run_when_it_begins(tmp_path, writer):
    run = RunFolder(tmp_path)
    writer.send_signal(signal.SIGKILL)
    writer.wait()
    assert len(names(tmp_path)) == 1
    run.lock()
    assert names(tmp_path) == [".lock"]
    run.unlock()
