"""Fixtures that several test files use."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

# Several test processes run at once, and threads that compete for cores are slower than one thread.
torch.set_num_threads(1)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup():
    """Set the same seed before each test and its fixtures. Earlier tests in the process then have no influence."""
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    """Set an empty cache folder for each test, so that the user's cache is never used."""
    monkeypatch.setenv("CVAE_LAB_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def picture():
    """Return a function that makes a picture of one grey level. A test can recognise the picture by this level."""
    return lambda level, size=(32, 64): Image.fromarray(np.full((*size, 3), level, np.uint8))


@pytest.fixture
def data_folder(tmp_path, picture):
    """Write a data set in the assignment's folder layout: 20 training frames, 4 validation frames, two test clips.

    A test clip has 3 labels, and clip 0 has answers. Picture k of a folder has grey level k, or k + 100 for labels.
    """
    root = tmp_path / "data"
    counts = {"train/train": 20, "val/val": 4}
    folders = {
        f"{p}_{kind}": (n, base) for p, n in counts.items() for kind, base in (("img", 0), ("label", 100))
    }
    folders |= {f"test/test_img/{k}": (1, 0) for k in range(2)}
    folders |= {f"test/test_label/{k}": (3, 100) for k in range(2)} | {"test/test_answer/0": (3, 0)}
    for folder, (count, base) in folders.items():
        (root / folder).mkdir(parents=True)
        for k in range(count):
            picture(base + k).save(root / folder / f"{k}.png")
    return root


@pytest.fixture
def handout(data_folder):
    """Return the folder of the fixture `data_folder`. Some tests use this older name of the fixture."""
    return data_folder


@pytest.fixture
def real_data():
    """Return the folder with real clips of the course. It is beside the repository and not part of it."""
    root = Path(__file__).parents[2] / "shared/data/lab4-real"
    if not root.is_dir():
        pytest.skip("no real clips in ../shared/data/lab4-real")
    return root


@pytest.fixture(scope="module")
def browser():
    """Start headless Chromium."""
    names = ("chromium", "chromium-browser", "google-chrome")
    executable = next(filter(None, map(shutil.which, names)), None)
    if executable is None:
        pytest.skip(f"no Chromium on this machine: none of {', '.join(names)} is installed")
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=executable, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 256 kB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = shutil.which("mount")
    command = [mount, "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)]
    if mount is None or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("this user may not mount a small file system")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.fixture
def start_sweep(tmp_path):
    """Return a function that starts a sweep of tiny runs with one worker in another process."""

    def start(out, strategies, epochs, eval_every):
        parameters = {"epochs": epochs, "width": 8, "clips_per_epoch": 24, "eval_every": eval_every}
        flags = [word for name, value in parameters.items() for word in ("-p", name, str(value))]
        command = [
            sys.executable,
            "-m",
            "cvae_lab",
            "sweep",
            "--data",
            "tiny",
            "--out",
            str(out),
            "--workers",
            "1",
        ]
        return subprocess.Popen(
            [*command, "--strategies", *strategies, *flags], cwd=Path(__file__).parents[1], text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            env={**os.environ, "CVAE_LAB_CACHE": str(tmp_path / "cache")},
        )  # fmt: skip

    return start
