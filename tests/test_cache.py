"""Test the pixel cache: old and damaged files are rebuilt, and everything also works without a cache."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from cvae_lab.data import cache


def make(value):
    """Return a function that returns `value` and counts its calls."""

    def build():
        build.calls += 1
        return value

    build.calls = 0
    return build


@pytest.fixture
def value():
    pixels = torch.randint(
        256, (40, 3, 32, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    return {"pixels": pixels, "sources": [(64, 32), (426, 240)], "name": "x", "none": torch.zeros(0)}


def same(one, two):
    return torch.equal(one["pixels"], two["pixels"]) and one["sources"] == two["sources"]


def test_a_value_is_built_once_per_key(tmp_path, value):
    build = make(value)
    for key in ("a", "a", "b", "b"):
        assert same(cache.cached(tmp_path, "n", key, build), value)
    assert build.calls == 2
    assert [file.name for file in tmp_path.iterdir()] == ["n.pt"]


def test_every_kind_of_damage_is_detected_and_the_value_built_again(tmp_path, value, caplog):
    """Damage 40 copies of a file: flip a bit, write zeros or random bytes, or cut off the end."""
    cache.cached(tmp_path, "n", "k", make(value))
    file, rng = tmp_path / "n.pt", np.random.default_rng(0)
    sound = file.read_bytes()
    warned = 0
    for number in range(40):
        damaged = bytearray(sound)
        place = int(rng.integers(len(sound) - 4096))
        if number % 4 == 0:
            damaged[place] ^= 1 << int(rng.integers(8))
        elif number % 4 == 1:
            damaged[place : place + 4096] = bytes(4096)
        elif number % 4 == 2:
            del damaged[place:]
        else:
            damaged[place : place + 64] = rng.bytes(64)
        file.write_bytes(damaged)
        caplog.clear()
        build = make(value)
        assert same(cache.cached(tmp_path, "n", "k", build), value)  # correct pixels after any damage
        assert len(caplog.records) == build.calls
        warned += build.calls
    assert warned >= 38  # a flipped bit between two records has no effect
    assert "n.pt: this cache file is damaged" in caplog.text


@pytest.mark.parametrize("content", [b"", b"nonsense", b"PK\x03\x04" + bytes(100)])
def test_a_file_with_other_content_is_replaced(tmp_path, value, content, caplog):
    (tmp_path / "n.pt").write_bytes(content)
    assert same(cache.cached(tmp_path, "n", "k", make(value)), value)
    assert "its content is computed again" in caplog.text
    again = make(value)
    cache.cached(tmp_path, "n", "k", again)
    assert again.calls == 0


def test_a_folder_that_cannot_be_written_gives_one_warning(tmp_path, value, caplog):
    (tmp_path / "blocked").write_text("")
    for name in ("a", "b"):
        assert same(cache.cached(tmp_path / "blocked" / "cache", name, "k", make(value)), value)
    (record,) = caplog.records
    assert "blocked/cache: the cache file was not written" in record.getMessage()
    assert "CVAE_LAB_CACHE" in record.getMessage()


def test_on_a_full_disk_the_value_is_returned_without_a_cache(tmp_path):
    """With a limit of 100 kB per file, writes fail as on a full disk."""
    code = (
        "import resource, signal, sys, torch\n"
        "from pathlib import Path\n"
        "from cvae_lab.data.cache import cached\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        "for name in 'ab':\n"
        "    value = cached(Path(sys.argv[1]), name, 'k', lambda: {'x': torch.zeros(1_000_000)})\n"
        "    print(value['x'].shape[0])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "cache"], capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stdout) == (0, "1000000\n1000000\n"), done.stderr
    assert done.stderr.count("the cache file was not written") == 1
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_user_without_a_home_folder_has_a_cache(monkeypatch):
    monkeypatch.delenv("CVAE_LAB_CACHE")

    def no_home():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(cache.Path, "home", no_home)
    assert cache.cache_dir().is_absolute()


def test_the_checksum_depends_on_values_shapes_and_types(value):
    sums = [
        cache.checksum(value),
        cache.checksum(value | {"name": "y"}),
        cache.checksum(value | {"sources": [(64, 32), (240, 426)]}),
        cache.checksum(value | {"pixels": value["pixels"].reshape(40, 3, 64, 32)}),
        cache.checksum(value | {"none": torch.zeros(0, 1)}),
    ]
    assert len(set(sums)) == len(sums)
    assert cache.checksum(value | {}) == sums[0]


def test_the_key_changes_with_names_contents_and_options(tmp_path):
    file = tmp_path / "1.png"
    file.write_text("a")
    keys = {cache.content_key(tmp_path, [file], "stretch"), cache.content_key(tmp_path, [file], "crop")}
    before = file.stat()
    file.write_text("b")
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))  # an edit that restores the time
    keys.add(cache.content_key(tmp_path, [file], "stretch"))
    keys.add(cache.content_key(tmp_path, [file.rename(tmp_path / "2.png")], "stretch"))
    assert len(keys) == 4
