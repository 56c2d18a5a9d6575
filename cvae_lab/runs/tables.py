"""Tables and pictures over finished runs: one row per run, one row per variant, as text, Markdown or CSV."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from cvae_lab.data.files import replacing, write_text
from cvae_lab.runs.folder import RunError, RunFolder, best_run
from cvae_lab.views import figures

START, END = "<!-- {}: made by `make results` -->", "<!-- end of {} -->"
"""Lines of a Markdown file between which `into_markdown` puts a table."""


class Column(NamedTuple):
    """A column of a printed table: its heading, and the format of its values."""

    heading: str
    form: str = ""


COLUMNS = {
    "variant": Column("run"),
    "preset": Column("preset"),
    "seeds": Column("seeds", "d"),
    "heldout": Column("held-out (dB)", ".2f"),
    "psnr_mean": Column("PSNR (dB)", ".2f"),
    "worst_clip": Column("worst clip (dB)", ".2f"),
    "baseline_static": Column("static baseline (dB)", ".2f"),
    "ssim_mean": Column("SSIM", ".3f"),
    "kl_nats": Column("KL (nats/frame)", ".2g"),
    "parameters": Column("parameters", ",d"),
    "minutes": Column("minutes", ".1f"),
}
"""Columns of `by_variant` as they are printed, in order; `psnr_mean` is followed by its standard deviation."""

RESULTS = ("variant", "preset", "seeds", "psnr_mean", "baseline_static", "ssim_mean", "kl_nats", "minutes")
STUDY = (
    "variant", "seeds", "heldout", "psnr_mean", "worst_clip", "baseline_static", "ssim_mean", "parameters", "minutes",
)  # fmt: skip


def run_row(run: RunFolder) -> dict[str, Any]:
    """Return one run as a row: its variant and seed, its result, hardware and commit."""
    result = dict(run.result)
    by_clip = result.pop("psnr_by_clip")
    tests = [value for name, value in by_clip.items() if not name.startswith("val")]
    clips = {f"clip {name}": value for name, value in by_clip.items()}
    worst = min(tests, default=float("nan"))
    return {"run": run.path.name, "variant": variant(run), **result, "psnr_worst_clip": worst, **clips}


def variant(run: RunFolder) -> str:
    """Return the name of the run's folder without its seed; runs of one variant differ in their seed only."""
    return run.path.name.rpartition("-seed")[0] or run.path.name


def runs_table(runs: Sequence[RunFolder]) -> pd.DataFrame:
    """Return one row per run, best mean PSNR first; columns as in `run_row`."""
    table = pd.DataFrame([run_row(run) for run in runs])
    return table.sort_values("psnr_mean", ascending=False, ignore_index=True)


def by_variant(table: pd.DataFrame) -> pd.DataFrame:
    """Return one row per variant, best held-out score first: means over seeds, and standard deviations (`_std`).

    Args:
        table: as `runs_table` returns it or `write_csv` wrote it. Raises RunError where a column is missing.
    """
    if missing := {"variant", "seed", "heldout_psnr", "psnr_worst_clip", "scored_on"} - set(table):
        raise RunError(
            f"this is not a table of runs as `compare RUNS --csv` writes it: it has no column {min(missing)}."
        )
    groups = table.groupby("variant", as_index=False, sort=False)
    rows = groups.agg(
        preset=("preset", "first"), strategy=("strategy", "first"), seeds=("seed", "nunique"),
        heldout=("heldout_psnr", "mean"), heldout_std=("heldout_psnr", "std"),
        psnr_mean=("psnr_mean", "mean"), psnr_std=("psnr_mean", "std"),
        worst_clip=("psnr_worst_clip", "mean"), baseline_static=("baseline_static", "mean"),
        ssim_mean=("ssim_mean", "mean"), kl_nats=("kl_nats", "mean"), parameters=("parameters", "first"),
        minutes=("minutes", "mean"), grade=("grade", "mean"), scored_on=("scored_on", "first"),
    )  # fmt: skip
    return rows.sort_values("heldout", ascending=False, ignore_index=True)


def markdown(table: pd.DataFrame, columns: Sequence[str]) -> str:
    """Return `by_variant(table)` as a Markdown table with these columns; `±` is one standard deviation over seeds."""
    rows = by_variant(table)
    columns = [
        name for name in columns if rows[name].notna().any()
    ]  # no worst clip where only validation is scored
    scored = "/".join(sorted(set(table["scored_on"])))
    headings = [f"{scored} PSNR (dB)" if name == "psnr_mean" else COLUMNS[name].heading for name in columns]
    lines = [f"| {' | '.join(headings)} |", "|" + "---|" * len(columns)]
    lines += [f"| {' | '.join(_cell(row, name) for name in columns)} |" for _, row in rows.iterrows()]
    return "\n".join(lines)


def _cell(row: pd.Series, name: str) -> str:
    text = format(row[name], COLUMNS[name].form)
    if name == "psnr_mean" and row["psnr_std"] == row["psnr_std"]:
        text += f" ± {row['psnr_std']:.2f}"
    return text


def terminal(table: pd.DataFrame) -> str:
    """Return one line per run for a terminal, at most 80 columns wide, with units."""
    shown = table.assign(run=table["run"].str.slice(0, 24))
    names = {
        "run": "run", "heldout_psnr": "held-out", "psnr_mean": "PSNR", "baseline_static": "static",
        "ssim_mean": "SSIM", "kl_nats": "KL", "minutes": "min", "grade": "grade",
    }  # fmt: skip
    forms = {
        "heldout_psnr": "{:.2f}", "psnr_mean": "{:.2f}", "baseline_static": "{:.2f}", "ssim_mean": "{:.3f}",
        "kl_nats": "{:.2f}", "minutes": "{:.1f}", "grade": "{:.0f}",
    }  # fmt: skip
    text = shown[list(names)].rename(columns=names)
    return text.to_string(
        index=False, formatters={names[name]: form.format for name, form in forms.items()}, na_rep="-"
    )


def write_csv(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write rows as CSV with four significant digits."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        pd.DataFrame(rows).to_csv(temporary, index=False, float_format="%.4g")


def into_markdown(path: Path, name: str, text: str) -> None:
    """Replace the text between the two markers of this name in a file. Raises RunError where they are missing."""
    whole, start, end = path.read_text(), START.format(name), END.format(name)
    if start not in whole or end not in whole:
        raise RunError(f"{path} has no lines {start!r} and {end!r} to put the table between.")
    before, rest = whole.split(start, 1)
    write_text(path, f"{before}{start}\n{text}\n{end}{rest.split(end, 1)[1]}")


def write_pictures(runs: Sequence[RunFolder], table: pd.DataFrame, out: Path) -> list[Path]:
    """Draw the variants side by side and the histories of all runs as PNGs in `out`; return the files.

    The GIF of the best run by held-out score comes last, where it exists.
    """
    histories = {
        str(run.path.relative_to(out)) if run.path != out else run.path.name: run.history for run in runs
    }
    baseline = float(table["baseline_static"].mean())
    pictures = {
        "strategies.png": figures.strategy_bars(by_variant(table), baseline),
        "histories.png": figures.histories(histories),
    }
    for name, figure in pictures.items():
        figure.savefig(out / name, dpi=100)
    gif = best_run(out).path / "predictions.gif"
    return [out / name for name in pictures] + ([gif] if gif.exists() else [])
