"""Fixtures that several test files use."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

torch.set_num_threads(
    1
)  # several test processes run at once, and threads that compete for cores are slower than one


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup():
    """Every test and its fixtures start from the same seed, whatever ran before in the same process."""
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    """Every test has its own cache and never uses the user's."""
    monkeypatch.setenv("CVAE_LAB_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def picture():
    """Return a function that makes a picture of one grey level, so that a test can recognise it."""
    return lambda level, size=(32, 64): Image.fromarray(np.full((*size, 3), level, np.uint8))


@pytest.fixture
def data_folder(tmp_path, picture):
    """The assignment's folders: 20 training and 4 validation pairs, two test clips of 3 labels.

    Clip 0 has answers. Picture k of a folder is grey level k, plus 100 in label folders.
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
    """The former name of `data_folder`."""
    return data_folder


@pytest.fixture
def real_data():
    """Real clips of the course, which lie beside the repository and are not part of it."""
    root = Path(__file__).parents[2] / "shared/data/lab4-real"
    if not root.is_dir():
        pytest.skip("real clips are not here (../shared/data/lab4-real)")
    return root


@pytest.fixture(scope="module")
def browser():
    """Headless Chromium."""
    names = ("chromium", "chromium-browser", "google-chrome")
    executable = next(filter(None, map(shutil.which, names)), None)
    if executable is None:
        pytest.skip(f"no Chromium on this machine: none of {', '.join(names)} is installed")
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=executable, args=["--no-sandbox"])
        yield chromium
        chromium.close()
