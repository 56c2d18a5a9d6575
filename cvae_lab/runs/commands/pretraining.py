"""Command that trains the pretrained weights, and command `demo`, which predicts clips with these weights."""

import argparse
import shlex
import sys
from pathlib import Path

from cvae_lab.runs.commands import Add, add_parameters, log_line, values


def add_commands(add: Add) -> None:
    pretrain = add(
        "pretrain", "train initial weights on synthetic recordings with different people and rooms",
        "--out weights.safetensors --minutes 30", "--out tiny.safetensors --minutes 0.1 --recordings 4",
    )  # fmt: skip
    text = "file for the weights (.safetensors); a JSON record is written to the same folder; required, no default"
    pretrain.add_argument("--out", type=Path, required=True, metavar="FILE", help=text)
    pretrain.add_argument(
        "--minutes", type=float, default=30.0, help="training time in minutes, without the time for rendering"
    )
    pretrain.add_argument("--device", default="auto", help="auto, cpu, mps, cuda, or one GPU such as cuda:1")
    pretrain.add_argument(
        "--height", type=int, default=32, choices=(32, 64, 128), help="height of frames in pixels"
    )
    pretrain.add_argument("--recordings", type=int, default=400, help="number of training recordings")
    pretrain.add_argument("--seed", type=int, default=0, help="seed of initial weights and training clips")
    add_parameters(pretrain)

    demo = add(
        "demo", "predict the test clips of `small` with the pretrained weights, without training",
        "", "--out runs/demo --height 64",
    )  # fmt: skip
    demo.add_argument("--out", type=Path, default=Path("runs/demo"), help="folder of the player and the GIF")
    demo.add_argument("--height", type=int, default=32, choices=(32, 64), help="height of frames in pixels")


def pretrain(options: argparse.Namespace) -> None:
    from cvae_lab.runs.pretraining import pretrain as train

    params = {"device": options.device} | values(options.params, ("data", "height", "minutes", "seed"))
    command = shlex.join(["cvae-lab", *sys.argv[1:]]).replace(str(options.out), options.out.name)
    record = train(
        options.out, options.minutes, options.height, options.recordings, options.seed, params, command, log_line
    )  # fmt: skip
    for name, scores in record["scores"].items():
        print(f"{name}: {scores['psnr']:.2f} dB; static baseline {scores['baseline_static']:.2f} dB")
    print(f"Wrote {options.out} ({record['bytes']} bytes) and {options.out.with_suffix('.json')}.")


def demo(options: argparse.Namespace) -> None:
    from cvae_lab.runs.pretraining import demo as show

    prediction, baseline = show(options.out, options.height)
    print(f"PSNR of the prediction: {prediction:.2f} dB (mean over all frames of the test clips of `small`)")
    print(f"Static baseline (repeats the first frame): {baseline:.2f} dB")
    print(f"Wrote {options.out / 'predictions.gif'}.")
    print(f"Open in a browser: {(options.out / 'player.html').resolve()}")
