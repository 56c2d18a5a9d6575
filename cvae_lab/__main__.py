"""The command line: `cvae-lab COMMAND`, or `python -m cvae_lab COMMAND`.

Exit status: 0 success, 1 error with an explanation in one line, 2 wrong usage, 143 terminated by SIGTERM.
"""

import argparse
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

from cvae_lab.schedules import KL_STRATEGIES
from cvae_lab.teaching.commands import add_commands

STRATEGIES = ["cyclical", "monotonic", "none", "constant"]  # default of `sweep --strategies`
STUDIES = ["reference", "strategies", "ablation", "minutes", "latent"]
PRESETS = ["handout", "compact"]
GPU_PARTS = ["machine", "checks", "training", "rollout", "score"]

DATA = "tiny, small or full (synthetic), or a folder with the layout of the course data"
WORKERS = "number of parallel processes; 0: one per core"
SCHEDULER = (
    "address of a running Dask scheduler, for example tcp://10.0.0.1:8786; default: processes on this machine"
)
CONTINUE = "to continue, run the same command again; for `train`, add --resume."


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse and run one command; return its exit status."""
    options = parser().parse_args(arguments)
    try:
        with _sigterm_as_exception():
            return getattr(import_module(options.module), options.function)(options) or 0
    except KeyboardInterrupt:
        print(f"cvae-lab: interrupted; {CONTINUE}", file=sys.stderr)
        return 1
    except _Terminated:
        print(f"cvae-lab: terminated; {CONTINUE}", file=sys.stderr)
        return 128 + signal.SIGTERM
    except (ValueError, OSError, RuntimeError) as error:
        print(f"cvae-lab: {error}", file=sys.stderr)
        return 1


class _Terminated(BaseException):
    """Raised on SIGTERM. It is a BaseException, so that `except Exception` does not treat it as a failed run."""


@contextmanager
def _sigterm_as_exception() -> Iterator[None]:
    """Raise _Terminated on SIGTERM, so that incomplete files are removed, workers stopped and locks released."""

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
    """Help formatter that keeps the line breaks of examples and shows the default values of options."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        text = action.help or ""
        if not action.option_strings or "default" in text or action.default in (argparse.SUPPRESS, None, []):
            return text
        default = " ".join(map(str, action.default)) if isinstance(action.default, list) else action.default
        return f"{text} (default: {'off' if default is False else str(default).replace('%', '%%')})"


def parser() -> argparse.ArgumentParser:
    """Return the parser of all commands. It imports neither torch nor pandas, so that help is shown quickly."""
    root = argparse.ArgumentParser(
        "cvae-lab", description="Pose-conditioned video prediction with a conditional VAE.", formatter_class=_Help,
        epilog="examples:\n  cvae-lab sweep --out runs/first -p minutes 4\n  cvae-lab predict runs/first\n\n"
        "`cvae-lab COMMAND --help` explains a command. `cvae-lab params` lists all parameters.",
    )  # fmt: skip
    commands = root.add_subparsers(required=True, metavar="command")
    _data_commands(commands)
    _video_commands(commands)
    _training_commands(commands)
    _predict_command(commands)
    _comparison_commands(commands)
    _record_commands(commands)
    add_commands(partial(_command, commands, module="cvae_lab.teaching.commands"))
    return root


def _command(
    commands: Any,  # noqa: ANN401
    name: str,
    text: str,
    *examples: str,
    aliases: Sequence[str] = (),
    module: str = "cvae_lab.runs.commands",
) -> argparse.ArgumentParser:
    """Add a command. It imports `module` and calls the function of the same name, in which _ replaces -."""
    shown = "".join(f"\n  cvae-lab {name} {example}".rstrip() for example in examples)
    command = commands.add_parser(
        name, help=text, description=f"{text[0].upper()}{text[1:]}.", formatter_class=_Help, aliases=aliases,
        epilog=f"example{'s' if len(examples) > 1 else ''}:{shown}",
    )  # fmt: skip
    command.set_defaults(function=name.replace("-", "_"), module=module)
    return command


def _data_commands(commands: Any) -> None:  # noqa: ANN401
    synthetic = _command(
        commands, "synthetic", "write the synthetic data set with the folder layout of the course data",
        "data/small", "data/tiny --size tiny --seed 1", aliases=["stage"],
    )  # fmt: skip
    synthetic.add_argument("out", type=Path, metavar="OUT", help="an empty or new folder")
    sizes = ["tiny", "small", "full"]
    synthetic.add_argument("--size", choices=sizes, default="small", help="number of frames")
    synthetic.add_argument("--seed", type=int, default=0, help="seed of figure, scene and motion")
    heights = (32, 64, 128)
    text = "frame height in pixels; the width is twice the height"
    synthetic.add_argument("--height", type=int, choices=heights, default=32, help=text)

    about = "report the content of a data folder, or why it cannot be used"
    check = _command(commands, "check", about, "data/LAB4_Dataset", "tiny")
    check.add_argument("data", metavar="DATA", help=DATA)
    text = f"{text}; default: that of the pictures, or 32 if theirs is another size"
    check.add_argument("--height", type=int, choices=heights, help=text)

    params = _command(
        commands, "params", "list the parameters that -p sets, with type, range, default and meaning",
        "", "lr epochs kl_strategy",
    )  # fmt: skip
    params.add_argument("names", nargs="*", metavar="NAME", help="names of parameters; default: all")


def _video_commands(commands: Any) -> None:  # noqa: ANN401
    video = _command(
        commands, "video", "make a data set from a video of one person, recorded with a fixed camera",
        "clip.mp4 --out data/mine", "clip.mp4 --out data/mine --pose openpose/ --fps 25 --size 64x128 --fit crop",
    )  # fmt: skip
    video.add_argument("file", type=Path, metavar="FILE", help="a video file")
    text = "an empty or new folder; required, no default"
    video.add_argument("--out", type=Path, required=True, metavar="DATA", help=text)
    video.add_argument("--pose", default="mediapipe", help="mediapipe, or a file or folder of keypoints")
    sizes = ["32x64", "64x128", "128x256"]
    video.add_argument("--size", choices=sizes, default="32x64", help="height x width")
    video.add_argument("--fps", type=float, help="frames per second to keep; default: every frame")
    video.add_argument("--seconds", type=float, help="use only the first seconds; default: all")
    edges = ("LEFT", "TOP", "WIDTH", "HEIGHT")
    video.add_argument("--crop", type=int, nargs=4, metavar=edges, help="in pixels; default: none")
    fits = ["letterbox", "crop"]
    video.add_argument("--fit", choices=fits, default="letterbox", help="add bars, or cut edges")
    video.add_argument(
        "--max-gap", type=int, default=5, help="longest gap of a joint that is interpolated, in frames"
    )
    video.add_argument(
        "--smooth", type=int, default=7, help="number of frames in the smoothing window; 0: no smoothing"
    )

    setup = _command(commands, "video-setup", "download and install the pose estimator for `video`", "")
    setup.add_argument("--python", default=sys.executable, help="a Python interpreter, version 3.9 to 3.12")


def _training_commands(commands: Any) -> None:  # noqa: ANN401
    train = _command(
        commands, "train", "train one model without a notebook",
        "runs/mine --data tiny -p epochs 3", "runs/mine --data tiny -p epochs 6 --resume",
    )  # fmt: skip
    train.add_argument("run_dir", type=Path, metavar="RUN", help="folder of the run")
    train.add_argument("--data", default="small", help=DATA)
    train.add_argument(
        "--minutes", type=float, help="time limit in minutes; default: no limit, train for `epochs` epochs"
    )
    train.add_argument("--resume", action="store_true", help="continue the run from RUN/last.pt")
    train.add_argument("--tensorboard", action="store_true", help="also write event files for TensorBoard")
    _parameters(train)

    sweep = _command(
        commands, "sweep", "train every strategy with every seed, by executing notebook 03 with papermill",
        "--out runs/first -p minutes 4", "--strategies cyclical constant --seeds 0 1 2 --out runs/seeds",
    )  # fmt: skip
    sweep.add_argument("--data", default="small", help=DATA)
    sweep.add_argument("--out", type=Path, default=Path("runs"), help="parent folder of the run folders")
    sweep.add_argument(
        "--strategies", nargs="+", default=STRATEGIES, choices=[*KL_STRATEGIES, "stages"], metavar="STRATEGY",
        help=f"KL strategies: {', '.join(KL_STRATEGIES)}, stages",
    )  # fmt: skip
    sweep.add_argument("--seeds", nargs="+", type=int, default=[0], metavar="SEED", help="seeds of the runs")
    sweep.add_argument("--workers", type=int, default=0, help=WORKERS)
    sweep.add_argument("--scheduler", help=SCHEDULER)
    _parameters(sweep)

    study = _command(
        commands, "study", "train every variant of a study with every seed",
        "ablation --out runs/ablation", "ablation --variants as-is no-noise --seeds 0 --out runs/noise",
    )  # fmt: skip
    study.add_argument("name", choices=STUDIES, metavar="STUDY", help=", ".join(STUDIES))
    text = "folder of the run folders; required, no default"
    study.add_argument("--out", type=Path, required=True, help=text)
    study.add_argument("--workers", type=int, default=0, help=WORKERS)
    study.add_argument("--scheduler", help=SCHEDULER)
    study.add_argument("--seeds", nargs="+", type=int, metavar="SEED", help="default: seeds of the study")
    study.add_argument("--variants", nargs="+", metavar="VARIANT", help="default: all variants of the study")
    _parameters(study)


def _predict_command(commands: Any) -> None:  # noqa: ANN401
    predict = _command(
        commands, "predict", "predict the test clips; write GIFs, HTML players and the file to hand in; print scores",
        "runs/first", "runs/first/cyclical-seed0 --plain", "epoch=6.ckpt --data data/LAB4_Dataset --out prediction",
    )  # fmt: skip
    predict.add_argument(
        "runs", type=Path, nargs="+", metavar="RUN",
        help="a run folder, a folder of runs (the best by held-out score is used) or a checkpoint file; "
        "if several are given, their predictions are averaged",
    )  # fmt: skip
    predict.add_argument("--data", default="small", help=DATA)
    predict.add_argument(
        "--out", type=Path,
        help="output folder; default: `test` in the run folder, or NAME-test next to a checkpoint file NAME.pt",
    )  # fmt: skip
    predict.add_argument("--seed", type=int, default=0, help="seed of the random z")
    predict.add_argument(
        "--answers", type=Path, metavar="PATH",
        help="true frames: GT0.csv, ... (2023), gt.csv (later) or their folder; default: files in or next to DATA",
    )  # fmt: skip
    predict.add_argument(
        "--output", choices=("auto", "linear", "sigmoid"), default="auto",
        help="output activation of a network that other code trained; auto compares linear and sigmoid on known frames",
    )  # fmt: skip
    predict.add_argument("--plain", action="store_true", help="do not apply the test-time corrections")
    predict.add_argument(
        "--csv", choices=("later", "2023"), default="later",
        help="file format of the course: one CSV (later years), or one text file per clip (2023)",
    )  # fmt: skip


def _comparison_commands(commands: Any) -> None:  # noqa: ANN401
    about = "describe what the latent of each finished run does"
    diagnose = _command(commands, "diagnose", about, "runs/first --out latent.csv")
    diagnose.add_argument("runs", type=Path, metavar="RUNS", help="a folder of runs")
    diagnose.add_argument("--out", type=Path, help="also write the numbers as CSV; default: print only")

    compare = _command(
        commands, "compare", "print the table of finished runs and draw its pictures",
        "runs/first", "runs/ablation --csv figures/studies/ablation.csv",
    )  # fmt: skip
    compare.add_argument("runs", type=Path, metavar="RUNS", help="a folder of runs, or a table of --csv")
    instead = compare.add_mutually_exclusive_group()
    pictures = "default: draw pictures"
    instead.add_argument("--into", type=Path, metavar="FILE", help=f"write to this Markdown file; {pictures}")
    instead.add_argument("--csv", type=Path, metavar="FILE", help=f"write a CSV, one row per run; {pictures}")

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
    instead.add_argument(
        "--sizes", action="store_true", help="measure cost, memory and PSNR of every frame size (minutes)"
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
        commands, "export", "copy finished runs without checkpoints, so that they are small enough to commit",
        "runs/reference figures/reference",
    )  # fmt: skip
    export.add_argument("runs", type=Path, metavar="RUNS", help="a folder of runs")
    export.add_argument("out", type=Path, metavar="OUT", help="folder of the copies")
    pictures = _command(commands, "pictures", "draw the pictures of the README", "figures")
    pictures.add_argument("out", type=Path, metavar="OUT", help="folder of the pictures")
    text = "folder of runs; the best one is shown"
    pictures.add_argument("--runs", type=Path, default=Path("figures/reference"), help=text)

    again = _command(
        commands, "reproduce", "reproduce all committed results: runs, tables, pictures, notebooks",
        "--dry-run", "--course data/LAB4_Dataset --workers 8",
        "--root /tmp/copy --data tiny --seeds 0 -p epochs 1 -p minutes 0",
    )  # fmt: skip
    again.add_argument("--dry-run", action="store_true", help="only print the runs and their expected time")
    again.add_argument("--root", type=Path, default=Path(), help="repository whose results are replaced")
    text = "folder of the runs of all commits"
    again.add_argument("--out", type=Path, default=Path("runs/reproduce"), help=text)
    again.add_argument("--workers", type=int, default=0, help=WORKERS)
    names = "studies, bench, tables, notebooks; default: all"
    again.add_argument("--only", nargs="+", default=[], metavar="NAME", help=names)
    text = "folder of the course data; default: keep course.csv"
    again.add_argument("--course", default="", metavar="DATA", help=text)
    again.add_argument("--data", default="", help="data of a trial run; default: the data of each study")
    text = "seeds of a trial run; default: those of the study"
    again.add_argument("--seeds", nargs="+", type=int, metavar="SEED", help=text)
    _parameters(again)


def _parameters(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "-p", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"), dest="params",
        help="set a parameter; may be given several times; `cvae-lab params` lists names and defaults",
    )  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
