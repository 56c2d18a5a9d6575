"""Random damage to every kind of data file. Each file is read, or refused in one line that contains its name."""

import io
import json
import shutil

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from cvae_lab.data import DataError, course_csv, palette, read_folder
from cvae_lab.data.folder.boundaries import read_boundaries
from cvae_lab.data.folder.names import in_order, numbered_pictures
from cvae_lab.data.pixels import Group, decode

FUZZ = settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


def refused_or(file, read):
    """Return the result of `read`, or None if it is refused in one line that contains the file's name."""
    try:
        return read()
    except DataError as error:
        message = str(error)
    assert file.name in message
    assert "\n" not in message
    return None


def picture_bytes(mode, kind):
    pixels = np.random.default_rng(0).integers(0, 256, (32, 64, 3), dtype=np.uint8)
    stream = io.BytesIO()
    picture = Image.fromarray(pixels)
    (picture.quantize(16) if mode == "P" else picture.convert(mode)).save(stream, kind)
    return stream.getvalue()


PICTURES = [picture_bytes(*kind) for kind in (("RGB", "PNG"), ("P", "PNG"), ("RGBA", "PNG"), ("L", "JPEG"))]
EDITS = st.lists(
    st.tuples(
        st.sampled_from(["replace", "insert", "delete"]),
        st.floats(0, 1, exclude_max=True),
        st.binary(min_size=1, max_size=20),
    ),
    max_size=4,
)


def edited(content, edits):
    content = bytearray(content)
    for kind, place, data in edits:
        start = int(place**2 * len(content))  # often near the header
        stop = start + len(data) if kind != "insert" else start
        content[start:stop] = b"" if kind == "delete" else data
    return bytes(content)


@FUZZ
@given(content=st.sampled_from(PICTURES), edits=EDITS, is_label=st.booleans())
def test_a_damaged_picture_is_read_or_refused(tmp_path, content, edits, is_label):
    file = tmp_path / "7.png"
    file.write_bytes(edited(content, edits))
    decoded = refused_or(file, lambda: decode([Group([file], is_label)], (32, 64)))
    assert decoded is None or decoded.pixels.shape == (1, 3, 32, 64)


def test_bytes_inserted_into_the_pixel_data_of_a_picture_are_noticed(tmp_path):
    """Pillow alone reads such files and returns wrong pixels for some of them."""
    file = tmp_path / "7.png"
    content = PICTURES[1]
    for place in range(content.index(b"IDAT") + 4, len(content) - 12):
        file.write_bytes(content[:place] + b"3\xb2$\xa2" + content[place:])
        with pytest.raises(DataError, match=r"7\.png: this is not a readable PNG"):
            decode([Group([file], False)], (32, 64))


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    """Write two frames in both text formats of the course."""
    folder = tmp_path_factory.mktemp("texts")
    clip = torch.randint(256, (2, 3, 32, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    course_csv.write_submission(folder / "s.csv", [clip.float() / 255])
    course_csv.write_2023(folder / "GT0.csv", clip.float() / 255)
    return clip, {name: (folder / name).read_bytes() for name in ("s.csv", "GT0.csv")}


PIECES = st.sampled_from(
    [b",", b"\n", b"nan", b"-", b"e", b"\0", b"\xff", b" ", b"1e999", b'"', b"inf", b"\r", b"300"]
)


@FUZZ
@given(name=st.sampled_from(["s.csv", "GT0.csv"]), place=st.floats(0, 1, exclude_max=True), piece=PIECES)
def test_a_damaged_text_changes_at_most_the_value_that_was_edited(tmp_path, texts, name, place, piece):
    clip, contents = texts
    content = bytearray(contents[name])
    at = int(place * len(content))
    content[at : at + 1] = piece
    file = tmp_path / name
    file.write_bytes(content)
    read = course_csv.read_2023 if name == "GT0.csv" else lambda f, n: course_csv.read_submission(f, n)[0]
    frames = refused_or(file, lambda: read(file, 2))
    assert frames is None or int((frames != clip).sum()) <= 1


VALUES = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=8) | st.just("#00ff00"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
)


@FUZZ
@given(value=VALUES)
def test_any_json_is_a_palette_or_refused(tmp_path, value):
    file = tmp_path / "labels.json"
    file.write_text(json.dumps(value))
    found = refused_or(file, lambda: palette.read_palette(file))
    assert found is None or len(found.colours) == len(found.mirrored) > 0


@FUZZ
@given(
    content=st.binary(max_size=30) | st.lists(st.integers(-3, 30), max_size=5).map(lambda n: str(n).encode())
)
def test_any_cuts_txt_holds_boundaries_or_is_refused(tmp_path, content):
    file = tmp_path / "cuts.txt"
    file.write_bytes(content)
    found = refused_or(file, lambda: read_boundaries(file, 20))
    assert found is None or all(0 < a < 20 for a in found)


NAMES = st.lists(
    st.from_regex(r"[a-z_ .(-]{0,3}[0-9]{0,3}[)_]?[a-z]?( \([0-9]\))?\.(png|PNG|jpg|txt)", fullmatch=True),
    unique_by=str.lower,
    min_size=1,
    max_size=6,
)


@FUZZ
@given(names=NAMES)
def test_any_names_are_numbered_without_loss_or_refused(tmp_path, names):
    folder = tmp_path / "train_img"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for name in names:
        (folder / name).write_bytes(b"")
    pictures = [name for name in names if not name.startswith(".") and not name.endswith(".txt")]
    found = refused_or(folder, lambda: in_order(numbered_pictures(folder)))
    assert found is None or sorted(path.name for path in found) == sorted(pictures)


@pytest.mark.parametrize("name", ["données 资料", "with space", "a'quote", "%s {0}"])
def test_any_folder_name_is_read(data_folder, name):
    root = data_folder.rename(data_folder.with_name(name))
    assert read_folder(root, progress=False).name == name
