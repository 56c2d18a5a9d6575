"""Command `predict`: predict the test clips with trained models."""

import argparse
from pathlib import Path

from cvae_lab.runs.commands import DATA, Add, log_line


def add_commands(add: Add) -> None:
    predict = add(
        "predict", "predict the test clips; write GIFs, HTML players and the file to hand in; print scores",
        "runs/first", "runs/first/cyclical-seed0 --plain", "epoch=6.ckpt --data data/LAB4_Dataset --out prediction",
    )  # fmt: skip
    predict.add_argument(
        "runs", type=Path, nargs="+", metavar="RUN",
        help="a run folder, a folder of runs (the run with the best held-out score is used) or a checkpoint file; "
            "predictions of several checkpoints are averaged",
    )  # fmt: skip
    predict.add_argument("--data", default="small", help=DATA)
    predict.add_argument(
        "--out", type=Path,
        help="output folder; default: `test` in the run folder, or NAME-test next to a checkpoint file NAME.pt",
    )  # fmt: skip
    predict.add_argument("--seed", type=int, default=0, help="seed of the random z")
    predict.add_argument(
        "--answers", type=Path, metavar="PATH",
        help="true frames: GT0.csv, ... (2023), gt.csv (later years) or a folder of these files; default: files in "
            "DATA or its parent folder",
    )  # fmt: skip
    predict.add_argument(
        "--output", choices=("auto", "linear", "sigmoid"), default="auto",
        help="output activation of a network that was trained with other code; auto compares linear and sigmoid on "
            "frames with known content",
    )  # fmt: skip
    predict.add_argument("--plain", action="store_true", help="do not apply the test-time corrections")
    predict.add_argument(
        "--batch-statistics", action="store_true",
        help="keep batch norm in training mode, as the course's code does in validation and test; only to reproduce "
        "scores of that code",
    )  # fmt: skip
    predict.add_argument(
        "--csv", choices=("later", "2023"), default="later",
        help="file format of the course: one CSV (later years), or one text file per clip (2023)",
    )  # fmt: skip


def predict(options: argparse.Namespace) -> None:
    from cvae_lab.runs.predict import predict_run

    predict_run(
        options.runs,
        options.data,
        options.seed,
        options.csv,
        log_line,
        out=options.out,
        plain=options.plain,
        answers=options.answers,
        output=options.output,
        batch_statistics=options.batch_statistics,
    )
