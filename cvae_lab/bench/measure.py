"""Timed actions: a training step or a prediction, by the reference loop or by the fast path.

The reference loop has the settings of public solutions: float32, default memory format, frame by frame. The fast path
has the settings that `fit` and `predict` use on this device.
"""

import json
import os
import platform
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from cvae_lab.config import RunConfig, TrainConfig
from cvae_lab.data.clips import ClipBatch
from cvae_lab.models.cvae import CVAE
from cvae_lab.models.device import reduced_precision
from cvae_lab.objective import kl_standard_normal, squared_error
from cvae_lab.rollout import Feedback, evaluating, predict, reference_predict, reference_unroll
from cvae_lab.rollout.teacher_forcing import sample_teacher_forcing
from cvae_lab.training.optimizer import make_optimizer
from cvae_lab.training.state import TrainingForward, uses_graphs

PACKAGE = Path(__file__).parents[1]

MARK = "@row "
"""Prefix of the lines in the output of a process that contain a row."""

_CALL = (
    "import json, sys; from importlib import import_module; module, name, arguments = json.load(sys.stdin); "
    "print(json.dumps(getattr(import_module(module), name)(*arguments)), flush=True)"
)


@dataclass(frozen=True)
class Work:
    """An action to time, and the number of frames that it computes."""

    action: Callable[[], None]
    frames: int

    def flops_per_frame(self) -> float:
        """Return the number of operations of convolutions and matrix products, including the backward pass."""
        with FlopCounterMode(display=False) as counter:
            self.action()
        return counter.get_total_flops() / self.frames

    def bytes_per_frame(self) -> float:
        """Return the number of bytes of all operands and results."""
        with _Traffic() as traffic:
            self.action()
        return traffic.bytes / self.frames


class Case(NamedTuple):
    """One row of the comparison: an action and the size of its work."""

    what: str  # name of the row
    kind: Literal["training", "rollout"]
    clips: int
    frames: int  # frames per clip, including the first frame
    forcing: float = 0.0  # teacher-forcing ratio in training

    def work(self, run: RunConfig, device: torch.device, fast: bool) -> Work:
        """Return the work of the fast path or of the reference loop."""
        if self.kind == "rollout":
            return rollout_work(run, device, fast, self.clips, self.frames)
        return training_work(run, device, fast, self.clips, self.frames, self.forcing)


def training_work(
    run: RunConfig, device: torch.device, fast: bool, clips: int, frames: int, forcing: float
) -> Work:
    """Return the work of one optimizer step on random clips, with the network and the optimizer of `run`."""
    height = run.model.height
    config = run.train if fast else replace(run.train, precision="float32")
    layout = torch.channels_last if fast else torch.contiguous_format
    model = CVAE(run.model).to(device, memory_format=layout).train()
    network = TrainingForward(model, uses_graphs(config, device)) if fast else None
    optimizer = make_optimizer(model, config)
    x, p = torch.rand(2, clips, frames, 3, height, 2 * height, device=device)
    eps = torch.randn(clips, frames - 1, *model.latent_shape(height, 2 * height), device=device)
    mask = sample_teacher_forcing(forcing, clips, frames - 1, "step", torch.Generator().manual_seed(0))

    def step() -> None:
        with reduced_precision(config, device):
            if network is None:
                out = reference_unroll(model, x, p, eps, Feedback(mask))
            else:
                out = network(ClipBatch(x, p), eps, Feedback(mask))
        error = squared_error(out.prediction, x[:, 1:]).mean()
        optimizer.zero_grad()
        (error + kl_standard_normal(out.mu, out.logvar).mean()).backward()
        optimizer.step()

    return Work(step, clips * (frames - 1))


def rollout_work(run: RunConfig, device: torch.device, fast: bool, clips: int, frames: int) -> Work:
    """Return the work of predicting `frames` - 1 frames of each clip with random weights.

    The reference loop predicts one clip at a time, so the work of the reference loop is a single clip.
    """
    height, clips = run.model.height, clips if fast else 1
    size = (3, height, 2 * height)
    first = torch.rand(clips, *size, device=device)
    if not fast:
        model, labels = CVAE(run.model).to(device), torch.rand(1, frames, *size, device=device)

        def reference() -> None:
            with evaluating(model):
                reference_predict(model, first, labels)

        return Work(reference, frames - 1)
    model = CVAE(run.model).to(device, memory_format=torch.channels_last)
    labels = torch.randint(0, 256, (clips, frames, *size), dtype=torch.uint8, device=device)

    def ours() -> None:
        with reduced_precision(TrainConfig(), device):
            predict(model, first, labels)

    return Work(ours, clips * (frames - 1))


class _Traffic(TorchDispatchMode):
    """Count the bytes that operations read and write. Views are not counted."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # noqa: ANN401
        out = func(*args, **(kwargs or {}))
        if not func.is_view:
            tensors = [t for t in tree_leaves((args, kwargs, out)) if isinstance(t, Tensor)]
            self.bytes += sum(t.numel() * t.element_size() for t in tensors)
        return out


def machine(device: torch.device, tiny: bool = False) -> dict[str, float | str]:
    """Measure the limits of this machine: matrix products (GFLOP/s) and memory copies (GB/s).

    Args:
        tiny: use small matrices and a small block, for tests. The measured rates are then too low.
    """
    size = 128 if tiny else 4096 if device.type == "cuda" else 1024
    limits: dict[str, float | str] = {}
    for name in ("float32", "bfloat16"):
        a = torch.randn(size, size, device=device, dtype=getattr(torch, name))
        limits[f"matmul_{name}_gflops"] = (
            2 * size**3 / 1e9 / median_seconds(lambda a=a: a @ a, device, repeats=7)
        )
    block = torch.empty(1 << (16 if tiny else 26), device=device)
    limits["copy_gb_per_s"] = 2 * block.numel() * 4 / 1e9 / median_seconds(block.clone, device, repeats=7)
    name = (
        torch.cuda.get_device_name() if device.type == "cuda" else platform.processor() or platform.machine()
    )
    return limits | {"device": name, "threads": torch.get_num_threads(), "torch": torch.__version__}


def flops_per_frame(model: CVAE) -> float:
    """Return the number of operations per training frame in the forward pass. A multiply-add counts as two."""
    device = next(model.parameters()).device
    size = model.config.height, 2 * model.config.height
    x = torch.rand(1, 2, 3, *size, device=device)
    eps = torch.zeros(1, 1, *model.latent_shape(*size), device=device)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        reference_unroll(model, x, x, eps, Feedback(torch.ones(1, 1, dtype=torch.bool)))
    return counter.get_total_flops()


def seconds(action: Callable[[], Any], device: torch.device) -> float:
    """Return the time in seconds from a call until the device has finished."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    started = time.perf_counter()
    action()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def median_seconds(action: Callable[[], Any], device: torch.device, repeats: int) -> float:
    """Return the median time in seconds of `repeats` calls, after one call that is not measured."""
    action()
    return statistics.median(seconds(action, device) for _ in range(repeats))


def peak_mib(device: torch.device) -> float:
    """Return the peak memory so far in MiB: allocated on a GPU, resident in this process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    status = Path("/proc/self/status")
    if status.exists():
        # ru_maxrss would include the peak of the parent process, but VmHWM does not.
        (line,) = [row for row in status.read_text().splitlines() if row.startswith("VmHWM:")]
        return int(line.split()[1]) / 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


def environment() -> dict[str, str]:
    """Return the environment of a new Python process that can import this package."""
    paths = [str(PACKAGE.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}


def in_own_process(function: Callable, *arguments: Any, timeout: float = 600) -> Any:  # noqa: ANN401
    """Call a function of this package in a new process and return its result.

    Args:
        function: a function that is defined at the top level of a module.
        arguments: values that can be converted to JSON. The result of the function must also be such a value.
        timeout: time limit in seconds.

    Raises RuntimeError with the last line of the process's error output if the process fails.
    """
    request = json.dumps([function.__module__, function.__name__, arguments])
    command = [sys.executable, "-c", _CALL]
    try:
        done = subprocess.run(
            command, input=request, env=environment(), capture_output=True, text=True, timeout=timeout
        )
    except subprocess.TimeoutExpired:
        raise RuntimeError(f"{function.__name__} did not end within {timeout:.0f} s.") from None
    if done.returncode:
        raise RuntimeError(f"{function.__name__} failed: {last_line(done.stderr)}")
    return json.loads(done.stdout.splitlines()[-1])


def rows_of_process(function: Callable, *arguments: Any, seconds: float) -> Iterator[dict[str, Any]]:  # noqa: ANN401
    """Call a function of this package in a new process and yield each row that it prints with `print_row`.

    The function must return None. If the process fails, crashes or needs more than `seconds`, the last row is
    {"error": reason}.
    """
    expired = threading.Event()
    with tempfile.TemporaryFile("w+") as request, tempfile.TemporaryFile("w+") as errors:
        json.dump([function.__module__, function.__name__, arguments], request)
        request.seek(0)
        process = subprocess.Popen(
            [sys.executable, "-c", _CALL], stdin=request, stdout=subprocess.PIPE, stderr=errors, env=environment(),
            text=True,
        )  # fmt: skip
        timer = threading.Timer(max(seconds, 1), lambda: (expired.set(), process.kill()))
        timer.start()
        try:
            for text in process.stdout or ():
                if text.startswith(MARK):
                    yield json.loads(text[len(MARK) :])
                elif text.strip() == "null":  # the result of the function; the process may end later
                    return
            status = process.wait()
        finally:
            timer.cancel()
            process.kill()
            process.communicate()
        errors.seek(0)
        if expired.is_set():
            yield {"error": f"stopped after {seconds:.0f} s"}
        elif status:
            yield {"error": f"exit status {status}: {last_line(errors.read())}"}


def print_row(row: dict[str, Any]) -> None:
    """Print a row for `rows_of_process`."""
    print(MARK + json.dumps(row), flush=True)  # noqa: T201


def last_line(text: str) -> str:
    """Return the last line that names an error, or else the last line with letters, shortened to 300 characters."""
    lines = [line.strip() for line in text.splitlines() if any(map(str.isalpha, line))]
    errors = [line for line in lines if re.search(r"(Error|Exception)\b.*:", line)]
    return ["", *lines, *errors][-1][:300] or "no message"
