"""Write a template of the lab report: figures and tables of finished runs, and questions that the student answers.

The sections have the order of the assignment. The HTML page needs no other file and no network. The notebook has the
same sections, with code that draws the figures from the run folders.
"""

import base64
import html
import io
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from cvae_lab.data.files import replacing, write_text
from cvae_lab.runs.folder import RunFolder
from cvae_lab.runs.tables import STUDY, by_variant, markdown, runs_table
from cvae_lab.views import figures


@dataclass(frozen=True)
class Section:
    """One section of the report: title, tasks for the student, and the notebook cell that draws its figure."""

    title: str
    prompts: tuple[str, ...]
    cell: str = ""


SECTIONS = (
    Section("Derivation of the objective", (
        "Start from log p(x_1:T | p_1:T, x_0) and derive the lower bound that you minimise.",
        "Explain why the bound contains a KL divergence of two Gaussians, and give its closed form.",
    )),
    Section("Training and test protocol", (
        "Name the inputs of the posterior, the decoder and the generator at step t of training.",
        "Explain what is different at test time, and why the posterior is not used there.",
    ), "runs_table(runs)[list(PROTOCOL)]"),
    Section("Reparameterisation", (
        "Explain why z is written as mu + exp(logvar / 2) * eps.",
        "Show your code, and explain what would happen without it.",
    )),
    Section("Teacher forcing", (
        "Explain how you set the teacher-forcing ratio.",
        "Compare the training loss with the ratio, and explain what the loss does not show.",
    ), "figures.histories(histories, ('tf_ratio', 'loss', 'heldout_psnr'))"),
    Section("KL annealing", (
        "Name the strategies that you compared, with their parameters.",
        "Explain the loss curves. Are the differences larger than those between seeds?",
    ), "figures.histories(histories, ('beta', 'kl_nats', 'loss'))"),
    Section("PSNR per frame", (
        "Describe which frames are predicted well and which are not.",
        "Compare the prediction with the static baseline, which repeats the first frame.",
    ), "figures.psnr_per_frame(curves, baselines)"),
    Section("Predicted video", (
        "Describe what is right and what is wrong in the predicted frames.",
    )),
)  # fmt: skip
PROTOCOL = ("run", "preset", "strategy", "tf_strategy", "epochs", "minutes", "parameters", "seed", "data")


def write_report(runs: Sequence[RunFolder], out: Path) -> list[Path]:
    """Write the report of these runs as HTML to `out`, and as a notebook in the same folder; return both files.

    The figure of PSNR per frame shows the first clip of every run whose true frames are known. The predicted video is
    that of the run with the best held-out score.
    """
    best = max(runs, key=lambda run: run.result["heldout_psnr"])
    parts = [_section_html(section, runs, best) for section in SECTIONS]
    table = markdown(runs_table(runs), STUDY)
    page = PAGE.format(
        style=STYLE, table=_table_html(table), sections="\n".join(parts), runs=", ".join(_names(runs)),
        command=html.escape(best.result["command"]), commit=html.escape(str(best.result.get("commit", ""))),
        hardware=html.escape(str(best.result.get("hardware", ""))),
    )  # fmt: skip
    out.parent.mkdir(parents=True, exist_ok=True)
    write_text(out, page)
    notebook = out.with_suffix(".ipynb")
    with replacing(notebook) as temporary:
        nbformat.write(report_notebook(runs, out.parent), temporary)
    return [out, notebook]


def report_notebook(runs: Sequence[RunFolder], folder: Path) -> nbformat.NotebookNode:
    """Return the report as a notebook whose cells draw the figures from the run folders.

    The paths of the runs are relative to the folder of the notebook, which is the working directory in Jupyter.
    """
    paths = [Path(os.path.relpath(run.path, folder)).as_posix() for run in runs]
    setup = (
        "from pathlib import Path\n\nfrom cvae_lab.runs.folder import RunFolder\n"
        "from cvae_lab.runs.tables import runs_table\n"
        "from cvae_lab.teaching.report import PROTOCOL, psnr_curves, run_names\n"
        "from cvae_lab.views import figures\n\n"
        f"runs = [RunFolder(Path(path)) for path in {paths!r}]\n"
        "histories = dict(zip(run_names(runs), (run.history for run in runs), strict=True))\n"
        "curves, baselines = psnr_curves(runs)"
    )
    cells = [nbformat.v4.new_markdown_cell("# Lab 4 report"), nbformat.v4.new_code_cell(setup)]
    for section in SECTIONS:
        prompts = "\n".join(f"- *{prompt}*" for prompt in section.prompts)
        cells.append(nbformat.v4.new_markdown_cell(f"## {section.title}\n\n{prompts}"))
        if section.cell:
            cells.append(nbformat.v4.new_code_cell(section.cell))
    kernel = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}
    return nbformat.v4.new_notebook(cells=cells, metadata=kernel)


def run_names(runs: Sequence[RunFolder]) -> list[str]:
    """Return the names of the run folders. If names are equal, the parent folder is added in front."""
    names = [run.path.name for run in runs]
    return [
        f"{run.path.parent.name}/{name}" if names.count(name) > 1 else name
        for run, name in zip(runs, names, strict=True)
    ]


def psnr_curves(runs: Sequence[RunFolder]) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Return PSNR per frame (dB) of the first scored test clip by run, and the static baseline of that clip."""
    curves, baselines = {}, {}
    for name, run in zip(run_names(runs), runs, strict=True):
        scored = run.psnr
        tests = [clip for clip in scored["clip"].unique() if not clip.startswith("val")]
        clip = (tests or list(scored["clip"].unique()))[0]
        rows = scored[scored["clip"] == clip]
        curves[name] = rows["psnr"].to_numpy()
        baselines = {f"static baseline, clip {clip}": rows["baseline_static"].to_numpy()}
    return curves, baselines


def _section_html(section: Section, runs: Sequence[RunFolder], best: RunFolder) -> str:
    prompts = "".join(f"<li>{html.escape(prompt)}</li>" for prompt in section.prompts)
    body = f'<h2>{section.title}</h2><ul class="prompts">{prompts}</ul><p class="answer" contenteditable></p>'
    return body + EVIDENCE.get(section.title, _nothing)(runs, best)


def _protocol(runs: Sequence[RunFolder], best: RunFolder) -> str:
    table = runs_table(runs)[list(PROTOCOL)]
    return table.round(2).to_html(index=False, border=0) + _download(table, "protocol.csv")


def _history(runs: Sequence[RunFolder], columns: Sequence[str], title: str, name: str) -> str:
    histories = dict(zip(run_names(runs), (run.history for run in runs), strict=True))
    data = pd.concat([history[["epoch", *columns]].assign(run=run) for run, history in histories.items()])
    return _figure(figures.histories(histories, columns), title) + _download(data, name)


def _teacher_forcing(runs: Sequence[RunFolder], best: RunFolder) -> str:
    return _history(runs, ("tf_ratio", "loss", "heldout_psnr"), "Teacher forcing", "teacher_forcing.csv")


def _annealing(runs: Sequence[RunFolder], best: RunFolder) -> str:
    scores = _download(by_variant(runs_table(runs)), "scores.csv")
    return _history(runs, ("beta", "kl_nats", "loss"), "KL annealing", "kl_annealing.csv") + scores


def _psnr(runs: Sequence[RunFolder], best: RunFolder) -> str:
    curves, baselines = psnr_curves(runs)
    data = pd.DataFrame({name: pd.Series(values) for name, values in (curves | baselines).items()})
    data.index = pd.RangeIndex(1, len(data) + 1, name="frame")
    figure = _figure(figures.psnr_per_frame(curves, baselines), "PSNR per frame")
    return figure + _download(data, "psnr_per_frame.csv")


def _video(runs: Sequence[RunFolder], run: RunFolder) -> str:
    """Return the GIF and the player of a run as HTML, or a sentence if both are missing."""
    gif, player = run.path / "predictions.gif", run.path / "player.html"
    parts = []
    if gif.exists():
        data = base64.b64encode(gif.read_bytes()).decode()
        text = f"Predicted test clips of {html.escape(run.path.name)}: label, true frame, prediction"
        parts.append(f'<img src="data:image/gif;base64,{data}" alt="{text}"><p>{text}.</p>')
    if player.exists():
        page = html.escape(player.read_text(encoding="utf-8"), quote=True)
        parts.append(f'<iframe title="player" sandbox="allow-scripts" srcdoc="{page}"></iframe>')
    return (
        "".join(parts)
        or "<p>This run folder has no predictions.gif. Use the original run folder instead of an exported copy.</p>"
    )


def _figure(figure: Figure, title: str) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg")
    data = base64.b64encode(buffer.getvalue()).decode()
    return f'<img src="data:image/svg+xml;base64,{data}" alt="{html.escape(title)}: curves of all runs">'


def _download(table: pd.DataFrame, name: str) -> str:
    text = table.to_csv(index=bool(table.index.name), float_format="%.6g")
    data = base64.b64encode(text.encode()).decode()
    return f'<p><a download="{name}" href="data:text/csv;base64,{data}">{name}</a></p>'


def _table_html(text: str) -> str:
    rows = [line.strip("|").split("|") for line in text.splitlines() if not line.startswith("|---")]
    cells = ["".join(f"<td>{html.escape(cell.strip())}</td>" for cell in row) for row in rows]
    return f"<table>{''.join(f'<tr>{row}</tr>' for row in cells)}</table>"


def _names(runs: Sequence[RunFolder]) -> list[str]:
    return [html.escape(name) for name in run_names(runs)]


def _nothing(runs: Sequence[RunFolder], best: RunFolder) -> str:
    return ""


EVIDENCE = {
    "Training and test protocol": _protocol,
    "Teacher forcing": _teacher_forcing,
    "KL annealing": _annealing,
    "PSNR per frame": _psnr,
    "Predicted video": _video,
}
"""For each section, the function that returns its figures and tables as HTML."""

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
img, iframe { max-width: 100%; } iframe { width: 100%; height: 34rem; border: 0; }
td, th { padding: 0.2rem 0.8rem; text-align: right; border-bottom: 1px solid #8884; }
td:first-child { text-align: left; }
.prompts { color: #777; } .answer { min-height: 6rem; border-left: 3px solid #0072B2; padding-left: 1rem; }
"""
PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Lab 4 report</title><style>{style}</style></head><body>
<h1>Lab 4: pose-conditioned video prediction</h1>
<p>Runs: {runs}. Best run by held-out score: <code>{command}</code>, on {hardware}, commit {commit}.</p>
{table}
<p>The grey lines are your tasks. Click into the space below them to type your text. Print the page to keep it.</p>
{sections}
</body></html>
"""
