"""Commands that compare finished runs: `diagnose` and `compare`."""

import argparse
from pathlib import Path

from cvae_lab.runs.commands import Add, log_line


def add_commands(add: Add) -> None:
    about = "diagnose the latent of each finished run"
    diagnose = add("diagnose", about, "runs/first --out latent.csv")
    diagnose.add_argument("runs", type=Path, metavar="RUNS", help="a folder of runs")
    diagnose.add_argument("--out", type=Path, help="also write the numbers as CSV; default: print only")

    compare = add(
        "compare", "print a table of finished runs and draw figures of it",
        "runs/first", "runs/ablation --csv figures/studies/ablation.csv",
    )  # fmt: skip
    compare.add_argument(
        "runs", type=Path, metavar="RUNS", help="a folder of runs, or a CSV table that --csv wrote"
    )
    instead = compare.add_mutually_exclusive_group()
    pictures = "default: draw pictures"
    instead.add_argument("--into", type=Path, metavar="FILE", help=f"write to this Markdown file; {pictures}")
    instead.add_argument("--csv", type=Path, metavar="FILE", help=f"write a CSV, one row per run; {pictures}")


def diagnose(options: argparse.Namespace) -> None:
    from cvae_lab.runs.folder import find_runs
    from cvae_lab.runs.tables import latent_rows, write_csv

    rows = []
    for name, summary, row in latent_rows(find_runs(options.runs)):
        log_line(f"{name}: {summary}")
        rows.append(row)
        if options.out:  # after each run, so that an interrupted command has written the finished rows
            write_csv(options.out, rows)
    if options.out:
        print(f"Wrote {options.out}.")


def compare(options: argparse.Namespace) -> None:
    import pandas as pd

    from cvae_lab.runs import tables
    from cvae_lab.runs.folder import find_runs

    if options.runs.suffix == ".csv":
        if options.csv:
            raise ValueError(f"{options.runs} is already a table; use --csv only with a folder of runs.")
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
