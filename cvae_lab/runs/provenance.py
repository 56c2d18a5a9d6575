"""Where a number comes from: hardware, versions and commit."""

import os
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path

import torch


def provenance() -> dict[str, str]:
    """Return hardware, Python, torch and package versions, and the git commit ("" outside a checkout)."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else cpu_name()
    git = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"],
        cwd=Path(__file__).parent, capture_output=True, text=True, check=False,
    )  # fmt: skip
    return {
        "hardware": f"{device}, {os.cpu_count()} CPU cores", "python": platform.python_version(),
        "torch": torch.__version__, "cvae_lab": version("cvae-lab"), "commit": git.stdout.strip(),
    }  # fmt: skip


def cpu_name() -> str:
    """Return the processor's model name as the operating system gives it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
