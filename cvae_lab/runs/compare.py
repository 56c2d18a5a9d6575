"""Tables and pictures over finished runs."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from cvae_lab.runs.record import RunError, RunFolder
from cvae_lab.views import figures

HEAD = ("strategy", "preset", "tf_strategy", "seed", "psnr_mean", "baseline_static", "ssim_mean")
TAIL = ("kl_nats", "minutes", "grade")
"""Columns of `compare` before and after those of the clips."""
START, END = "<!-- {}: made by `make results` -->", "<!-- end of {} -->"


def compare(runs: Sequence[RunFolder]) -> pd.DataFrame:
    """One row per run: strategy, seed, PSNR mean, static baseline and per clip (dB), KL, minutes, grade.

    Where runs of one strategy differ in more than their seed, `strategy` holds folder names without their seeds:
    no table or picture then takes unlike runs for repeats of each other.
    """
    rows, alike = [], _repeats(runs)
    for run in runs:
        result = run.result
        clips = {f"clip {name}": value for name, value in result["psnr_by_clip"].items()}
        rows.append(
            {name: result[name] for name in HEAD} | clips | {name: result[name] for name in TAIL}
            | {"run": run.path.name}
        )  # fmt: skip
        if not alike:
            rows[-1]["strategy"] = variant(run)
    return pd.DataFrame(rows).sort_values("psnr_mean", ascending=False, ignore_index=True)


def _repeats(runs: Sequence[RunFolder]) -> bool:
    """Whether all runs of one preset and strategy differ in nothing but seed and threads."""
    first: dict[tuple[str, str], RunFolder] = {}
    for run in runs:
        like = first.setdefault((run.result["preset"], run.result["strategy"]), run)
        if like.config.difference(run.config, but=("seed", "threads")):
            return False
    return True


def variant(run: RunFolder) -> str:
    """The run's folder without its seed: what repeats of one setting share."""
    return run.path.name.rpartition("-seed")[0] or run.path.name


def run_row(run: RunFolder) -> dict[str, Any]:
    """A run in one row, for a table of many: its variant and seed, what came out, hardware and commit."""
    result = dict(run.result)
    clips = [value for name, value in result.pop("psnr_by_clip").items() if not name.startswith("val")]
    return {"variant": variant(run), **result, "psnr_worst_clip": min(clips, default=float("nan"))}


def write_table(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Rows as CSV, four significant digits."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    pd.DataFrame(rows).to_csv(temporary, index=False, float_format="%.4g")
    temporary.replace(path)


def summary(table: pd.DataFrame) -> str:
    """The table as text for a terminal, dB to two digits."""
    return table.drop(columns=["preset", "tf_strategy"]).to_string(
        index=False, float_format="%.3g", na_rep="-"
    )


def by_strategy(table: pd.DataFrame) -> pd.DataFrame:
    """Mean and spread (standard deviation over seeds) per preset and strategy, best first."""
    groups = table.groupby(["preset", "strategy"], as_index=False, sort=False)
    rows = groups.agg(
        seeds=("seed", "nunique"), psnr_mean=("psnr_mean", "mean"), psnr_std=("psnr_mean", "std"),
        baseline_static=("baseline_static", "mean"), ssim_mean=("ssim_mean", "mean"),
        kl_nats=("kl_nats", "mean"), minutes=("minutes", "mean"), grade=("grade", "mean"),
    )  # fmt: skip
    return rows.sort_values("psnr_mean", ascending=False, ignore_index=True)


def markdown(table: pd.DataFrame) -> str:
    """`by_strategy` as a Markdown table."""
    head = (
        "| preset | KL strategy | seeds | PSNR (dB) | still picture (dB) | SSIM | KL (nats/frame) | minutes |"
    )
    lines = [head, "|" + "---|" * 8]
    for row in by_strategy(table).itertuples():
        spread = f" ± {row.psnr_std:.2f}" if row.psnr_std == row.psnr_std else ""
        lines.append(
            f"| {row.preset} | {row.strategy} | {row.seeds} | {row.psnr_mean:.2f}{spread} | {row.baseline_static:.2f} "
            f"| {row.ssim_mean:.3f} | {row.kl_nats:.3g} | {row.minutes:.1f} |"
        )
    return "\n".join(lines)


def by_variant(table: pd.DataFrame) -> pd.DataFrame:
    """A study's runs (columns as in `record.run_row`) by variant, best held-out score first; spread over seeds."""
    if missing := {"variant", "seed", "heldout_psnr", "psnr_worst_clip", "scored_on"} - set(table):
        raise RunError(
            f"this is no table of runs as `compare RUNS --csv` writes it: it has no column {min(missing)}."
        )
    groups = table.groupby("variant", as_index=False, sort=False)
    rows = groups.agg(
        seeds=("seed", "nunique"), heldout=("heldout_psnr", "mean"), heldout_std=("heldout_psnr", "std"),
        psnr_mean=("psnr_mean", "mean"), psnr_std=("psnr_mean", "std"),
        worst_clip=("psnr_worst_clip", "mean"), baseline_static=("baseline_static", "mean"),
        ssim_mean=("ssim_mean", "mean"), parameters=("parameters", "first"), minutes=("minutes", "mean"),
    )  # fmt: skip
    return rows.sort_values("heldout", ascending=False, ignore_index=True)


def study_markdown(table: pd.DataFrame) -> str:
    """`by_variant` as a Markdown table; the score's column is named by the clips it was taken on."""
    scored = "/".join(sorted(set(table["scored_on"])))
    several = table["psnr_worst_clip"].notna().any()  # no worst one where validation is all there is to score
    worst = ("worst clip (dB)",) if several else ()
    head = ("variant", "seeds", "held-out (dB)", f"{scored} (dB)", *worst, "still picture (dB)", "SSIM")
    lines = [f"| {' | '.join((*head, 'parameters', 'minutes'))} |", "|" + "---|" * (len(head) + 2)]
    for row in by_variant(table).itertuples():
        spread = f" ± {row.psnr_std:.2f}" if row.psnr_std == row.psnr_std else ""
        worst = f"{row.worst_clip:.2f} | " if several else ""
        lines.append(
            f"| {row.variant} | {row.seeds} | {row.heldout:.2f} | {row.psnr_mean:.2f}{spread} | {worst}"
            f"{row.baseline_static:.2f} | {row.ssim_mean:.3f} | {row.parameters:,} | {row.minutes:.1f} |"
        )
    return "\n".join(lines)


def into_markdown(path: Path, name: str, text: str) -> None:
    """Replace what stands between the two markers of this name in a file. RunError where they are missing."""
    whole, start, end = path.read_text(), START.format(name), END.format(name)
    if start not in whole or end not in whole:
        raise RunError(f"{path} has no lines {start!r} and {end!r} to put the table between.")
    before, rest = whole.split(start, 1)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(f"{before}{start}\n{text}\n{end}{rest.split(end, 1)[1]}")
    temporary.replace(path)


def draw(runs: Sequence[RunFolder], table: pd.DataFrame, out: Path) -> Iterator[Path]:
    """Strategies side by side, and their histories, as PNGs in `out`; then the GIF of the best run."""
    histories = {
        str(run.path.relative_to(out)) if run.path != out else run.path.name: run.history for run in runs
    }
    baseline = float(table["baseline_static"].mean())
    pictures = {
        "strategies.png": figures.strategy_bars(by_strategy(table), baseline),
        "histories.png": figures.histories(histories),
    }
    for name, figure in pictures.items():
        figure.savefig(out / name, dpi=100)
        yield out / name
    best = next(run for run in runs if run.path.name == table["run"].iloc[0])
    if (best.path / "predictions.gif").exists():
        yield best.path / "predictions.gif"
