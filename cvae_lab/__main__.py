"""The command line: `cvae-lab COMMAND`, or `python -m cvae_lab COMMAND`.

Exit status: 0 done, 1 refused with one line of explanation, 2 wrong usage, 143 ended by SIGTERM.
"""

import argparse
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

STRATEGIES = ["cyclical", "monotonic", "none", "constant"]
STUDIES = ["reference", "strategies", "ablation", "minutes", "latent"]
PRESETS = ["handout", "compact"]
GPU_PARTS = ["machine", "checks", "training", "rollout", "score"]

DATA = "tiny, small or full (synthetic), or a folder in the course's layout"
WORKERS = "processes that run side by side; 0: one per core"
SCHEDULER = (
    "address of a running Dask scheduler, such as tcp://10.0.0.1:8786; default: processes on this machine"
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse and run one command; return its exit status."""
    options = parser().parse_args(arguments)
    try:
        with _sigterm_as_exception():
            return getattr(import_module("cvae_lab.runs.commands"), options.function)(options) or 0
    except KeyboardInterrupt:
        print(
            "cvae-lab: interrupted; run the command again to continue (train: with --resume).",
            file=sys.stderr,
        )
        return 1
    except _Terminated:
        print(
            "cvae-lab: terminated; run the command again to continue (train: with --resume).", file=sys.stderr
        )
        return 128 + signal.SIGTERM
    except (ValueError, OSError, RuntimeError) as error:
        print(f"cvae-lab: {error}", file=sys.stderr)
        return 1


class _Terminated(BaseException):
    """SIGTERM arrived. Not an Exception, so that no handler below takes it for a failed run."""


@contextmanager
def _sigterm_as_exception() -> Iterator[None]:
    """Raise _Terminated on SIGTERM: a file that is being written is dropped, workers are closed, locks are freed."""

    def terminate(*_: Any) -> None:  # noqa: ANN401
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a second signal does not interrupt the clean-up
        raise _Terminated

    try:
        before = signal.signal(signal.SIGTERM, terminate)
    except ValueError:  # not in the main thread, where signals cannot be handled
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class _Help(argparse.RawDescriptionHelpFormatter):
    """Help that keeps the line breaks of examples and shows the default of every option that has one."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        text = action.help or ""
        if not action.option_strings or "default" in text or action.default in (argparse.SUPPRESS, None, []):
            return text
        default = action.default
        if isinstance(default, list):
            default = " ".join(map(str, default))
        return f"{text} (default: {'off' if default is False else str(default).replace('%', '%%')})"


def parser() -> argparse.ArgumentParser:
    """Return the parser of all commands. It imports neither torch nor pandas, so that help appears at once."""
    root = argparse.ArgumentParser(
        "cvae-lab", description="Pose-conditioned video prediction with a conditional VAE.", formatter_class=_Help,
        epilog="examples:\n  cvae-lab sweep --out runs/first -p minutes 4\n  cvae-lab predict runs/first\n\n"
        "`cvae-lab COMMAND --help` explains a command, `cvae-lab params` lists all parameters.",
    )  # fmt: skip
    commands = root.add_subparsers(required=True, metavar="command")
    _data_commands(commands)
    _video_commands(commands)
    _training_commands(commands)
    _predict_command(commands)
    _comparison_commands(commands)
    _record_commands(commands)
    return root


def _command(
    commands: Any,  # noqa: ANN401
    name: str,
    text: str,
    *examples: str,
    aliases: Sequence[str] = (),
) -> argparse.ArgumentParser:
    """Add a command whose body is the function of that name in `runs.commands` (_ for -), imported when it runs."""
    shown = "".join(f"\n  cvae-lab {name} {example}".rstrip() for example in examples)
    command = commands.add_parser(
        name, help=text, description=f"{text[0].upper()}{text[1:]}.", formatter_class=_Help, aliases=aliases,
        epilog=f"example{'s' if len(examples) > 1 else ''}:{shown}",
    )  # fmt: skip
    command.set_defaults(function=name.replace("-", "_"))
    return command


def _data_commands(commands: Any) -> None:  # noqa: ANN401
    synthetic = _command(
        commands, "synthetic", "write the synthetic data set in the course's folder layout",
        "data/small", "data/tiny --size tiny --seed 1", aliases=["stage"],
    )  # fmt: skip
    synthetic.add_argument("out", type=Path, metavar="OUT", help="an empty or new folder")
    synthetic.add_argument(
        "--size", choices=["tiny", "small", "full"], default="small", help="number of frames"
    )
    synthetic.add_argument("--seed", type=int, default=0, help="seed of figure, scene and motion")

    check = _command(
        commands,
        "check",
        "report what a data folder holds, or why it cannot be used",
        "data/LAB4_Dataset",
        "tiny",
    )
    check.add_argument("data", metavar="DATA", help=DATA)

    params = _command(
        commands, "params", "list the parameters that -p sets, with type, range, default and meaning",
        "", "lr epochs kl_strategy",
    )  # fmt: skip
    params.add_argument("names", nargs="*", metavar="NAME", help="only these; default: all")


def _video_commands(commands: Any) -> None:  # noqa: ANN401
    video = _command(
        commands, "video", "make a data set from a video of one person before a fixed camera",
        "clip.mp4 --out data/mine", "clip.mp4 --out data/mine --pose openpose/ --fps 25 --size 64x128 --fit crop",
    )  # fmt: skip
    video.add_argument("file", type=Path, metavar="FILE", help="a video file")
    video.add_argument("--out", type=Path, required=True, metavar="DATA", help="an empty or new folder")
    video.add_argument("--pose", default="mediapipe", help="mediapipe, or a file or folder of keypoints")
    video.add_argument(
        "--size", choices=["32x64", "64x128", "128x256"], default="32x64", help="height x width"
    )
    video.add_argument("--fps", type=float, help="frames per second to keep; default: every frame")
    video.add_argument("--seconds", type=float, help="use only the first seconds; default: all")
    video.add_argument(
        "--crop", type=int, nargs=4, metavar=("LEFT", "TOP", "WIDTH", "HEIGHT"), help="in pixels"
    )
    video.add_argument(
        "--fit", choices=["letterbox", "crop"], default="letterbox", help="add bars, or cut edges"
    )
    video.add_argument(
        "--max-gap", type=int, default=5, help="longest gap of a joint, in frames, to interpolate"
    )
    video.add_argument(
        "--smooth", type=int, default=7, help="frames in the smoothing window; 0: do not smooth"
    )

    setup = _command(commands, "video-setup", "install the pose estimator of `video`; uses the network", "")
    setup.add_argument("--python", default=sys.executable, help="a Python from 3.9 to 3.12")


def _training_commands(commands: Any) -> None:  # noqa: ANN401
    train = _command(
        commands, "train", "train one model without a notebook",
        "runs/mine --data tiny -p epochs 3", "runs/mine --data tiny -p epochs 6 --resume",
    )  # fmt: skip
    train.add_argument("run_dir", type=Path, metavar="RUN", help="folder of the run")
    train.add_argument("--data", default="small", help=DATA)
    train.add_argument("--minutes", type=float, help="time budget; default: none, `epochs` decides")
    train.add_argument("--resume", action="store_true", help="continue from RUN/last.pt")
    train.add_argument("--tensorboard", action="store_true", help="also write event files for TensorBoard")
    _parameters(train)

    sweep = _command(
        commands, "sweep", "train every strategy with every seed, each as a papermill run of notebook 03",
        "--out runs/first -p minutes 4", "--strategies cyclical constant --seeds 0 1 2 --out runs/seeds",
    )  # fmt: skip
    sweep.add_argument("--data", default="small", help=DATA)
    sweep.add_argument("--out", type=Path, default=Path("runs"), help="folder of the run folders")
    sweep.add_argument(
        "--strategies", nargs="+", default=STRATEGIES, choices=[*STRATEGIES, "stages"], metavar="STRATEGY",
        help="KL strategies: cyclical, monotonic, none, constant, stages",
    )  # fmt: skip
    sweep.add_argument("--seeds", nargs="+", type=int, default=[0], metavar="SEED", help="one run per seed")
    sweep.add_argument("--workers", type=int, default=0, help=WORKERS)
    sweep.add_argument("--scheduler", help=SCHEDULER)
    _parameters(sweep)

    study = _command(
        commands, "study", "train every variant of a study with every seed, without notebooks",
        "ablation --out runs/ablation", "ablation --variants as-is no-noise --seeds 0 --out runs/noise",
    )  # fmt: skip
    study.add_argument("name", choices=STUDIES, metavar="STUDY", help=", ".join(STUDIES))
    study.add_argument(
        "--out", type=Path, required=True, help="folder of the run folders; required, no default"
    )
    study.add_argument("--workers", type=int, default=0, help=WORKERS)
    study.add_argument("--scheduler", help=SCHEDULER)
    study.add_argument("--seeds", nargs="+", type=int, metavar="SEED", help="default: those of the study")
    study.add_argument("--variants", nargs="+", metavar="VARIANT", help="default: all of the study")
    _parameters(study)


def _predict_command(commands: Any) -> None:  # noqa: ANN401
    predict = _command(
        commands, "predict", "predict the test clips: GIFs, HTML players, the file to hand in, scores",
        "runs/first", "runs/first/cyclical-seed0 --plain", "epoch=6.ckpt --data data/LAB4_Dataset --out prediction",
    )  # fmt: skip
    predict.add_argument(
        "runs", type=Path, nargs="+", metavar="RUN",
        help="a run folder, a folder of runs (the best by held-out score is used) or a checkpoint file; "
        "several: the mean of their predictions",
    )  # fmt: skip
    predict.add_argument("--data", default="small", help=DATA)
    predict.add_argument(
        "--out", type=Path,
        help="folder of the files; default: test in the run folder, NAME-test beside a checkpoint file NAME.pt",
    )  # fmt: skip
    predict.add_argument("--seed", type=int, default=0, help="seed of z")
    predict.add_argument(
        "--answers", type=Path, metavar="PATH",
        help="true frames: GT0.csv, ... (2023), gt.csv (later) or their folder; default: those in or beside DATA",
    )  # fmt: skip
    predict.add_argument(
        "--output", choices=("auto", "linear", "sigmoid"), default="auto",
        help="last activation of a network that another trainer saved; auto tries both on known frames",
    )  # fmt: skip
    predict.add_argument("--plain", action="store_true", help="without the test-time corrections")
    predict.add_argument(
        "--csv", choices=("later", "2023"), default="later",
        help="the course's file format: one CSV (later years) or a text file per clip (2023)",
    )  # fmt: skip


def _comparison_commands(commands: Any) -> None:  # noqa: ANN401
    diagnose = _command(
        commands, "diagnose", "describe the latent of finished runs", "runs/a --out latent.csv"
    )
    diagnose.add_argument("runs", type=Path, metavar="RUNS", help="a folder of runs")
    diagnose.add_argument("--out", type=Path, help="also write the numbers as CSV; default: print only")

    compare = _command(
        commands, "compare", "print the table of finished runs and draw its pictures",
        "runs/first", "runs/ablation --csv figures/studies/ablation.csv",
    )  # fmt: skip
    compare.add_argument("runs", type=Path, metavar="RUNS", help="a folder of runs, or a table by --csv")
    instead = compare.add_mutually_exclusive_group()
    instead.add_argument("--into", type=Path, metavar="FILE", help="Markdown file; default: draw pictures")
    instead.add_argument(
        "--csv", type=Path, metavar="FILE", help="CSV, a row per run; default: draw pictures"
    )

    bench = _command(
        commands, "bench", "time the reference loop and the fast paths, and measure their memory",
        "--presets compact", "--gpu gpu.json", "--scaling --out scaling.json", "--gpu gpu.json --device cpu --tiny",
    )  # fmt: skip
    bench.add_argument("--presets", nargs="+", default=PRESETS, choices=PRESETS, help="networks to time")
    bench.add_argument("--repeats", type=int, default=3, help="measurements per row")
    bench.add_argument("--out", type=Path, help="also write the table as JSON; default: print only")
    instead = bench.add_mutually_exclusive_group()
    instead.add_argument(
        "--gpu", type=Path, metavar="OUT",
        help="check and measure everything on one CUDA GPU in ten minutes, and write it as JSON; default: no",
    )  # fmt: skip
    instead.add_argument(
        "--scaling", action="store_true", help="measure how time grows with sizes and processes"
    )
    bench.add_argument(
        "--budget", type=float, default=540.0,
        help="--gpu: seconds for all parts together; the training runs of 4 minutes need about 2400",
    )  # fmt: skip
    bench.add_argument(
        "--only", nargs="+", default=[], choices=GPU_PARTS, metavar="PART",
        help=f"--gpu: {', '.join(GPU_PARTS)}; default: all",
    )  # fmt: skip
    bench.add_argument("--device", default="auto", help="--gpu: auto (CUDA), or cpu for a test")
    bench.add_argument("--tiny", action="store_true", help="--gpu, --scaling: test with tiny sizes")


def _record_commands(commands: Any) -> None:  # noqa: ANN401
    export = _command(
        commands, "export", "copy finished runs without checkpoints, small enough to commit",
        "runs/reference figures/reference",
    )  # fmt: skip
    export.add_argument("runs", type=Path, metavar="RUNS", help="a folder of runs")
    export.add_argument("out", type=Path, metavar="OUT", help="folder of the copies")
    pictures = _command(commands, "pictures", "draw the pictures of the README", "figures")
    pictures.add_argument("out", type=Path, metavar="OUT", help="folder of the pictures")
    pictures.add_argument(
        "--runs", type=Path, default=Path("figures/reference"), help="folder of runs; the best one is shown"
    )

    again = _command(
        commands, "reproduce", "make every committed record again: runs, tables, pictures, notebooks",
        "--dry-run", "--course data/LAB4_Dataset --workers 8",
        "--root /tmp/copy --data tiny --seeds 0 -p epochs 1 -p minutes 0",
    )  # fmt: skip
    again.add_argument("--dry-run", action="store_true", help="print the runs to do and the time they take")
    again.add_argument("--root", type=Path, default=Path(), help="the repository whose records are replaced")
    again.add_argument(
        "--out", type=Path, default=Path("runs/reproduce"), help="folder of the runs, one per commit"
    )
    again.add_argument("--workers", type=int, default=0, help=WORKERS)
    names = "studies, bench, tables, notebooks; default: all"
    again.add_argument("--only", nargs="+", default=[], metavar="NAME", help=names)
    again.add_argument(
        "--course", default="", metavar="DATA", help="the course's data; default: leave course.csv"
    )
    again.add_argument(
        "--data", default="", help="rehearsal: data of every run; default: those of the studies"
    )
    again.add_argument(
        "--seeds", nargs="+", type=int, metavar="SEED", help="rehearsal; default: those of the studies"
    )
    _parameters(again)


def _parameters(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "-p", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"), dest="params",
        help="set a parameter; may be repeated; `cvae-lab params` lists names and defaults",
    )  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
