"""Diagram of the five modules. Connections, shapes and operation counts are recorded in a real training step."""

import textwrap
from contextlib import ExitStack
from dataclasses import dataclass

import matplotlib.pyplot as plt
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, Rectangle
from torch import Tensor, nn
from torch.autograd.graph import Node, get_gradient_edge
from torch.utils.flop_counter import FlopCounterMode

from cvae_lab.models.cvae import CVAE, reparameterise
from cvae_lab.rollout import evaluating
from cvae_lab.views import GREY, PALETTE
from cvae_lab.views.figure_style import STYLE, WIDTH, DescribedFigure, described

INPUTS = ("x_t", "p_t", r"\hat x_{t-1}", "x_0", "p_0", r"\varepsilon")
INPUT, ENCODER, POSTERIOR, FUSION, GENERATOR = 0.31, 1.52, 3.46, 5.42, 7.38  # centres of columns, inches
BOX, ROW, TITLE = (1.72, 0.84), 1.0, 0.42  # inches


@dataclass(frozen=True)
class Part:
    """An input, z, or one call of a module, with output shapes (without the batch) and operations per frame."""

    shapes: tuple[tuple[int, ...], ...]
    sources: tuple[str, ...] = ()
    parameters: int = 0
    flops: int = 0  # a multiplication and an addition are counted as two operations

    @property
    def once(self) -> bool:
        """Whether the module is called once per clip instead of once per frame."""
        return bool(self.sources) and set(self.sources) <= {"x_0", "p_0"}


def trace(model: CVAE, height: int = 32, width: int = 64) -> dict[str, Part]:
    """Record inputs, output shapes, parameters and operations of every module call of one training step.

    The name of a call is the name of the module. A single input is added to the name: `RGB_Encoder(x_t)`. The
    sources of a call are found in the autograd graph of its inputs, so every drawn connection exists in the model.
    """
    parts: dict[str, Part] = {}
    nodes: dict[Node, str] = {}
    device = next(model.parameters()).device
    shapes = [(3, height, width)] * 5 + [model.latent_shape(height, width)]
    x, p, previous, first, first_label, eps = (
        _note(key, (torch.zeros(1, *shape, device=device, requires_grad=True),), parts, nodes)[0]
        for key, shape in zip(INPUTS, shapes, strict=True)
    )

    def after(
        module: nn.Module, inputs: tuple[Tensor | tuple[Tensor, ...], ...], out: Tensor | tuple[Tensor, ...]
    ) -> None:
        sources = _sources(inputs[0] if isinstance(inputs[0], tuple) else inputs, nodes)
        name = type(module).__name__ + (f"({sources[0]})" if len(sources) == 1 else "")
        flops = counter.get_total_flops() - sum(part.flops for part in parts.values())
        weights = sum(p.numel() for p in module.parameters())
        _note(name, out if isinstance(out, tuple) else (out,), parts, nodes, sources, weights, flops)

    with evaluating(model), FlopCounterMode(display=False) as counter, ExitStack() as hooks:
        for module in model.children():
            hooks.enter_context(module.register_forward_hook(after))
        anchor, label = model.anchor(first, first_label), model.label_transformation(p)
        z = reparameterise(*model.posterior(model.frame_transformation(x), label), eps)
        _note("z", (z,), parts, nodes, _sources((z,), nodes))
        model.decode(previous, label, z, anchor)
    used = {source for part in parts.values() for source in part.sources}
    return {key: part for key, part in parts.items() if part.sources or key in used}


def _note(
    key: str, tensors: tuple[Tensor, ...], parts: dict[str, Part], nodes: dict[Node, str],
    *rest: tuple[str, ...] | int,
) -> tuple[Tensor, ...]:  # fmt: skip
    parts[key] = Part(tuple(tuple(tensor.shape[1:]) for tensor in tensors), *rest)
    nodes.update((get_gradient_edge(tensor).node, key) for tensor in tensors)
    return tensors


def _sources(tensors: tuple[Tensor, ...], nodes: dict[Node, str]) -> tuple[str, ...]:
    """Return the names of the recorded parts from which these tensors are computed, in order of recording."""
    found, seen, queue = set(), set(), [get_gradient_edge(tensor).node for tensor in tensors]
    while queue:
        node = queue.pop()
        if node in nodes:
            found.add(nodes[node])
        elif node is not None and node not in seen:
            seen.add(node)
            queue += [following for following, _ in node.next_functions]
    return tuple(dict.fromkeys(name for name in nodes.values() if name in found))


@plt.rc_context(STYLE)
def diagram(parts: dict[str, Part], title: str = "") -> Figure:
    """Draw every module call as a box.

    The shaded part of a box is the call's fraction of all operations per frame. Dashed boxes are calls once per clip.
    """
    rows, places, drawn = sum(key in parts for key in INPUTS[:-1]), _places(parts), set[str]()
    total = sum(part.flops for part in parts.values() if not part.once)
    figure = plt.figure(figsize=(WIDTH, rows * ROW + TITLE), FigureClass=DescribedFigure)
    ax = figure.add_axes((0.01, 0, 0.99, rows * ROW / (rows * ROW + TITLE)), title=title)
    ax.set(xlim=(0, WIDTH), ylim=(rows * ROW, 0))
    ax.axis("off")
    for key, part in sorted(parts.items(), key=lambda item: places[item[0]][1]):
        for source in part.sources:
            _wire(ax, places[source], places[key], parts[source].flops > 0, part.flops > 0)
        if part.flops:
            name, fraction = key.split("(")[0], 0 if part.once else part.flops / total
            repeated = ("the same weights,", "once a clip" if part.once else "again")
            _box(ax, *places[key], name, repeated if name in drawn else _facts(part), fraction, part.once)
            drawn.add(name)
        else:
            _symbol(ax, *places[key], key, part.shapes[0] if key in ("x_t", "z") else ())
    last = "Generator(Decoder_Fusion)"
    end = (8.72, places[last][1])
    _wire(ax, places[last], end, True, False)
    _symbol(ax, *end, r"\hat x_t", ())
    calls = "; ".join(f"{key} from {', '.join(part.sources)}" for key, part in parts.items() if part.flops)
    return described(figure, f"{title or 'The modules'}. Calls and their inputs: {calls}.")


def _places(parts: dict[str, Part]) -> dict[str, tuple[float, float]]:
    """Return the centre of each part, in inches from the top left corner."""
    inputs = [key for key in INPUTS[:-1] if key in parts]
    places = {key: (INPUT, float(row)) for row, key in enumerate(inputs)}
    places |= {key: (ENCODER, places[p.sources[0]][1]) for key, p in parts.items() if "Encoder(" in key}
    places |= {"Gaussian_Predictor": (POSTERIOR, 0.5), "z": (FUSION, 0.5), INPUTS[-1]: (GENERATOR, 0.5)}
    places |= {"Decoder_Fusion": (FUSION, 2.0), "Generator(Decoder_Fusion)": (GENERATOR, 2.0)}
    return {key: (x, (row + 0.5) * ROW) for key, (x, row) in places.items()}


def _wire(
    ax: Axes, start: tuple[float, float], end: tuple[float, float], from_box: bool, to_box: bool
) -> None:
    (x, y), (u, v) = start, end
    if x == u:  # the arrow points down
        tail, tip = (x, y + 0.32), (u, v - BOX[1] / 2)
    else:
        sign, reach = (1 if x < u else -1), {True: BOX[0] / 2, False: 0.24}
        tail, tip = (x + sign * reach[from_box], y), (u - sign * reach[to_box], v)
    arrow = {"arrowstyle": "-|>", "color": GREY, "shrinkA": 0, "shrinkB": 0, "linewidth": 1.1}
    ax.annotate("", tip, tail, arrowprops=arrow)


def _symbol(ax: Axes, x: float, y: float, name: str, shape: tuple[int, ...]) -> None:
    ax.text(x, y, f"${name}$", ha="center", va="center", fontsize=12)
    ax.text(x, y + 0.22, _shape(shape), ha="center", va="center", fontsize=9, color=GREY)


def _facts(part: Part) -> tuple[str, ...]:
    same = len(part.shapes) > 1 and len(set(part.shapes)) == 1
    shapes = (
        f"{len(part.shapes)} × ({_shape(part.shapes[0])})" if same else " + ".join(map(_shape, part.shapes))
    )
    shapes = textwrap.fill(shapes, 18)
    return shapes, f"{part.parameters:,} weights", f"{part.flops / 1e6:,.0f} MFLOP"


def _box(
    ax: Axes, x: float, y: float, name: str, lines: tuple[str, ...], fraction: float, once: bool
) -> None:
    corner = x - BOX[0] / 2, y - BOX[1] / 2
    shape = {"boxstyle": "round,pad=0,rounding_size=0.06", "edgecolor": PALETTE[0], "facecolor": "white"}
    frame = ax.add_patch(FancyBboxPatch(corner, *BOX, linestyle="--" if once else "-", linewidth=1, **shape))
    tint = ax.add_patch(
        Rectangle(corner, fraction * BOX[0], BOX[1], color=PALETTE[4], alpha=0.35, linewidth=0)
    )
    tint.set_clip_path(frame)
    ax.text(x, y - 0.28, name, ha="center", va="center", fontsize=9, fontweight="bold")
    ax.text(x, y + 0.1, "\n".join(lines), ha="center", va="center", fontsize=9)


def _shape(shape: tuple[int, ...]) -> str:
    return "×".join(map(str, shape))
