"""The command line. Exit 0: done. 1: refused, with one clear line. 2: wrong usage."""

import argparse
import ast
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cvae_lab.config import ConfigError, RunConfig

STRATEGIES = ["cyclical", "monotonic", "none", "constant"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse and run one command."""
    options = _parser().parse_args(arguments)
    try:
        return options.run(options) or 0
    except KeyboardInterrupt:
        print("Interrupted; a training run goes on from its last epoch with --resume.", file=sys.stderr)
        return 1
    except (ValueError, OSError, RuntimeError) as error:
        print(f"cvae-lab: {error}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("cvae-lab", description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(required=True, metavar="command")

    stage = _command(commands, "stage", _stage, "write the embedded data set as the handout's folders")
    stage.add_argument("out", type=Path)
    stage.add_argument("--size", choices=["tiny", "small", "full"], default="small")
    stage.add_argument("--seed", type=int, default=0)

    check = _command(commands, "check", _check, "report what a data folder holds, or why it cannot be used")
    check.add_argument("data")

    _video_parsers(commands)

    train = _command(commands, "train", _train, "train one model, without a notebook")
    train.add_argument("run_dir", type=Path, metavar="RUN")
    train.add_argument("--data", default="small")
    train.add_argument("--minutes", type=float)
    train.add_argument("--resume", action="store_true", help="go on from RUN/last.pt")
    train.add_argument("--tensorboard", action="store_true", help="also write event files for TensorBoard")
    _parameters(train)

    sweep = _command(commands, "sweep", _sweep, "train strategies x seeds through papermill, side by side")
    sweep.add_argument("--data", default="small")
    sweep.add_argument("--out", type=Path, default=Path("runs"))
    sweep.add_argument("--strategies", nargs="+", default=STRATEGIES, choices=[*STRATEGIES, "stages"])
    sweep.add_argument("--seeds", nargs="+", type=int, default=[0])
    sweep.add_argument("--workers", type=int, default=0, help="processes; default: one per core")
    sweep.add_argument("--scheduler", help="address of a running Dask scheduler")
    _parameters(sweep)

    study = _command(
        commands, "study", _study, "train a study's variants x seeds, side by side, no notebooks"
    )
    study.add_argument("name", choices=["reference", "strategies", "ablation", "minutes", "latent"])
    study.add_argument("--out", type=Path, required=True)
    study.add_argument("--workers", type=int, default=0, help="processes; default: one per core")
    study.add_argument("--scheduler", help="address of a running Dask scheduler")
    study.add_argument("--seeds", nargs="+", type=int)
    study.add_argument("--variants", nargs="+", help="of the study; default: all")
    _parameters(study)

    predict = _command(commands, "predict", _predict, "predict the test clips: GIF, HTML player, CSV, score")
    predict.add_argument(
        "runs", type=Path, nargs="+", metavar="RUN", help="several: the mean of their predictions"
    )
    predict.add_argument("--data", default="small")
    predict.add_argument("--seed", type=int, default=0, help="of z at test time")
    predict.add_argument(
        "--csv",
        choices=("later", "2023"),
        default="later",
        help="the course's format of the files to hand in",
    )

    diagnose = _command(commands, "diagnose", _diagnose, "say what the latent of each finished run does")
    diagnose.add_argument("runs", type=Path)
    diagnose.add_argument("--out", type=Path, help="also write the numbers as CSV")

    compare = _command(
        commands, "compare", _compare, "print the table of finished runs and draw its pictures"
    )
    compare.add_argument("runs", type=Path, help="a folder of runs, or a study's table that --csv wrote")
    instead = compare.add_mutually_exclusive_group()
    instead.add_argument("--into", type=Path, help="a Markdown file whose table is replaced, and no pictures")
    instead.add_argument("--csv", type=Path, help="write the table as CSV, a row per run, and no pictures")

    bench = _command(
        commands, "bench", _bench, "time the literal loop against the fast paths on this machine"
    )
    bench.add_argument("--presets", nargs="+", default=["handout", "compact"], choices=["handout", "compact"])
    bench.add_argument("--repeats", type=int, default=3)
    bench.add_argument("--out", type=Path, help="also write the table as JSON")

    export = _command(
        commands, "export", _export, "copy finished runs without checkpoints, small enough to commit"
    )
    export.add_argument("runs", type=Path)
    export.add_argument("out", type=Path)

    pictures = _command(commands, "pictures", _pictures, "draw README's pictures")
    pictures.add_argument("out", type=Path)
    pictures.add_argument("--runs", type=Path, default=Path("figures/reference"))
    return parser


def _video_parsers(commands: Any) -> None:  # noqa: ANN401
    video = _command(commands, "video", _video, "make a data set from a video of one person, fixed camera")
    video.add_argument("file", type=Path)
    video.add_argument("--out", type=Path, required=True, metavar="DATA", help="a new or empty folder")
    video.add_argument("--pose", default="mediapipe", help="mediapipe, or a file or folder of keypoints")
    video.add_argument("--size", choices=["32x64", "64x128", "128x256"], default="32x64")
    video.add_argument("--fps", type=float, help="frames per second to choose; default: every frame")
    video.add_argument("--seconds", type=float, help="use the first seconds only")
    video.add_argument("--crop", type=int, nargs=4, metavar=("LEFT", "TOP", "WIDTH", "HEIGHT"), help="pixels")
    video.add_argument("--fit", choices=["letterbox", "crop"], default="letterbox", help="bars, or cut edges")
    video.add_argument("--max-gap", type=int, default=5, help="frames of a gap in a joint's track to fill")
    video.add_argument("--smooth", type=int, default=7, help="frames in the smoothing window; 0: none")

    setup = _command(commands, "video-setup", _video_setup, "install the pose estimator of `video` (network)")
    setup.add_argument(
        "--python", default=sys.executable, help="a Python from 3.9 to 3.12; default: this one"
    )


def _command(commands: Any, name: str, run: Any, text: str) -> argparse.ArgumentParser:  # noqa: ANN401
    parser = commands.add_parser(name, help=text, description=text)
    parser.set_defaults(run=run)
    return parser


def _parameters(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-p", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"), dest="params",
        help="any parameter of cvae_lab/config.py",
    )  # fmt: skip


def _values(pairs: Sequence[Sequence[str]], but: Sequence[str] = ("data",)) -> dict[str, Any]:
    """Parameters given by -p; those in `but` have an option of their own."""
    for name, _ in pairs:
        if name in but:
            raise ConfigError(f"-p {name} is not for this command, which sets it itself; see its --help.")
    return {name: _literal(text) for name, text in pairs}


def _literal(text: str) -> Any:  # noqa: ANN401
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def _stage(options: argparse.Namespace) -> None:
    from cvae_lab.data import load, write_folder

    write_folder(load(options.size, options.seed), options.out)
    print(f"Wrote the embedded set ({options.size}, seed {options.seed}) to {options.out}.")


def _check(options: argparse.Namespace) -> None:
    from cvae_lab.data import load
    from cvae_lab.data.check import report
    from cvae_lab.data.video.report import read_report

    print(report(load(options.data)).to_string(index=False, float_format="%.2f", na_rep="-"))
    print("\nstatic, copy_previous, mean_frame: mean PSNR (dB) of three predictions that need no model.")
    if video := read_report(options.data):
        print("\nMade from a video:", *video.lines, sep="\n")


def _video(options: argparse.Namespace) -> None:
    from cvae_lab.data.video import make_data_set

    names = ("file", "out", "pose", "fps", "seconds", "fit", "max_gap", "smooth")
    crop = tuple(options.crop) if options.crop else None
    size = tuple(map(int, options.size.split("x")))
    report = make_data_set(**{name: getattr(options, name) for name in names}, size=size, crop=crop)
    print(*report.lines, f"Wrote {options.out}; open {options.out / 'index.html'} before training.", sep="\n")


def _video_setup(options: argparse.Namespace) -> None:
    from cvae_lab.data.video import estimator

    print(f"Installing {estimator.MEDIAPIPE} in {estimator.environment()}; about 140 MB are downloaded.")
    print(f"The pose estimator is ready in {estimator.install(options.python)}.")


def _train(options: argparse.Namespace) -> None:
    from cvae_lab.runs.train import train_run
    from cvae_lab.training import distributed

    params = _values(options.params)
    if options.minutes:
        params["minutes"] = options.minutes
    config = RunConfig.from_params(options.data, **params)
    with distributed.process_group():
        train_run(options.run_dir, config, options.resume, options.tensorboard)


def _sweep(options: argparse.Namespace) -> int:
    from cvae_lab.runs.sweep import template

    variants = {name: {"kl_strategy": name} for name in options.strategies}
    # kl_target, too: a controller would leave the strategies no difference.
    params = _values(options.params, ("data", "seed", "kl_strategy", "kl_target"))
    return _run_all(template(), options, options.data, variants, options.seeds, params)


def _study(options: argparse.Namespace) -> int:
    from cvae_lab.runs.studies import STUDIES

    study = STUDIES[options.name]
    wanted = options.variants or list(study.variants)
    if unknown := [name for name in wanted if name not in study.variants]:
        raise ConfigError(
            f"study {options.name} has no variant {unknown[0]!r}; it has {', '.join(study.variants)}."
        )
    print(study.about)
    params = study.base | _values(options.params, ("data", "seed"))
    variants = {name: study.variants[name] for name in wanted}
    return _run_all(None, options, study.data, variants, options.seeds or study.seeds, params)


def _run_all(
    template: Path | None,
    options: argparse.Namespace,
    data: str,
    variants: dict[str, dict[str, Any]],
    seeds: Sequence[int],
    params: dict[str, Any],
) -> int:
    from cvae_lab.data import load
    from cvae_lab.runs.sweep import plan, sweep

    jobs = plan(data, options.out, variants, seeds, params)
    load(data)  # decoded or rendered once, before the workers need it; a faulty folder is refused here
    print(f"{len(jobs)} runs to {options.out}", flush=True)
    failed = 0
    for count, outcome in enumerate(sweep(template, jobs, options.workers, options.scheduler), 1):
        failed += not outcome.ok
        state = outcome.message if outcome.ok else f"FAILED: {outcome.message}"
        print(
            f"[{count}/{len(jobs)}] {Path(outcome.run_dir).name}: {state} ({outcome.minutes:.1f} min)",
            flush=True,
        )
    return 1 if failed else 0


def _predict(options: argparse.Namespace) -> None:
    from cvae_lab.runs.predict import predict_run

    predict_run(options.runs, options.data, options.seed, options.csv)


def _diagnose(options: argparse.Namespace) -> None:
    from cvae_lab.evaluation.latent_report import latent_row
    from cvae_lab.runs.folder import find_runs
    from cvae_lab.runs.tables import write_csv
    from cvae_lab.training import load_model

    rows = []
    for run in find_runs(options.runs):
        row = latent_row(load_model(run.path / "best.pt"), run.config.data)
        print(f"{run.path.name}: {row.pop('summary')}", flush=True)
        names = ("psnr_mean", "hardware", "commit")
        rows.append({"run": run.path.name, **row, **{name: run.result[name] for name in names}})
        if options.out:  # after each run, so that an interrupted command keeps what it has
            write_csv(options.out, rows)
    if options.out:
        print(f"Wrote {options.out}.")


def _compare(options: argparse.Namespace) -> None:
    import pandas as pd

    from cvae_lab.runs import tables
    from cvae_lab.runs.folder import find_runs

    if options.runs.suffix == ".csv":
        if options.csv:
            raise ValueError(f"{options.runs} is a table already; --csv is for a folder of runs.")
        text = tables.markdown(pd.read_csv(options.runs), tables.STUDY)
        print(text)
        if options.into:
            tables.into_markdown(options.into, options.runs.stem, text)
        return
    runs = find_runs(options.runs)
    table = tables.runs_table(runs)
    print(tables.terminal(table))
    if options.csv:
        tables.write_csv(options.csv, [tables.run_row(run) for run in runs])
        print(f"Wrote {options.csv}.")
    elif options.into:
        tables.into_markdown(options.into, "results", tables.markdown(table, tables.RESULTS))
        print(f"Wrote the table into {options.into}.")
    else:
        for picture in tables.write_pictures(runs, table, options.runs):
            print(f"Wrote {picture}")


def _bench(options: argparse.Namespace) -> None:
    from cvae_lab.bench import HEAD, bench, write
    from cvae_lab.runs.provenance import provenance

    print(HEAD)
    rows = []
    for row in bench(tuple(options.presets), options.repeats):
        rows.append(row)
        print(row, flush=True)
    if options.out:
        write(options.out, rows, {"command": "python -m cvae_lab bench", **provenance()})
        print(f"Wrote {options.out}.")


def _export(options: argparse.Namespace) -> None:
    from cvae_lab.runs.folder import best_run, find_runs
    from cvae_lab.runs.reference import export

    best = best_run(options.runs)
    for run in find_runs(options.runs):
        print(f"Wrote {export(run, options.out, pictures=run == best)}")


def _pictures(options: argparse.Namespace) -> None:
    from cvae_lab.runs.folder import best_run
    from cvae_lab.runs.reference import write_pictures

    for picture in write_pictures(options.out, best_run(options.runs)):
        print(f"Wrote {picture}")


if __name__ == "__main__":
    sys.exit(main())
