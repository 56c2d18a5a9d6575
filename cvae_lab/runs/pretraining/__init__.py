"""The commands that make the pretrained weights and show what they predict."""

import argparse
import shlex
import sys


def pretrain(options: argparse.Namespace) -> None:
    """Train on `varied`, write the weights and their record, and print the scores."""
    from cvae_lab.runs.commands import values
    from cvae_lab.runs.pretraining.weights import pretrain as train

    params = {"device": options.device} | values(options.params, ("data", "height", "minutes", "seed"))
    command = shlex.join(["cvae-lab", *sys.argv[1:]]).replace(str(options.out), options.out.name)
    record = train(
        options.out, options.minutes, options.height, options.recordings, options.seed, params, command
    )
    for name, scores in record["scores"].items():
        print(f"{name}: {scores['psnr']:.2f} dB; static baseline {scores['baseline_static']:.2f} dB")
    print(f"Wrote {options.out} ({record['bytes']} bytes) and {options.out.with_suffix('.json')}.")
