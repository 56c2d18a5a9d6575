"""Run all GPU measurements and checks in one call, within a time budget (`cvae-lab bench --gpu OUT`).

Each part runs in a separate process. If a part fails, hangs or crashes, its finished rows are kept and the other parts
still run. OUT is rewritten after every part.
"""

import json
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch

from cvae_lab.bench.gpu.checks import checks as all_checks
from cvae_lab.bench.gpu.sizes import MINIMUM, NORMAL, TINY, Sizes, allowance, chosen_parts, configuration
from cvae_lab.bench.measure import (
    Case,
    Work,
    environment,
    last_line,
    machine,
    print_row,
    rollout_work,
    rows_of_process,
)
from cvae_lab.bench.table import compare
from cvae_lab.config import ConfigError, RunConfig
from cvae_lab.data import Dataset, load
from cvae_lab.data.files import write_text
from cvae_lab.data.pixels import to_float
from cvae_lab.evaluation.metrics import psnr
from cvae_lab.evaluation.scoring import predict_clips
from cvae_lab.models.device import pick_device
from cvae_lab.rollout.cuda_graph import MAX_FRAMES
from cvae_lab.training import TrainState, fit
from cvae_lab.training.state import uses_graphs

Result = dict[str, Any]
"""Row of the result: the name of the part under the key `part`, and the values that the part measured."""

GRACE = 20.0  # seconds that a part may exceed its time limit before it is stopped
MIN_CORES = 4  # with fewer CPU cores, rendering the data would slow down the measurements


def gpu(
    out: Path,
    device: str = "auto",
    tiny: bool = False,
    budget: float = 540.0,
    only: Sequence[str] = (),
    about: Mapping[str, str] | None = None,
    log: Callable[[str], None] = print,
) -> list[Result]:
    """Run the parts and return their rows. After each part, all rows so far are written to `out` as JSON.

    Args:
        device: name of the device. `auto` means CUDA; to measure a CPU, pass `cpu`.
        tiny: use small networks and few frames, to test all parts.
        budget: time limit in seconds for all parts together.
        only: names of the parts to run; if empty, all parts run.
        about: entries that are written to the file before the rows, such as command and commit.
        log: function that is called with each line of progress.
    """
    parts, device = chosen_parts(only), _device_name(device)
    content = {**(about or {}), "budget_s": budget, "rows": []}
    with rendering((TINY if tiny else NORMAL).data if "score" in parts else "") as rendered:
        started = time.monotonic()
        if (os.cpu_count() or 1) < MIN_CORES:
            rendered(budget / 3)
        for place, part in enumerate(parts):
            left = max(1.0, budget - (time.monotonic() - started))
            allowed = allowance(left, parts[place:])
            log(f"{time.monotonic() - started:5.0f} s  part {part}, up to {allowed:.0f} s")
            ends = time.time() + allowed
            if part == "score":
                rendered(allowed)
            for row in _rows(part, device, tiny, ends):
                content["rows"].append(row)
                log(f"{time.monotonic() - started:5.0f} s  {line(row)}")
            write_text(out, json.dumps(content, indent=2))
    return content["rows"]


def _rows(part: str, device: str, tiny: bool, ends: float) -> Iterator[Result]:
    """Run a part in its own process and yield its rows.

    After a CUDA error in training, no later row of the process can be right. The part is then repeated without graphs.
    """
    for graphs in (True, False):
        failed, most = False, ends - time.time() + GRACE
        for row in rows_of_process(run_part, part, device, tiny, ends, graphs, seconds=most):
            failed |= "CUDA error" in str(row)
            yield {"part": part, **row}
        if part != "training" or not failed or ends - time.time() + GRACE < MINIMUM[part]:
            return


def _device_name(name: str) -> str:
    """Return the name of the device. Raises ConfigError if `auto` finds no GPU; `auto` never means a CPU here."""
    if name == "auto" and not torch.cuda.is_available():
        raise ConfigError("torch finds no CUDA GPU; for a test on this machine, add --device cpu --tiny.")
    return "cuda" if name == "auto" else name


@contextmanager
def rendering(data: str) -> Iterator[Callable[[float], None]]:
    """Render a data set to the cache in another process. Yield a function that waits for the end of that process."""
    if not data:
        yield lambda allowed: None
        return
    code = f"from cvae_lab.data import load; load({data!r}, progress=False)"
    process = subprocess.Popen(
        [sys.executable, "-c", code], env=environment(), stderr=subprocess.DEVNULL, start_new_session=True
    )

    def wait(allowed: float) -> None:
        with suppress(subprocess.TimeoutExpired):
            process.wait(allowed)

    try:
        yield wait
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)  # also kills the child processes of this process
            process.wait()


def run_part(part: str, device: str, tiny: bool, ends: float, graphs: bool = True) -> None:
    """Run a part in this process and print each row as one line.

    Args:
        ends: deadline of the part, as a value of `time.time`.
        graphs: whether training may use CUDA graphs.
    """
    functions = {
        "machine": limits, "checks": check, "training": partial(training, graphs=graphs), "rollout": rollout,
        "score": score,
    }  # fmt: skip
    for row in functions[part](pick_device(device), TINY if tiny else NORMAL, ends):
        print_row(row)


def limits(device: torch.device, sizes: Sizes, ends: float) -> Iterator[Result]:
    """Yield the rates of matrix products and memory copies, and the versions of the software."""
    row: Result = machine(device, sizes is TINY)
    row |= {"python": platform.python_version(), "cores": os.cpu_count()}
    if device.type == "cuda":
        gpu = torch.cuda.get_device_properties(device)
        row |= {"cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version()}
        row |= {"gpu_gib": gpu.total_memory / 2**30, "capability": f"{gpu.major}.{gpu.minor}"}
    yield row


def check(device: torch.device, sizes: Sizes, ends: float) -> Iterator[Result]:
    """Yield the result of every check of `checks`."""
    models = {name: configuration(sizes, name, device).model for name in sizes.timed}
    for name, result in all_checks(device, models):
        yield {"check": name, **result._asdict()}


def training(device: torch.device, sizes: Sizes, ends: float, graphs: bool = True) -> Iterator[Result]:
    """Yield frames/s of training for each network and teacher-forcing ratio, up to the largest batch that fits."""
    rates, batches = machine(device, sizes is TINY), {name: list(sizes.batches) for name in sizes.timed}
    while any(batches.values()):
        for name in sizes.timed:
            if not batches[name]:
                continue
            batch = batches[name].pop(0)
            run = configuration(sizes, name, device).with_training(cuda_graphs=graphs)
            for forcing in (0.0, 1.0, 0.5):
                row = _training_row(run, device, sizes, batch, forcing, ends, rates)
                yield {"model": name, "what": "training", "forcing": forcing, "batch": batch} | row
                if "skipped" in row:
                    return
                if row.get("ours_error") == "out of memory":
                    # Measure half of this batch. Larger sizes do not fit.
                    half = [batch // 2] if batch in sizes.batches and batch > 2 else []
                    batches[name] = half + [size for size in batches[name] if size < batch]
                    break


def _training_row(
    run: RunConfig, device: torch.device, sizes: Sizes, batch: int, forcing: float, ends: float, rates: Result
) -> Result:
    case, few = (Case("", "training", n, sizes.frames, forcing) for n in (batch, 2))
    # The operations in a CUDA graph could not be counted.
    counted = partial(few.work, run.with_training(cuda_graphs=False), device)
    row = compare(partial(case.work, run, device), counted, device, sizes.repeats, ends, rates)
    recorded = forcing != 0.5 and batch * (sizes.frames - 1) <= MAX_FRAMES and uses_graphs(run.train, device)
    return row | {"cuda_graph": recorded}


def rollout(device: torch.device, sizes: Sizes, ends: float) -> Iterator[Result]:
    """Yield frames/s of prediction for each network and number of streams (clips predicted together)."""
    rates = machine(device, sizes is TINY)
    for streams in sizes.streams:
        for name in sizes.timed:
            # 600 whole clips need 12 GB and much time. Shorter clips give the same frames/s.
            frames = sizes.labels if streams <= 6 else sizes.labels // 4
            lengths = {True: frames, False: min(frames, 38)}
            run = configuration(sizes, name, device)

            def make(fast: bool, run: RunConfig = run, n: int = streams, lengths: dict = lengths) -> Work:
                return rollout_work(run, device, fast, n, lengths[fast])

            # With 13 frames, no CUDA graph is used. The operations in a CUDA graph could not be counted.
            few = partial(Case("", "rollout", min(streams, 60), 13).work, run, device)
            row = compare(make, few, device, min(sizes.repeats, 2), ends, rates)
            yield {"model": name, "what": "rollout", "streams": streams, "frames": frames - 1} | row


def score(device: torch.device, sizes: Sizes, ends: float) -> Iterator[Result]:
    """Yield the PSNR on the test clips after some minutes of training. The shortest run is the first.

    Each row is a separate run with schedules for its time limit. A run that would end too late is not started.
    """
    data, evaluation = load(sizes.data, progress=False), 0.0
    for minutes in sizes.minutes:
        for name in sizes.models:
            key = {"model": name, "what": "score", "data": sizes.data, "minutes": minutes}
            needed = 60 * minutes + evaluation + 5
            if time.time() + needed > ends:
                yield key | {"skipped": f"needs {needed:.0f} s more"}
                continue
            began = time.time()
            try:
                yield key | _score(
                    configuration(sizes, name, device).with_training(minutes=float(minutes)), data
                )
            except RuntimeError as error:
                yield key | {"error": last_line(str(error))}
            evaluation = max(0.0, time.time() - began - 60 * minutes)


def _score(run: RunConfig, data: Dataset) -> Result:
    """Train a new model. Return the PSNR of the final weights without test-time corrections."""
    state = TrainState.create(run.model, run.train)
    *_, last = fit(state, data, run.train)
    clips = [clip for clip in data.tests if clip.answer is not None]
    frames = predict_clips(state.evaluation_model(), clips, run.train)
    curves = [psnr(frame, to_float(clip.answer)[1:]) for frame, clip in zip(frames, clips, strict=True)]
    return {
        "psnr_db": float(torch.cat(curves).mean()), "heldout_psnr_db": last["heldout_psnr"], "steps": last["step"],
        "epochs": last["epoch"], "frames_per_s": last["frames_per_s"],
        "parameters": sum(p.numel() for p in state.model.parameters()),
    }  # fmt: skip


def line(row: Result) -> str:
    """Return a row as one line of text."""
    problem = "; ".join(f"{key}: {row[key]}" for key in row if "error" in key or key == "skipped")
    if row["part"] == "checks" and "check" in row:
        state = {True: "passed", False: "FAILED", None: "not run"}[row["passed"]]
        return f"{state:8}{row['check']} ({row['detail']})"
    if "matmul_float32_gflops" in row:
        rates = f"{row['matmul_float32_gflops']:.0f} and {row['matmul_bfloat16_gflops']:.0f} GFLOP/s"
        rates += f" in float32 and bfloat16, {row['copy_gb_per_s']:.0f} GB/s"
        return f"{row['device']}: {rates}, torch {row['torch']}"
    if "psnr_db" in row:
        return f"{row['model']}, {row['minutes']:g} min on {row['data']}: {row['psnr_db']:.2f} dB, {row['steps']} steps"
    names = [f"{key} {row[key]:g}" for key in ("forcing", "batch", "streams", "minutes") if key in row]
    text = ", ".join([row.get("model", row["part"]), *names])
    speeds = [f"{key} {row[key]:.1f}" for key in ("reference", "ours") if key in row]
    if speeds:
        text += f": {', '.join(speeds)} frames/s"
    if "ratio" in row:
        text += f", {row['ratio']:.1f}x, {row['of_matmul']:.0%} of matmul, {row['of_copy']:.0%} of copy"
    return f"{text} ({problem})" if problem else text
