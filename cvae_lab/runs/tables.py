"""Tables of finished runs, with one row per run or per variant, as text, Markdown or CSV, and pictures."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import pandas as pd

from cvae_lab.data.files import replacing, write_text
from cvae_lab.evaluation.latent_report import latent_row
from cvae_lab.runs.folder import RunFolder, best_run
from cvae_lab.runs.result import SSIM_EVERY, RunError
from cvae_lab.training import checkpoint
from cvae_lab.views import figures

START, END = "<!-- {}: made by `make results` -->", "<!-- end of {} -->"
"""Lines of a Markdown file between which `into_markdown` puts a table."""

ORIGIN = ("commit", "hardware", "python", "torch", "cvae_lab")
"""Columns that should be equal in all rows of a table. A printed table shows those that differ."""

SHOWN = 8  # maximum number of lines in one picture, and of variants in one bar chart


class Column(NamedTuple):
    """A column of a printed table: heading and format of the values."""

    heading: str
    form: str = ""


SMALL_KL = 0.001  # nats per frame; a smaller KL is printed as "< 0.001", because the latent has collapsed

COLUMNS = {
    "variant": Column("run"),
    "preset": Column("preset"),
    "seeds": Column("seeds", "d"),
    "heldout": Column("held-out (dB)", ".2f"),
    "psnr_mean": Column("PSNR (dB)", ".2f"),
    "psnr_final": Column("PSNR of final weights (dB)", ".2f"),
    "worst_clip": Column("worst clip (dB)", ".2f"),
    "baseline_static": Column("static baseline (dB)", ".2f"),
    "ssim_mean": Column("SSIM" if SSIM_EVERY == 1 else f"SSIM (every {SSIM_EVERY}th frame)", ".3f"),
    "kl_nats": Column("KL (nats/frame)", ".3g"),
    "parameters": Column("parameters", ",d"),
    "minutes": Column("minutes", ".1f"),
}
"""Printed columns of `by_variant`, in order. The standard deviation is printed after `psnr_mean`."""

RESULTS = (
    "variant",
    "preset",
    "seeds",
    "psnr_mean",
    "psnr_final",
    "baseline_static",
    "ssim_mean",
    "kl_nats",
    "minutes",
)
STUDY = (
    "variant", "seeds", "heldout", "psnr_mean", "psnr_final", "worst_clip", "baseline_static", "ssim_mean",
    "parameters", "minutes",
)  # fmt: skip


def run_row(run: RunFolder) -> dict[str, Any]:
    """Return one run as a row of a table: variant, seed, result, hardware and commit."""
    result = dict(run.result)
    by_clip = result.pop("psnr_by_clip")
    tests = [value for name, value in by_clip.items() if not name.startswith("val")]
    clips = {f"clip {name}": value for name, value in by_clip.items()}
    worst = min(tests, default=float("nan"))
    return {"run": run.path.name, "variant": variant(run), **result, "psnr_worst_clip": worst, **clips}


def variant(run: RunFolder) -> str:
    """Return the name of the run folder without the seed. Runs of one variant differ only in their seed."""
    return run.path.name.rpartition("-seed")[0] or run.path.name


def runs_table(runs: Sequence[RunFolder]) -> pd.DataFrame:
    """Return one row per run, sorted by mean PSNR, the best first. The columns are listed in `run_row`."""
    table = pd.DataFrame([run_row(run) for run in runs])
    return table.sort_values("psnr_mean", ascending=False, ignore_index=True)


def latent_rows(runs: Sequence[RunFolder]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Diagnose the latent of each run; yield the name of the run, a summary and a row of the table of diagnoses."""
    for run in runs:
        row = latent_row(checkpoint.load_model(run.path / "best.pt"), run.config.data)
        summary = row.pop("summary")
        origin = {name: run.result[name] for name in ("psnr_mean", "hardware", "python", "torch", "commit")}
        yield run.path.name, summary, {"run": run.path.name, **row, **origin}


def by_variant(table: pd.DataFrame) -> pd.DataFrame:
    """Return one row per variant, sorted by held-out score, the best first.

    Values are means over seeds, and standard deviations have the suffix `_std`.

    Args:
        table: a table from `runs_table`, or read from a file of `write_csv`. Raises RunError if a column is missing.
    """
    if missing := {"variant", "seed", "heldout_psnr", "psnr_worst_clip", "scored_on"} - set(table):
        raise RunError(
            f"the table has no column {min(missing)}; give a table that `cvae-lab compare RUNS --csv FILE` wrote."
        )
    table = table.assign(psnr_final=table.get("psnr_final", float("nan")))
    groups = table.groupby("variant", as_index=False, sort=False)
    rows = groups.agg(
        preset=("preset", "first"), strategy=("strategy", "first"), seeds=("seed", "nunique"),
        heldout=("heldout_psnr", "mean"), heldout_std=("heldout_psnr", "std"),
        psnr_mean=("psnr_mean", "mean"), psnr_std=("psnr_mean", "std"), psnr_final=("psnr_final", "mean"),
        worst_clip=("psnr_worst_clip", "mean"), baseline_static=("baseline_static", "mean"),
        ssim_mean=("ssim_mean", "mean"), kl_nats=("kl_nats", "mean"), parameters=("parameters", "first"),
        minutes=("minutes", "mean"), grade=("grade", "mean"), scored_on=("scored_on", "first"),
        **{name: (name, _joined) for name in ORIGIN if name in table},
    )  # fmt: skip
    return rows.sort_values("heldout", ascending=False, ignore_index=True)


def _joined(values: pd.Series) -> str:
    return ", ".join(sorted(set(values.fillna("?").astype(str))))


def different_origins(table: pd.DataFrame) -> list[str]:
    """Return the columns of ORIGIN in which the rows differ. Such rows may not be comparable."""
    return [name for name in ORIGIN if name in table and table[name].fillna("?").nunique() > 1]


def markdown(table: pd.DataFrame, columns: Sequence[str]) -> str:
    """Return `by_variant(table)` as a Markdown table with these columns; `±` is one standard deviation over seeds.

    Columns without a value are left out. Columns of ORIGIN in which the rows differ are added, so that every printed
    table shows differences in commit, hardware and library versions.
    """
    rows = by_variant(table)
    columns = [*(name for name in columns if rows[name].notna().any()), *different_origins(table)]
    scored = "/".join(sorted(set(table["scored_on"])))
    names = {"psnr_mean": f"{scored} PSNR (dB)", **{name: name for name in ORIGIN}}
    headings = [names.get(name) or COLUMNS[name].heading for name in columns]
    lines = [f"| {' | '.join(headings)} |", "|" + "---|" * len(columns)]
    lines += [f"| {' | '.join(_cell(row, name) for name in columns)} |" for _, row in rows.iterrows()]
    return "\n".join(lines)


def _cell(row: pd.Series, name: str) -> str:
    text = format(row[name], COLUMNS[name].form) if name in COLUMNS else str(row[name])
    if name == "kl_nats" and row[name] < SMALL_KL:
        text = f"< {SMALL_KL}"
    if name == "psnr_mean" and row["psnr_std"] == row["psnr_std"]:
        text += f" ± {row['psnr_std']:.2f}"
    return text


def terminal(table: pd.DataFrame) -> str:
    """Return a table from `runs_table` as text with units, at most 80 characters wide."""
    heads = ("run", "held-out", "PSNR", "static", "SSIM", "KL", "time", "grade")
    units = ("", "dB", "dB", "dB", "", "nats/frame", "min", "%")
    names = (
        "run",
        "heldout_psnr",
        "psnr_mean",
        "baseline_static",
        "ssim_mean",
        "kl_nats",
        "minutes",
        "grade",
    )
    forms = ("", ".2f", ".2f", ".2f", ".3f", ".2f", ".1f", ".0f")
    widths = (-24, 8, 7, 7, 6, 10, 6, 5)
    lines = [heads, units]
    for row in table.to_dict("records"):
        values = [row[name] for name in names]
        lines.append(["-" if pd.isna(v) else format(v, form) for v, form in zip(values, forms, strict=True)])
    text = "\n".join(
        " ".join(
            f"{cell[:24]:<24}" if width < 0 else f"{cell:>{width}}"
            for cell, width in zip(line, widths, strict=True)
        ).rstrip()
        for line in lines
    )
    scored = "/".join(sorted(set(table["scored_on"])))
    notes = [f"PSNR is the mean over the {scored} clips, without test-time corrections."]
    for name in different_origins(table):
        notes.append(f"These runs differ in {name}: {', '.join(map(str, sorted(set(table[name]))))}.")
    return "\n".join([text, *notes])


def write_csv(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write rows as CSV with four significant digits."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        pd.DataFrame(rows).to_csv(temporary, index=False, float_format="%.4g")


def into_markdown(path: Path, name: str, text: str) -> None:
    """Replace the text between the two markers of this name in a file. Raises RunError if a marker is missing."""
    whole, start, end = path.read_text(), START.format(name), END.format(name)
    if start not in whole or end not in whole:
        raise RunError(
            f"{path} has no lines {start!r} and {end!r}; add these two lines where the table should be."
        )
    before, rest = whole.split(start, 1)
    write_text(path, f"{before}{start}\n{text}\n{end}{rest.split(end, 1)[1]}")


def write_pictures(runs: Sequence[RunFolder], table: pd.DataFrame, out: Path) -> list[Path]:
    """Draw a comparison of the variants and their histories as PNGs in `out`; return the files.

    If there are more than SHOWN runs, each variant is drawn as a band. If there are more than SHOWN variants, only the
    best and the worst by held-out score are drawn. The last file is the GIF of the run with the best held-out score, if
    that run has a GIF.
    """
    rows = by_variant(table)
    if len(rows) > SHOWN:
        rows = pd.concat([rows[: SHOWN // 2], rows[-SHOWN // 2 :]])
    names = {run: variant(run) if len(runs) > SHOWN else _relative(run.path, out) for run in runs}
    drawn = [run for run in runs if variant(run) in set(rows["variant"])]
    histories: dict[str, list[pd.DataFrame]] = {}
    for run in drawn:
        histories.setdefault(names[run], []).append(run.history)
    pictures = {
        "strategies.png": figures.strategy_bars(rows, float(table["baseline_static"].astype(float).mean())),
        "histories.png": figures.histories(histories),
    }
    for name, figure in pictures.items():
        with replacing(out / name) as temporary:
            figure.savefig(temporary, dpi=100)
        plt.close(figure)
    gif = best_run(out).path / "predictions.gif"
    return [out / name for name in pictures] + ([gif] if gif.exists() else [])


def _relative(path: Path, root: Path) -> str:
    return str(path.relative_to(root)) if path != root else path.name
