"""Commands that write, check and describe data, and the command `params`."""

import argparse
import textwrap
from pathlib import Path

from cvae_lab.runs.commands import DATA, Add


def add_commands(add: Add) -> None:
    synthetic = add(
        "synthetic", "write the synthetic data set with the folder layout of the course data",
        "data/small", "data/tiny --size tiny --seed 1", aliases=["stage"],
    )  # fmt: skip
    synthetic.add_argument("out", type=Path, metavar="OUT", help="an empty or new folder")
    sizes = ["tiny", "small", "full", "varied"]
    synthetic.add_argument("--size", choices=sizes, default="small", help="number of frames")
    synthetic.add_argument("--seed", type=int, default=0, help="seed of figure, scene and motion")
    heights = (32, 64, 128)
    text = "frame height in pixels; the width is twice the height"
    synthetic.add_argument("--height", type=int, choices=heights, default=32, help=text)

    about = "report the content of a data folder, or the reason why the folder cannot be used"
    check = add("check", about, "data/LAB4_Dataset", "tiny")
    check.add_argument("data", metavar="DATA", help=DATA)
    text = f"{text}; default: height of the pictures, or 32 if that height is not supported"
    check.add_argument("--height", type=int, choices=heights, help=text)

    params = add(
        "params", "list the parameters that -p sets, with type, range, default and meaning",
        "", "lr epochs kl_strategy",
    )  # fmt: skip
    params.add_argument("names", nargs="*", metavar="NAME", help="names of parameters; default: all")


def synthetic(options: argparse.Namespace) -> None:
    from cvae_lab.data import load, write_folder

    write_folder(load(options.size, options.seed, height=options.height), options.out)
    size = f"{options.height} x {2 * options.height} pixels"
    print(f"Wrote the synthetic data set ({options.size}, seed {options.seed}, {size}) to {options.out}.")


def check(options: argparse.Namespace) -> None:
    from cvae_lab.data import load
    from cvae_lab.data.check import report
    from cvae_lab.data.video.report import read_report

    table = report(load(options.data, height=options.height))
    print(table.to_string(index=False, float_format="%.2f", na_rep="-"))
    print("\nstatic, copy_previous, mean_frame: mean PSNR (dB) of three predictions without a model.")
    if video_report := read_report(options.data):
        print("\nThis data set was made from a video:", *video_report.lines, sep="\n")


def params(options: argparse.Namespace) -> None:
    """Print the parameters of `config` as text of 80 columns. Raises ValueError for an unknown name."""
    from cvae_lab.config import PROTOCOL, parameters

    found = [p._replace(name="preset") if p.name == "name" else p for p in parameters()]
    found.insert(1, PROTOCOL)
    if unknown := sorted(set(options.names) - {p.name for p in found}):
        raise ValueError(f"There is no parameter {unknown[0]!r}; `cvae-lab params` lists all parameters.")
    for p in found:
        if not options.names or p.name in options.names:
            default = '""' if p.default == "" else str(p.default)
            limits = " | ".join(map(str, p.choices)) or f"{p.kind}{f', {p.range}' if p.range else ''}"
            print(f"{p.name}: {limits}; default {default}")
            print(textwrap.fill(p.meaning, 78, initial_indent="    ", subsequent_indent="    "))
