"""Execute a committed notebook in place. The written file depends on the notebook's code only, not on this machine.

Widget views are replaced by static content, because their ids change in every run and are invalid after it. The
metadata is equal to that of JupyterLab, so opening the file does not change it.
"""

import base64
import html
import io
import os
import re
import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from PIL import Image

from cvae_lab.runs.sweep import QUIET_KERNEL

VIEW = "application/vnd.jupyter.widget-view+json"
INVITATION = "Run this cell for the interactive version."
SVG_NAMESPACE = 'xmlns="http://www.w3.org/2000/svg"'


def main(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    client = NotebookClient(
        notebook, timeout=900, kernel_name="python3", extra_arguments=QUIET_KERNEL,
        resources={"metadata": {"path": str(path.parent)}},
    )  # fmt: skip
    client.execute()
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        for output in cell.get("outputs", []):
            if VIEW in output.get("data", {}):
                output.data = without_view(output.data, client.widget_state)
            if "image/png" in output.get("data", {}):
                output.data["image/png"] = squeezed(output.data["image/png"])
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"},
        # The kernel provides this value, and JupyterLab stores it in the same form.
        "language_info": notebook.metadata["language_info"],
    }
    temporary = path.with_suffix(".tmp")
    nbformat.write(notebook, temporary)
    temporary.replace(path)


def without_view(data: dict, widgets: dict) -> dict:
    """Return the data of an output without its widget view.

    If the widget has no static HTML, its drawings are added as HTML.
    """
    data = dict(data)
    view = data.pop(VIEW)
    if "text/html" not in data:
        drawings = "".join(map(pictured, drawings_of(view["model_id"], widgets)))
        data |= {"text/html": f"<div>{drawings}<p><em>{INVITATION}</em></p></div>", "text/plain": INVITATION}
    return data


def drawings_of(model_id: str, widgets: dict) -> list[str]:
    """Return the values of all HTML widgets inside a widget, in order."""
    state = widgets.get(model_id, {})
    if state.get("_model_name") == "HTMLModel":
        return [state["value"]]
    children = [child.removeprefix("IPY_MODEL_") for child in state.get("children", [])]
    return [drawing for child in children for drawing in drawings_of(child, widgets)]


def pictured(drawing: str) -> str:
    """Return the HTML with its SVG drawings converted to images, because an untrusted notebook removes inline SVG."""

    def image(match: re.Match) -> str:
        svg = match[0] if "xmlns=" in match[0] else match[0].replace("<svg", f"<svg {SVG_NAMESPACE}", 1)
        svg = svg.replace("<svg", '<svg style="background: white"', 1) if "style=" not in svg else svg
        label = re.search(r'aria-label="([^"]*)"', svg)
        alt = html.escape(html.unescape(label[1])) if label else "drawing"
        size = re.search(r'viewBox="\S+ \S+ (\S+) ', svg)
        width = f'width="{size[1]}" ' if size else ""
        return f'<img alt="{alt}" {width}src="data:image/svg+xml;base64,{base64.b64encode(svg.encode()).decode()}">'

    return re.sub(r"<svg.*?</svg>", image, drawing, flags=re.DOTALL)


def squeezed(png: str) -> str:
    """Return the same picture as an opaque PNG with the best compression. The file is about 12 % smaller."""
    small = io.BytesIO()
    Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB").save(small, "png", optimize=True)
    return base64.b64encode(small.getvalue()).decode()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
