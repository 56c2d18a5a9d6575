"""Label colours: known and unknown colours, and colours that a data folder defines."""

import json

import pytest
import torch
from PIL import Image, ImageDraw

from cvae_lab.data import DataError, load, palette, read_folder, write_folder
from cvae_lab.data.check import report
from cvae_lab.data.palette import STANDARD, Palette

GREEN, RED, BLUE = (0, 255, 0), (255, 0, 0), (0, 0, 255)


def labels_in(colours, count=20):
    """Return labels with one thick limb per colour on white."""
    label = Image.new("RGB", (64, 32), "white")
    for k, colour in enumerate(colours):
        ImageDraw.Draw(label).rectangle([4 + 8 * k, 4, 8 + 8 * k, 28], fill=colour)
    return [label] * count


@pytest.fixture
def folder_with_colours(data_folder):
    """Return a function that writes labels in the given colours into the data folder and returns the folder."""

    def write(*colours):
        for part in ("train/train_label", "val/val_label", "test/test_label/0", "test/test_label/1"):
            files = sorted((data_folder / part).iterdir())
            for file, label in zip(files, labels_in(colours, len(files)), strict=True):
                label.save(file)
        return data_folder

    return write


def test_the_standard_palette_is_its_own_inverse():
    assert Palette.from_pairs(STANDARD.pairs()).pairs() == STANDARD.pairs()
    assert [STANDARD.mirrored[k] for k in STANDARD.mirrored] == list(range(8))


def test_labels_of_the_synthetic_set_are_known():
    dataset = load("tiny", progress=False)
    assert palette.unknown_fraction(dataset.train.labels) < 0.03
    assert dataset.palette == STANDARD


def test_real_labels_are_known(real_data):
    dataset = read_folder(real_data, progress=False)
    assert dataset.palette == STANDARD
    assert report(dataset)["unknown_colours"].max() < 0.02


@pytest.mark.parametrize("strength", [1.0, 0.5, 0.3])
def test_mixtures_with_white_are_known(strength):
    colours = [[round(255 - strength * (255 - level)) for level in colour] for colour in STANDARD.colours]
    labels = torch.tensor(colours, dtype=torch.uint8).T.reshape(1, 3, 1, 8)
    assert palette.unknown_fraction(labels) == 0


def test_the_fraction_counts_drawn_pixels_with_other_colours():
    labels = torch.full((2, 3, 4, 8), 255, dtype=torch.uint8)
    labels[:, :, 0, :3] = torch.tensor(palette.LEFT_ARM, dtype=torch.uint8)[:, None]
    labels[:, :, 1, 0] = torch.tensor(RED, dtype=torch.uint8)
    assert palette.unknown_fraction(labels) == pytest.approx(1 / 4)
    assert palette.unknown_fraction(torch.full((2, 3, 4, 8), 255, dtype=torch.uint8)) == 0


def test_other_colours_make_the_palette_unknown_with_one_warning(folder_with_colours, caplog):
    dataset = read_folder(folder_with_colours(GREEN, RED, BLUE), progress=False)
    assert dataset.palette is None
    (line,) = [record.getMessage() for record in caplog.records]
    assert "100 % of the drawn label pixels have colours that are not in the palette" in line
    assert "labels.json" in line
    assert report(dataset)["unknown_colours"].tolist() == [1, 1, 1, 1]


def test_labels_json_defines_the_colours(folder_with_colours, caplog, tmp_path):
    root = folder_with_colours(GREEN, RED, BLUE)
    (root / "labels.json").write_text(json.dumps([["#00ff00", "#ff0000"], [BLUE, BLUE]]))
    dataset = read_folder(root, progress=False)
    assert dataset.palette == Palette((GREEN, RED, BLUE), (1, 0, 2))
    assert report(dataset)["unknown_colours"].tolist() == [0, 0, 0, 0]
    assert not caplog.records
    # Expected mirrored labels: flipped, with green and red exchanged.
    label = dataset.train.labels[:1].float() / 255
    (by_hand,) = labels_in((RED, GREEN, BLUE), 1)
    by_hand = torch.tensor(list(by_hand.tobytes())).reshape(32, 64, 3).permute(2, 0, 1) / 255
    torch.testing.assert_close(palette.mirror_labels(label, dataset.palette)[0], by_hand.flip(-1))
    write_folder(dataset, tmp_path / "out")
    assert read_folder(tmp_path / "out", progress=False).palette == dataset.palette


def test_colours_missing_from_labels_json_make_the_palette_unknown(folder_with_colours, caplog):
    root = folder_with_colours(GREEN, RED, BLUE)
    (root / "labels.json").write_text(json.dumps([["#00ff00", "#ff0000"]]))
    assert read_folder(root, progress=False).palette is None
    assert "add the missing colours to labels.json" in caplog.text


@pytest.mark.parametrize(
    "text",
    [
        "", "{}", "[]", "[[]]", "3", '["red"]', '[["red", "green"]]', "[[[1, 2], [3, 4]]]",
        "[[[1, 2, 300], [3, 4, 5]]]",
        '[["#00ff00", "#ff0000"], ["#00ff00", "#0000ff"]]', "[[1, 2]]", "[" * 100_000, '[["#00ff00"]]',
    ],
)  # fmt: skip
def test_a_damaged_labels_json_is_refused_in_one_line(data_folder, text):
    (data_folder / "labels.json").write_text(text)
    with pytest.raises(DataError, match=r"labels\.json: not a list of colour pairs") as caught:
        read_folder(data_folder, progress=False)
    assert "\n" not in str(caught.value)
