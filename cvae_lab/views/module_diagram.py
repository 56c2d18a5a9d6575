"""The five modules as a picture whose wiring, shapes and costs are traced from one real training step."""

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
from cvae_lab.views.figures import STYLE, WIDTH

INPUTS = ("x_t", "p_t", r"\hat x_{t-1}", "x_0", "p_0", r"\varepsilon")
INPUT, ENCODER, POSTERIOR, FUSION, GENERATOR = 0.27, 1.42, 3.4, 5.38, 7.36  # centres of columns, inches
BOX, ROW, TITLE = (1.7, 0.66), 0.82, 0.42  # inches


@dataclass(frozen=True)
class Part:
    """An input, z, or one call of a module: shapes without the batch, cost of one frame."""

    shapes: tuple[tuple[int, ...], ...]
    sources: tuple[str, ...] = ()
    parameters: int = 0
    flops: int = 0  # a multiplication and an addition are two

    @property
    def once(self) -> bool:
        """Whether it runs once per clip, not once per frame."""
        return bool(self.sources) and set(self.sources) <= {"x_0", "p_0"}


def trace(model: CVAE, height: int = 32, width: int = 64) -> dict[str, Part]:
    """What runs in one training step, made of what, giving which shapes, at which cost.

    A module fed by one part is called after both, as `RGB_Encoder(x_t)`. Sources are found by walking the autograd
    graph back from what a module is given, so a wire in the result is a wire in the model.
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
        module: nn.Module, given: tuple[Tensor | tuple[Tensor, ...], ...], out: Tensor | tuple[Tensor, ...]
    ) -> None:
        wires = _sources(given[0] if isinstance(given[0], tuple) else given, nodes)
        name = type(module).__name__ + (f"({wires[0]})" if len(wires) == 1 else "")
        flops = counter.get_total_flops() - sum(part.flops for part in parts.values())
        weights = sum(p.numel() for p in module.parameters())
        _note(name, out if isinstance(out, tuple) else (out,), parts, nodes, wires, weights, flops)

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
    """Names of the known parts that these tensors are made of, in the order they came."""
    found, seen, queue = set(), set(), [get_gradient_edge(tensor).node for tensor in tensors]
    while queue:
        node = queue.pop()
        if node in nodes:
            found.add(nodes[node])
        elif node is not None and node not in seen:
            seen.add(node)
            queue += [following for following, _ in node.next_functions]
    return tuple(dict.fromkeys(name for name in nodes.values() if name in found))


@plt.rc_context(STYLE | {"figure.dpi": 90})
def diagram(parts: dict[str, Part], title: str = "") -> Figure:
    """Boxes are module calls, shaded by their share of a frame's cost; dashed ones run once per clip."""
    rows, places, told = sum(key in parts for key in INPUTS[:-1]), _places(parts), set[str]()
    total = sum(part.flops for part in parts.values() if not part.once)
    figure = plt.figure(figsize=(WIDTH, rows * ROW + TITLE))
    ax = figure.add_axes((0.01, 0, 0.99, rows * ROW / (rows * ROW + TITLE)), title=title)
    ax.set(xlim=(0, WIDTH), ylim=(rows * ROW, 0))
    ax.axis("off")
    for key, part in sorted(parts.items(), key=lambda item: places[item[0]][1]):
        for source in part.sources:
            _wire(ax, places[source], places[key], parts[source].flops > 0, part.flops > 0)
        if part.flops:
            name, share = key.split("(")[0], 0 if part.once else part.flops / total
            repeated = ("the same weights,", "once a clip" if part.once else "again")
            _box(ax, *places[key], name, repeated if name in told else _facts(part), share, part.once)
            told.add(name)
        else:
            _symbol(ax, *places[key], key, part.shapes[0] if key in ("x_t", "z") else ())
    last = "Generator(Decoder_Fusion)"
    end = (8.72, places[last][1])
    _wire(ax, places[last], end, True, False)
    _symbol(ax, *end, r"\hat x_t", ())
    return figure


def _places(parts: dict[str, Part]) -> dict[str, tuple[float, float]]:
    """Centre of each part in inches from the top left."""
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
    if x == u:  # straight down
        tail, tip = (x, y + 0.32), (u, v - BOX[1] / 2)
    else:
        way, reach = (1 if x < u else -1), {True: BOX[0] / 2, False: 0.24}
        tail, tip = (x + way * reach[from_box], y), (u - way * reach[to_box], v)
    look = {"arrowstyle": "-|>", "color": GREY, "shrinkA": 0, "shrinkB": 0, "linewidth": 1.1}
    ax.annotate("", tip, tail, arrowprops=look)


def _symbol(ax: Axes, x: float, y: float, name: str, shape: tuple[int, ...]) -> None:
    ax.text(x, y, f"${name}$", ha="center", va="center", fontsize=12)
    ax.text(x, y + 0.2, _shape(shape), ha="center", va="center", fontsize=7, color=GREY)


def _facts(part: Part) -> tuple[str, ...]:
    shapes = " + ".join(map(_shape, part.shapes))
    return shapes, f"{part.parameters:,} weights", f"{part.flops / 1e6:,.0f} MFLOP"


def _box(ax: Axes, x: float, y: float, name: str, lines: tuple[str, ...], share: float, once: bool) -> None:
    corner = x - BOX[0] / 2, y - BOX[1] / 2
    shape = {"boxstyle": "round,pad=0,rounding_size=0.06", "edgecolor": PALETTE[0], "facecolor": "white"}
    frame = ax.add_patch(FancyBboxPatch(corner, *BOX, linestyle="--" if once else "-", linewidth=1, **shape))
    tint = ax.add_patch(Rectangle(corner, share * BOX[0], BOX[1], color=PALETTE[4], alpha=0.35, linewidth=0))
    tint.set_clip_path(frame)
    ax.text(x, y - 0.2, name, ha="center", va="center", fontsize=9, fontweight="bold")
    size = 7 if max(map(len, lines)) < 26 else 6
    ax.text(x, y + 0.08, "\n".join(lines), ha="center", va="center", fontsize=size)


def _shape(shape: tuple[int, ...]) -> str:
    return "×".join(map(str, shape))
