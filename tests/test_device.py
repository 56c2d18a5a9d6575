"""The machine at hand."""

import os
import platform
import subprocess
import sys

import pytest

SHAPES = """
import sys
import torch
from torch.nn import functional as F

if sys.argv[1] == "ours":
    import cvae_lab
kernel = torch.zeros(16, 16, 3, 3)
for round in range(2):
    print("round", round, flush=True)
    for size in range(700):  # some three primitives each
        F.conv2d(torch.zeros(size % 30 + 1, 16, 4, size // 30 + 4), kernel)
"""


def _compiled_again(how):
    environment = {**os.environ, "ONEDNN_VERBOSE": "profile_create"}
    environment.pop("ONEDNN_PRIMITIVE_CACHE_CAPACITY", None)
    command = [sys.executable, "-c", SHAPES, how]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    rounds = done.stdout.split("round ")
    first, second = (part.count("create:cache_miss") for part in rounds[1:])
    if not first:
        pytest.skip("torch convolves without oneDNN here, or does not tell")
    return second


def test_convolutions_of_many_shapes_are_compiled_once():
    """oneDNN's own account of it, in processes of their own."""
    assert _compiled_again("ours") == 0
    assert _compiled_again("as it is") > 0


LOOP = """
import sys, resource
import torch
from cvae_lab.models.device import keep_memory

kept = keep_memory() if sys.argv[1] == "ours" else None
for _ in range(24):
    torch.empty(2**24).fill_(1.0)  # 64 MiB, more than glibc ever keeps by itself
print(kept, resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
"""


def _page_faults(how):
    done = subprocess.run([sys.executable, "-c", LOOP, how], capture_output=True, text=True, check=True)
    kept, faults = done.stdout.split()
    return kept, int(faults)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can be told to keep memory")
def test_kept_memory_is_not_cleared_anew():
    """In processes of their own, since it holds until a process ends; a few blocks settle before they are reused."""
    kept, faults = _page_faults("ours")
    assert kept == "True"
    assert faults < _page_faults("as it is")[1] / 2


def test_where_memory_cannot_be_kept_nothing_is_said(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    from cvae_lab.models.device import keep_memory

    assert keep_memory() is False
