"""Command `bench`: measure speed and memory."""

import argparse
import contextlib
from pathlib import Path

from cvae_lab.runs.commands import Add, log_line

PRESETS = ["handout", "compact"]
GPU_PARTS = ["machine", "checks", "training", "rollout", "score"]


def add_commands(add: Add) -> None:
    bench = add(
        "bench", "time the reference loop and the fast paths, and measure their memory",
        "--presets compact", "--gpu gpu.json", "--scaling --out scaling.json", "--gpu gpu.json --device cpu --tiny",
    )  # fmt: skip
    bench.add_argument("--presets", nargs="+", default=PRESETS, choices=PRESETS, help="networks to time")
    bench.add_argument("--repeats", type=int, default=3, help="measurements per row")
    bench.add_argument("--out", type=Path, help="also write the table as JSON; default: print only")
    instead = bench.add_mutually_exclusive_group()
    instead.add_argument(
        "--gpu", type=Path, metavar="OUT",
        help="check and measure the fast paths on one CUDA GPU in ten minutes, and write the results as JSON; default: "
            "no",
    )  # fmt: skip
    instead.add_argument(
        "--scaling",
        action="store_true",
        help="measure how time depends on the size of the work and on the number of processes",
    )
    instead.add_argument(
        "--sizes",
        action="store_true",
        help="measure operations, speed, memory and PSNR for every frame size (takes minutes)",
    )
    bench.add_argument(
        "--budget", type=float, default=540.0,
        help="--gpu: time limit in seconds for all parts together; with training runs of 4 minutes, about 2400 are "
            "needed",
    )  # fmt: skip
    bench.add_argument(
        "--only", nargs="+", default=[], choices=GPU_PARTS, metavar="PART",
        help=f"--gpu: {', '.join(GPU_PARTS)}; default: all",
    )  # fmt: skip
    bench.add_argument("--device", default="auto", help="--gpu: auto (CUDA), or cpu for a test")
    bench.add_argument("--tiny", action="store_true", help="--gpu, --scaling: test with tiny sizes")


def bench(options: argparse.Namespace) -> None:
    from cvae_lab.bench import HEAD, bench, write

    about = {"command": "python -m cvae_lab bench", **_provenance()}
    if options.gpu:
        _bench_gpu(options, about)
        return
    if options.scaling:
        _bench_scaling(options, about)
        return
    if options.sizes:
        _bench_sizes(options, about)
        return
    print(HEAD)
    rows = []
    for row in bench(tuple(options.presets), options.repeats):
        rows.append(row)
        log_line(str(row))
    if options.out:
        write(options.out, rows, about)
        print(f"Wrote {options.out}.")


def _provenance() -> dict[str, str]:
    """Return versions and commit; empty without the package or pandas, because `bench --gpu` must run without both."""
    try:
        from cvae_lab.runs.result import provenance
    except ImportError:
        return {}
    with contextlib.suppress(ImportError):
        return provenance()
    return {}


def _bench_gpu(options: argparse.Namespace, about: dict[str, str]) -> None:
    from cvae_lab.bench.gpu import gpu
    from cvae_lab.bench.gpu.report import gpu_table

    about["command"] += " --gpu"
    rows = gpu(options.gpu, options.device, options.tiny, options.budget, options.only, about, log_line)
    print("\n".join(["", *gpu_table(rows, with_targets=not options.tiny), f"Wrote {options.gpu}."]))


def _bench_scaling(options: argparse.Namespace, about: dict[str, str]) -> None:
    from cvae_lab.bench.scaling import HEAD, TINY, as_json, scaling
    from cvae_lab.data.files import write_text

    print(HEAD)
    rows = []
    for row in scaling(TINY if options.tiny else None):
        rows.append(row)
        log_line(str(row))
    if options.out:
        about["command"] += " --scaling"
        write_text(options.out, as_json(rows, about))
        print(f"Wrote {options.out}.")


def _bench_sizes(options: argparse.Namespace, about: dict[str, str]) -> None:
    import json
    from dataclasses import asdict

    from cvae_lab.bench.sizes import HEAD, sizes
    from cvae_lab.data.files import write_text

    print(HEAD)
    rows = []
    for row in sizes(repeats=options.repeats):
        rows.append(asdict(row))
        log_line(str(row))
    if options.out:
        about["command"] += " --sizes"
        write_text(options.out, json.dumps({**about, "rows": rows}, indent=2))
        print(f"Wrote {options.out}.")
