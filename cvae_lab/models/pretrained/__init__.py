"""Pretrained weights of `compact`, which are part of the package, and the record of how each file was made."""

from pathlib import Path

from cvae_lab.models.weight_files import CheckpointError

NAME = "pretrained"
FOLDER = Path(__file__).parent


def is_pretrained(name: str | Path) -> bool:
    """Return whether `name` is that of weights in the package: `pretrained` or, with a size, `pretrained-64x128`."""
    return str(name) == NAME or (str(name).startswith(f"{NAME}-") and not Path(name).exists())


def weights_file(name: str, height: int = 32) -> Path:
    """Return the file of pretrained weights. Raises CheckpointError if the size is not available.

    Args:
        name: `pretrained`, or with a size, such as `pretrained-64x128`.
        height: height of the frames in pixels, used if `name` has no size.
    """
    size = name.removeprefix(NAME).removeprefix("-") or f"{height}x{2 * height}"
    file = FOLDER / f"compact-{size}.safetensors"
    if not file.exists():
        sizes = [path.stem.removeprefix("compact-") for path in sorted(FOLDER.glob("*.safetensors"))]
        present = ", ".join(sizes) or "none"
        raise CheckpointError(
            f"There are no pretrained weights for frames of {size} pixels; available sizes: {present}."
        )
    return file
