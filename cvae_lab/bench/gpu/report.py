"""The result of `cvae-lab bench --gpu` as text and Markdown, and the project's targets on a GPU."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

EPOCH_FRAMES = 23_410  # number of training frames in the assignment's data


def read_gpu(file: Path) -> dict[str, Any]:
    """Return a file of `bench --gpu`: hardware, versions, commit, and the measured rows under the key `rows`."""
    return json.loads(file.read_text())


def gpu_table(rows: Sequence[dict[str, Any]], with_targets: bool = True) -> list[str]:
    """Return the rows of `bench --gpu` as lines of text: checks, speeds, scores, targets and missing parts."""
    lines = [
        f"{'passed' if r['passed'] else 'FAILED':8}{r['check']}" for r in rows if r.get("passed") is not None
    ]
    if any("ours" in row for row in rows):
        lines += [
            "",
            f"{'frames/s':44} {'reference':>10} {'ours':>10} {'ratio':>7} {'matmul':>6} {'copy':>5} {'MiB':>7}",
        ]
    for row in rows:
        if "ours" in row:
            name = f"{row['model']}, {row['what']}, {_size(row, short=True)}"
            values = f"{_cell(row, 'reference', '.1f'):>10} {row['ours']:10.1f} {_cell(row, 'ratio', '.1f', 'x'):>7}"
            fractions = f"{_cell(row, 'of_matmul', '.0%'):>6} {_cell(row, 'of_copy', '.0%'):>5}"
            lines.append(f"{name:44} {values} {fractions} {row['ours_mib']:7.0f}")
    scores = [row for row in rows if "psnr_db" in row]
    if scores:
        lines += ["", "PSNR on the test clips, dB (mean over all frames, weights of the last step)"]
    lines += [f"{r['model']:24} {r['minutes']:g} min on {r['data']}: {r['psnr_db']:.2f}" for r in scores]
    if missing := _missing(rows):
        lines += ["", "Not measured; repeat with --only PART and a larger --budget:", *missing]
    return [*lines, "", *(targets(rows) if with_targets else ())]


def _cell(row: dict[str, Any], key: str, format_spec: str, unit: str = "") -> str:
    """Return a value as text, or a dash if it was not measured."""
    return f"{row[key]:{format_spec}}{unit}" if key in row else "-"


def targets(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Return one line for each of the project's GPU targets: the measured value, and whether the target is reached."""
    found = []
    mine = [row for row in rows if row.get("model") == "handout" and "ours" in row]
    trained = [row for row in mine if row["what"] == "training"]
    for row in trained:
        if row["batch"] == 2 and "ratio" in row:
            what = f"training is {row['ratio']:.1f} times as fast as the reference loop"
            where = f"batch size 2, teacher-forcing ratio {row['forcing']:g}"
            found.append(_target(what, where, row["ratio"] >= 10, "10 times"))
    if epochs := {row["batch"]: EPOCH_FRAMES / row["ours"] for row in trained if row["forcing"] == 0}:
        batch = min(epochs, key=epochs.__getitem__)
        what = f"an epoch of {EPOCH_FRAMES:,} frames takes {epochs[batch]:.1f} s"
        where = f"batch size {batch}, teacher-forcing ratio 0"
        found.append(_target(what, where, epochs[batch] <= 10, "10 s"))
    if values := [row["ours_s"] for row in mine if row["what"] == "rollout" and row["streams"] == 6]:
        what = f"the prediction of 6 clips takes {min(values):.1f} s"
        found.append(_target(what, "629 frames per clip", min(values) <= 2, "2 s"))
    return found


def _target(what: str, where: str, reached: bool, target: str) -> str:
    return f"Preset handout: {what} ({where}). The target of {target} is {'reached' if reached else 'not reached'}."


def speeds(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return one row per timed case: network, size, frames/s of both paths, their ratio, and MiB."""
    return [
        {
            "network": row["model"], "what": row["what"], "size": _size(row),
            "reference": row.get("reference", float("nan")), "ours": row["ours"],
            "ratio": row.get("ratio", float("nan")), "ours_mib": row["ours_mib"],
        }
        for row in rows
        if "ours" in row
    ]  # fmt: skip


def passed(rows: Sequence[dict[str, Any]]) -> tuple[int, int]:
    """Return the number of checks that passed, and the number of all checks."""
    results = [row["passed"] for row in rows if row.get("passed") is not None]
    return sum(results), len(results)


def gpu_markdown(record: dict[str, Any]) -> str:
    """Return a file of `bench --gpu` as Markdown: hardware, checks, a table of speeds, targets, and missing parts."""
    rows = record["rows"]
    good, count = passed(rows)
    lines = [
        f"{record['hardware']}, torch {record['torch']}, commit {record['commit']}. {good} of {count} checks passed.",
        "",
        "| network | what | reference loop (frames/s) | fast path (frames/s) | ratio | memory of the fast path (MiB) |",
        "|---|---|---|---|---|---|",
    ]
    for row in (row for row in rows if "ours" in row):
        cells = [row["model"], f"{row['what']}, {_size(row)}", _cell(row, "reference", ",.1f")]
        cells += [f"{row['ours']:,.1f}", _cell(row, "ratio", ".1f"), f"{row['ours_mib']:,.0f}"]
        lines.append(f"| {' | '.join(cells)} |")
    missing = [f"- {line}" for line in _missing(rows)]
    return "\n".join([*lines, "", "Targets:", "", *(f"- {line}" for line in targets(rows)),
                      *(["", "Not measured:", "", *missing] if missing else [])])  # fmt: skip


def _size(row: dict[str, Any], short: bool = False) -> str:
    """Return the size of a timed case in words. `short` is for a table in a terminal."""
    if "batch" in row and short:
        return f"batch {row['batch']}, forcing {row['forcing']:g}"
    if "batch" in row:
        return f"batch size {row['batch']}, teacher-forcing ratio {row['forcing']:g}"
    return f"{row['streams']} {'stream' if row['streams'] == 1 else 'streams'}"


def _missing(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Return one line for each measurement that failed or was skipped, with the reason."""
    lines = []
    for row in (row for row in rows if "error" in row or "skipped" in row):
        size = _size(row) if "batch" in row or "streams" in row else ""
        loop = "reference loop" if "ours" in row else ""  # the fast path is measured first
        name = ", ".join(filter(None, (row.get("model"), row["part"], size, loop)))
        lines.append(f"{name}: {row.get('error') or row['skipped']}")
    return lines
