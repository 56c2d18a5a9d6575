"""Conversion and resizing of pictures of every kind and size, and the logged lines about it."""

import numpy as np
import pytest
import torch
from PIL import Image

from cvae_lab.data import DataError, read_folder
from cvae_lab.data.pixels import MAX_PIXELS, open_picture, to_rgb

IMG, LABEL = "train/train_img", "train/train_label"


def read(root, **options):
    return read_folder(root, progress=False, **options)


def notices(caplog):
    """Return the logged lines except the warning about label colours, which the grey labels of the fixture cause."""
    lines = [record.getMessage() for record in caplog.records]
    return [line.split(": ", 1)[1] for line in lines if "palette" not in line or "converted" in line]


def rewrite(folder, change):
    for file in sorted(folder.iterdir()):
        with Image.open(file) as opened:
            picture = opened.convert("RGB")
        file.unlink()
        change(picture, file)


def gradient(channels=3):
    """Return pixels whose values differ in every row, column and channel."""
    values = np.arange(32 * 64 * channels).reshape(32, 64, channels) * 37 % 256
    return values.astype(np.uint8).squeeze()


def as_tensor(pixels):
    return torch.from_numpy(np.ascontiguousarray(pixels)).permute(2, 0, 1)


def to_sixteen_bits(picture, file):
    Image.fromarray(np.asarray(picture.convert("L")).astype(np.uint16) * 257).save(file)


LOSSLESS = {
    "upper case": (IMG, lambda p, f: p.save(f.with_suffix(".PNG")), None),
    "grey": (
        IMG,
        lambda p, f: p.convert("L").save(f),
        "train: pictures are converted to 8-bit RGB (grey: 20 files).",
    ),
    "palette": (IMG, lambda p, f: p.quantize(16).save(f), "(palette: 20 files)"),
    "16 bits": (IMG, to_sixteen_bits, "(16 bits: 20 files)"),
    "opaque": (LABEL, lambda p, f: p.convert("RGBA").save(f), "(transparency, shown over white: 20 files)"),
    "grey with alpha": (
        LABEL,
        lambda p, f: p.convert("LA").save(f),
        "(transparency, shown over white: 20 files)",
    ),
    "transparent frames": (IMG, lambda p, f: p.convert("RGBA").save(f), "(transparency: 20 files)"),
    "JPEG": (IMG, lambda p, f: p.save(f.with_suffix(".jpg"), quality=95), "(JPEG: 20 files)"),
    "JPEG named .png": (IMG, lambda p, f: p.save(f, "JPEG", quality=95), "(JPEG: 20 files)"),
    "grey JPEG": (
        IMG,
        lambda p, f: p.convert("L").save(f.with_suffix(".jpeg"), quality=95),
        "(JPEG: 20 files)",
    ),
    "CMYK JPEG": (
        IMG,
        lambda p, f: p.convert("CMYK").save(f.with_suffix(".jpg"), quality=95),
        "(JPEG: 20 files)",
    ),
}


@pytest.mark.parametrize("kind", LOSSLESS)
def test_every_kind_of_picture_is_read_and_its_conversion_logged(data_folder, kind, caplog):
    folder, change, notice = LOSSLESS[kind]
    rewrite(data_folder / folder, change)
    base = 100 if folder == LABEL else 0
    for _ in range(2):  # the second time from the cache; the line must still be logged
        caplog.clear()
        train = read(data_folder).train
        levels = (train.labels if folder == LABEL else train.frames)[:, 0, 0, 0].int()
        assert (levels - base - torch.arange(20)).abs().max() <= ("JPEG" in kind)
        lines = notices(caplog)
        assert len(lines) == bool(notice)
        assert not notice or notice in lines[0]


def test_several_kinds_of_pictures_are_counted_in_one_line(data_folder, caplog):
    for number, kind in ((3, "L"), (4, "L"), (5, "P")):
        with Image.open(data_folder / IMG / f"{number}.png") as picture:
            converted = picture.quantize(16) if kind == "P" else picture.convert(kind)
        converted.save(data_folder / IMG / f"{number}.png")
    assert read(data_folder).train.frames[:6, 0, 0, 0].tolist() == [0, 1, 2, 3, 4, 5]
    assert notices(caplog) == ["train: pictures are converted to 8-bit RGB (grey: 2 files; palette: 1 file)."]


def test_16_bit_colour_is_converted_and_reported(tmp_path):
    import imageio.v3  # Pillow cannot write 16-bit colour

    values = gradient().astype(np.uint16) * 257
    file = tmp_path / "0.png"
    file.write_bytes(png_of_16_bits(values))
    picture, kind = to_rgb(open_picture(file), is_label=False)
    assert kind == "16 bits"
    assert np.array_equal(np.asarray(picture), gradient())
    assert imageio.v3.imread(file).shape == (32, 64, 3)


def png_of_16_bits(values):
    import struct
    import zlib

    def chunk(kind, content):
        return (
            struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        )

    height, width = values.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("mode", ["RGBA", "P"])
def test_transparent_labels_are_shown_over_white(tmp_path, mode):
    """The label is transparent except for one limb. Its transparent pixels have the stored colour black."""
    label = Image.new("RGBA", (64, 32), (0, 0, 0, 0))
    label.paste((84, 216, 255, 255), (10, 5, 14, 25))
    if mode == "P":
        label.quantize(4).save(tmp_path / "0.png")
    else:
        label.save(tmp_path / "0.png")
    picture, kind = to_rgb(open_picture(tmp_path / "0.png"), is_label=True)
    pixels = np.asarray(picture)
    assert kind == "transparency, shown over white"
    assert pixels[0, 0].tolist() == [255, 255, 255]
    assert pixels[10, 12].tolist() == [84, 216, 255]


def test_the_largest_picture_is_read_and_a_larger_one_is_not(tmp_path):
    for name, width in (("ok", MAX_PIXELS // 1000), ("large", MAX_PIXELS // 1000 + 1)):
        Image.new("1", (width, 1000)).save(tmp_path / f"{name}.png")
    assert open_picture(tmp_path / "ok.png").size == (MAX_PIXELS // 1000, 1000)
    with pytest.raises(
        DataError, match=r"large\.png: the picture is too large \(it has 40001 x 1000 pixels\)"
    ):
        open_picture(tmp_path / "large.png")


# --- sizes ------------------------------------------------------------------------------------------------


def resize_all(root, size, kinds=("img", "label")):
    for file in root.rglob("*.png"):
        if any(f"_{kind}" in str(file) for kind in (*kinds, "answer" if "img" in kinds else "-")):
            with Image.open(file) as picture:
                resized = picture.resize(size)
            resized.save(file)


ALL_PARTS = "train frames, train labels, val frames, val labels, test frames, test labels"
SIZES = {
    (512, 256): f"{ALL_PARTS}: resized from 512 x 256 to 64 x 32 pixels.",
    (
        426,
        240,
    ): f"{ALL_PARTS}: resized from 426 x 240 to 64 x 32 pixels; the aspect ratio changes, so shapes become 1.13 "
    "times as wide. read_folder(…, fit='crop') or fit='letterbox' keeps the aspect ratio.",
    (64, 64): "the aspect ratio changes, so shapes become 2.00 times as wide",
    (27, 48): "the aspect ratio changes, so shapes become 3.56 times as wide",
    (128, 32): "the aspect ratio changes, so shapes become 2.00 times as high",
    (64, 32): None,
}


@pytest.mark.parametrize("size", SIZES)
def test_the_source_size_and_the_distortion_are_logged(data_folder, size, caplog):
    resize_all(data_folder, size)
    for _ in range(2):
        caplog.clear()
        assert read(data_folder).train.frames.shape == (20, 3, 32, 64)
        lines = notices(caplog)
        assert len(lines) == bool(SIZES[size])
        assert not lines or SIZES[size] in lines[0]


def test_frames_of_another_size_than_labels_are_logged(data_folder, caplog):
    resize_all(data_folder, (426, 240), ("img",))
    read(data_folder)
    (line,) = notices(caplog)
    assert line.startswith("train frames, val frames, test frames: resized from 426 x 240 to 64 x 32 pixels")


def square(colour=(200, 0, 0)):
    """Draw a picture of 64 x 64 pixels with a square of 16 x 16 in the centre and a bar at the top."""
    picture = Image.new("RGB", (64, 64), (90, 90, 90))
    picture.paste(colour, (24, 24, 40, 40))
    picture.paste((0, 0, 255), (0, 0, 64, 8))
    return picture


@pytest.fixture
def square_data(data_folder):
    for file in data_folder.rglob("*.png"):
        square().save(file)
    return data_folder


def extent(frame):
    """Return width and height, in pixels, of the region that is more red than blue."""
    red = frame[0].int() > frame[2].int() + 50
    return int(red.any(0).sum()), int(red.any(1).sum())


def test_stretch_distorts_a_square(square_data):
    assert extent(read(square_data).train.frames[0]) == (16, 8)


def test_crop_keeps_proportions_and_removes_the_top(square_data, caplog):
    dataset = read(square_data, fit="crop")
    for frame in (dataset.train.frames[0], dataset.train.labels[0], dataset.tests[0].first):
        assert extent(frame) == (16, 16)
        assert not (frame[2] == 255).any()
    assert "by crop, which keeps the aspect ratio" in notices(caplog)[0]


def test_letterbox_keeps_proportions_and_adds_bars(square_data, caplog):
    dataset = read(square_data, fit="letterbox")
    frame, label = dataset.train.frames[0], dataset.train.labels[0]
    assert extent(frame) == extent(label) == (8, 8)
    assert (frame[:, :, :16] == 0).all()  # black bars left and right of frames
    assert (frame[:, :, 48:] == 0).all()
    assert (label[:, :, :16] == 255).all()  # white bars in labels, like their background
    assert "by letterbox, which keeps the aspect ratio" in notices(caplog)[0]


def test_crop_is_refused_if_frames_and_labels_have_different_proportions(data_folder):
    resize_all(data_folder, (426, 240), ("img",))
    with pytest.raises(DataError, match=r"train: frames and labels have different aspect ratios"):
        read(data_folder, fit="crop")
    # TypeCheckError comes from the annotations, which are checked in tests only.
    with pytest.raises((ValueError, TypeError), match=r"stretch.*crop.*letterbox"):
        read(data_folder, fit="squeeze")
