"""Execute a committed notebook in place. The written file depends on the notebook's code only, not on this machine.

Widget views are replaced by pictures, because their ids change in every run and are invalid after the run. The
metadata is equal to that of JupyterLab, so opening the file does not change it.
"""

import base64
import html
import io
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode
from PIL import Image, ImageChops

from cvae_lab.runs.sweep import QUIET_KERNEL

VIEW = "application/vnd.jupyter.widget-view+json"
LARGE = 60_000  # bytes of a PNG


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
                without_view(output, client.widget_state)
            elif "image/png" in output.get("data", {}):
                output.data["image/png"] = squeezed(output.data["image/png"])
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"},
        # The kernel provides this value, and JupyterLab stores it in the same form.
        "language_info": notebook.metadata["language_info"],
    }
    temporary = path.with_suffix(".tmp")
    nbformat.write(notebook, temporary)
    temporary.replace(path)


def without_view(output: NotebookNode, widgets: dict) -> None:
    """Remove the widget view from an output. If the widget contains no picture, Chromium draws its HTML.

    `strict_nbval` compares only the text of the output, because nbval compares neither PNGs nor widget views.
    """
    view = output.data.pop(VIEW)
    if "image/png" not in output.data:
        drawings = drawings_of(view["model_id"], widgets)
        output.data["image/png"] = screenshot(
            "".join(drawings) + f"<p><em>{output.data['text/plain']}</em></p>"
        )
        output.metadata["image/png"] = {"alt": text_of(drawings)}


def drawings_of(model_id: str, widgets: dict) -> list[str]:
    """Return the values of all HTML widgets inside a widget, in order."""
    state = widgets.get(model_id, {})
    if state.get("_model_name") == "HTMLModel":
        return [state["value"]]
    children = [child.removeprefix("IPY_MODEL_") for child in state.get("children", [])]
    return [drawing for child in children for drawing in drawings_of(child, widgets)]


def text_of(drawings: list[str]) -> str:
    """Return the text of drawings and the names of their SVGs, as alternative text of a picture."""
    names = [
        html.unescape(name) for d in drawings for name in re.findall(r'<svg[^>]*aria-label="([^"]*)"', d)
    ]
    lines = re.sub(
        r"<(br|div)[^>]*>", "\n", re.sub(r"<text.*?</text>", "", "\n".join(drawings), flags=re.DOTALL)
    )
    texts = [html.unescape(re.sub(r"<[^>]+>", "", line)).strip(" ▮") for line in lines.splitlines()]
    return "; ".join(part for part in [*names, *texts] if part)


def screenshot(body: str) -> str:
    """Draw HTML in headless Chromium, 660 pixels wide, without empty borders. Return a PNG in base64."""
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if chromium is None:
        raise FileNotFoundError(
            "Chromium draws the pictures of sliders and is not installed: install chromium."
        )
    style = (
        "body { margin: 8px; width: 644px; font: 14px/1.5 sans-serif; background: white } p { margin: 6px 0 }"
    )
    with tempfile.TemporaryDirectory() as folder:
        page, picture = Path(folder) / "page.html", Path(folder) / "page.png"
        page.write_text(f"<!doctype html><meta charset=utf-8><style>{style}</style>{body}", encoding="utf-8")
        command = [chromium, "--headless", "--no-sandbox", "--hide-scrollbars", "--window-size=660,1200"]
        command += [f"--user-data-dir={folder}/profile", f"--screenshot={picture}", page.as_uri()]
        subprocess.run(command, check=True, capture_output=True, timeout=120)
        image = Image.open(picture).convert("RGB")
    right, bottom = ImageChops.difference(image, Image.new("RGB", image.size, "white")).getbbox()[2:]
    small = io.BytesIO()
    image.crop((0, 0, right + 8, bottom + 8)).quantize(256, dither=Image.Dither.NONE).save(
        small, "png", optimize=True
    )
    return base64.b64encode(small.getvalue()).decode()


def squeezed(png: str) -> str:
    """Return the same picture as an opaque PNG with the best compression. The file is about 12 % smaller.

    A PNG of more than LARGE bytes gets 256 colours, which halves its size. A GIF that is stored with the type of a PNG
    is not changed, because it may be animated.
    """
    small, picture = io.BytesIO(), Image.open(io.BytesIO(base64.b64decode(png)))
    if picture.format != "PNG":
        return png
    picture = picture.convert("RGB")
    picture.save(small, "png", optimize=True)
    if small.tell() > LARGE:
        small = io.BytesIO()
        picture.quantize(256, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE).save(
            small, "png", optimize=True
        )
    return base64.b64encode(small.getvalue()).decode()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
