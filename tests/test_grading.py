"""Scores equal those of NumPy and scikit-image for every file format, and harmful files do no damage."""

import io
import itertools
import os
import pickle
import struct
import subprocess
import sys
import textwrap
import zipfile
import zlib
from pathlib import Path

import imageio.v3 as iio
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from cvae_lab.config import ModelConfig
from cvae_lab.data.clips import Clip, Dataset, Video
from cvae_lab.data.pixels import DataError
from cvae_lab.models.cvae import CVAE
from cvae_lab.teaching.grading import averages, grade_class, read_clips, read_pair, score

FRAMES = 6
ROOT = Path(__file__).parents[1]


def moving_square(shift, noise=0, seed=0, colours=5):
    """Return a clip (t, h, w, 3) with a bright square on a dark background. Its few colours fit into a GIF palette."""
    random = np.random.default_rng(seed)
    frames = np.full((FRAMES, 32, 64, 3), 40, np.uint8)
    for t in range(FRAMES):
        frames[t, 8:24, 5 + shift + 4 * t : 17 + shift + 4 * t] = (200, 90, 30)
    steps = random.integers(0, colours, frames.shape[:-1], dtype=np.uint8)[..., None]
    return frames + (noise * steps).astype(np.uint8)


TRUTH = [moving_square(0), moving_square(10)]
PREDICTION = [moving_square(1, 3, seed=1), moving_square(12, 6, seed=2)]


def write_csv(path, clips, usage=False):
    rows = np.concatenate(clips).transpose(0, 3, 1, 2).reshape(-1, 6144)
    table = pd.DataFrame(rows, columns=[str(i) for i in range(6144)])
    table.insert(0, "id", range(len(rows)))
    if usage:
        table["Usage"] = "Public"
    table.to_csv(path, index=False)
    return path


def write_texts(path, clips, name="pred{}.csv"):
    path.mkdir()
    for number, clip in enumerate(clips):
        rows = clip.transpose(0, 3, 1, 2).reshape(-1, 6144) / 255
        (path / name.format(number)).write_text("\n".join(" ".join(f"{v:.6f}" for v in row) for row in rows))
    return path


def write_pngs(path, clips):
    for number, clip in enumerate(clips):
        (path / str(number)).mkdir(parents=True)
        for t, frame in enumerate(clip):
            Image.fromarray(frame).save(path / str(number) / f"{t}.png")
    return path


def write_npz(path, clips, axes=(0, 3, 1, 2)):
    np.savez_compressed(path, **{str(number): clip.transpose(axes) for number, clip in enumerate(clips)})
    return path


def write_gif(path, clips):
    frames = [Image.fromarray(frame).quantize(256, dither=Image.Dither.NONE) for frame in clips[0]]
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=40, loop=0)
    return path


def write_video(path, clips):
    iio.imwrite(path, clips[0], plugin="pyav", codec="libx264", fps=25)
    return path


WRITERS = {
    "later.csv": write_csv,
    "usage.csv": lambda path, clips: write_csv(path, clips, usage=True),
    "texts": write_texts,
    "answers": lambda path, clips: write_texts(path, clips, "GT{}.csv"),
    "pngs": write_pngs,
    "channels_first.npz": write_npz,
    "channels_last.npz": lambda path, clips: write_npz(path, clips, (0, 1, 2, 3)),
}
SINGLE = {"one.gif": write_gif, "one.mp4": write_video, "one.mov": write_video}


def as_array(clip):
    return clip.permute(0, 2, 3, 1).numpy()


@pytest.mark.parametrize("name", WRITERS)
def test_every_format_of_several_clips_is_read_exactly(name, tmp_path):
    found = read_clips(WRITERS[name](tmp_path / name, PREDICTION), FRAMES)
    assert len(found) == 2
    for clip, wanted in zip(found, PREDICTION, strict=True):
        assert np.array_equal(as_array(clip), wanted)


def test_a_gif_is_read_exactly(tmp_path):
    (clip,) = read_clips(write_gif(tmp_path / "a.gif", TRUTH))
    assert np.array_equal(as_array(clip), TRUTH[0])


def test_a_grey_gif_has_three_channels(tmp_path):
    grey = [Image.fromarray(frame[..., 0]) for frame in TRUTH[0]]
    grey[0].save(tmp_path / "a.gif", save_all=True, append_images=grey[1:])
    (clip,) = read_clips(tmp_path / "a.gif")
    assert np.array_equal(as_array(clip), TRUTH[0][..., :1].repeat(3, axis=-1))


@pytest.mark.parametrize("name", ["a.mp4", "a.mov"])
def test_a_video_is_read_as_imageio_reads_it(name, tmp_path):
    file = write_video(tmp_path / name, TRUTH)
    (clip,) = read_clips(file)
    assert np.array_equal(as_array(clip), iio.imread(file, plugin="pyav"))


def test_pictures_of_other_kinds_are_converted_to_rgb(tmp_path):
    grey = Image.new("RGB", (64, 32), (80, 80, 80))
    for t, picture in enumerate((grey.convert("L"), grey.quantize(4), grey.convert("RGBA"), grey)):
        picture.save(tmp_path / f"frame_{t:05}.png")
    (clip,) = read_clips(tmp_path)
    assert clip.shape == (4, 3, 32, 64)
    assert clip.unique().tolist() == [80]


def test_files_are_sorted_by_number_and_other_files_are_ignored(tmp_path):
    for number in (0, 2, 10, 1):
        Image.new("RGB", (64, 32), (number,) * 3).save(tmp_path / f"{number}.png")
    for name in ("._0.png", ".DS_Store", "readme.txt", "Thumbs.db"):
        (tmp_path / name).write_bytes(b"\0\5\7")
    (clip,) = read_clips(tmp_path)
    assert clip[:, 0, 0, 0].tolist() == [0, 1, 2, 10]


def test_validation_clips_of_a_run_are_left_out(tmp_path):
    np.savez(tmp_path / "a.npz", **{"val0": TRUTH[0], "10": TRUTH[1], "2": TRUTH[0]})
    first, second = read_clips(tmp_path / "a.npz")
    assert np.array_equal(as_array(first), TRUTH[0])
    assert np.array_equal(as_array(second), TRUTH[1])


def oracle(predicted, true):
    psnr = [peak_signal_noise_ratio(t, p, data_range=255) for p, t in zip(predicted, true, strict=True)]
    options = {"channel_axis": -1, "gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    ssim = [
        structural_similarity(t / 255, p / 255, data_range=1.0, **options)
        for p, t in zip(predicted, true, strict=True)
    ]
    return psnr, ssim


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Write prediction and truth in every format. Return each file with the frames that were written."""
    root, files = tmp_path_factory.mktemp("written"), {}
    for side, clips in (("prediction", PREDICTION), ("truth", TRUTH)):
        (root / side).mkdir()
        for name, write in (WRITERS | SINGLE).items():
            files[side, name] = write(root / side / name, clips), clips
        for name in ("one.mp4", "one.mov"):  # these formats are lossy
            file = files[side, name][0]
            files[side, name] = file, [iio.imread(file, plugin="pyav")]
        files[side, "one.txt"] = write_texts(root / side / "one", clips[:1]) / "pred0.csv", clips
    return files


PAIRS = [
    *itertools.product(WRITERS, repeat=2),
    *itertools.product([*SINGLE, "one.txt"], repeat=2),
]


@pytest.mark.parametrize(("a", "b"), PAIRS)
def test_any_two_formats_have_the_scores_of_scikit_image(a, b, written):
    (left, predicted), (right, true) = written["prediction", a], written["truth", b]
    found = score(*read_pair(left, right, FRAMES))
    clips = 2 if a in WRITERS else 1
    assert found["frame"].tolist() == [*range(1, FRAMES)] * clips  # frame 0 is an input
    for number in range(clips):
        rows = found[found["clip"] == str(number)]
        psnr, ssim = oracle(predicted[number][1:], true[number][1:])
        assert rows["psnr"].to_numpy() == pytest.approx(np.minimum(psnr, 100), abs=1e-3)
        assert rows["ssim"].to_numpy() == pytest.approx(ssim, abs=1e-4)


def tensors(clips):
    return [torch.from_numpy(np.ascontiguousarray(clip.transpose(0, 3, 1, 2))) for clip in clips]


def test_a_prediction_without_frame_0_has_the_same_score():
    whole = score(tensors(PREDICTION), tensors(TRUTH))
    without = score(tensors([clip[1:] for clip in PREDICTION]), tensors(TRUTH))
    assert without.equals(whole)
    bare = score(tensors(PREDICTION), tensors([clip[1:] for clip in TRUTH]))
    assert bare.drop(columns="baseline_static").equals(whole.drop(columns="baseline_static"))
    assert bare["baseline_static"].isna().all()


def test_the_baseline_repeats_frame_0():
    found = score(tensors(PREDICTION), tensors(TRUTH))
    wanted = [psnr for true in TRUTH for psnr in oracle(true[:1].repeat(FRAMES - 1, 0), true[1:])[0]]
    assert found["baseline_static"].to_numpy() == pytest.approx(wanted, abs=1e-3)


def test_large_frames_are_scored_in_parts(monkeypatch):
    whole = score(tensors(PREDICTION), tensors(TRUTH))
    monkeypatch.setattr("cvae_lab.teaching.grading.scores.CHUNK", 2 * 6144)
    assert np.allclose(score(tensors(PREDICTION), tensors(TRUTH)).iloc[:, 2:], whole.iloc[:, 2:], atol=1e-5)


def test_averages_are_those_of_their_definitions():
    random = np.random.default_rng(0)
    psnr, ssim = random.uniform(20, 40, (2, 629)), random.uniform(0, 1, (2, 629))
    columns = {"psnr": psnr.ravel(), "ssim": ssim.ravel(), "baseline_static": psnr.ravel() - 5}
    table = pd.DataFrame(
        {"clip": np.repeat(["0", "1"], 629), "frame": np.tile(np.arange(1, 630), 2)} | columns
    )
    assert averages(table) == pytest.approx({
        "mean PSNR": psnr.mean(),
        "course average of 2023 (sum / (n - 1))": psnr.sum(axis=1).mean() / 628,
        "course average of later years (600 frames)": psnr[:, :600].mean(),
        "mean SSIM": ssim.mean(),
        "static baseline": psnr.mean() - 5,
    }, rel=1e-5)  # fmt: skip


def test_a_text_has_as_many_frames_per_clip_as_the_other_side(tmp_path):
    text, other = write_csv(tmp_path / "a.csv", PREDICTION), write_pngs(tmp_path / "b", TRUTH)
    for pair in (read_pair(text, other), read_pair(other, text)):
        assert [len(clip) for side in pair for clip in side] == [FRAMES] * 4


@pytest.mark.parametrize(("prediction", "message"), [
    (PREDICTION[:1], "the prediction has 1 clips, but the answer has 2"),
    ([clip[2:] for clip in PREDICTION], "clip 0: the prediction has 4 frames of 64 x 32 pixels, but the answer has 6"),
    ([clip[:, 1:] for clip in PREDICTION], "clip 0: the prediction has 6 frames of 64 x 31 pixels"),
])  # fmt: skip
def test_clips_that_do_not_correspond_are_refused(prediction, message):
    with pytest.raises(DataError, match=message):
        score(tensors(prediction), tensors(TRUTH))


@pytest.mark.parametrize(
    "name", ["a.csv", "a.txt", "a.gif", "a.mp4", "a.avi", "a.npz", "a.docx", "1.png", "none.csv"]
)
def test_other_content_is_refused_with_the_name_of_the_file(name, tmp_path):
    file = tmp_path / name
    if name != "none.csv":
        file.write_bytes(b"this is a letter to the teacher\n" * 20)
    with pytest.raises(DataError, match=name):
        read_clips(tmp_path if name == "1.png" else file, FRAMES)


@pytest.mark.parametrize("name", ["a.mp4", "a.avi", "a.mkv"])
def test_a_list_of_other_files_is_not_followed_by_the_video_reader(name, tmp_path):
    inner = write_video(tmp_path / "inner.mp4", TRUTH)
    lists = [
        "#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:1,\n{}\n#EXT-X-ENDLIST\n",
        "ffconcat version 1.0\nfile {}\n",
    ]
    for text in lists:
        (tmp_path / name).write_text(text.format(inner.name))
        with pytest.raises(DataError, match="not a readable video"):
            read_clips(tmp_path / name)


# ---- files that declare a very large size


def sparse(path, size):
    with path.open("wb") as file:
        file.truncate(size)
    return path


def png_that_claims(path, width, height):
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    path.parent.mkdir(exist_ok=True)
    chunks = chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(bytes(10**6))), chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunks))
    return path


def gif_that_claims(path, width, height):
    write_gif(path, TRUTH)
    content = bytearray(path.read_bytes())
    content[6:10] = struct.pack("<HH", width, height)
    path.write_bytes(content)
    return path


def npz_that_claims(path, shape):
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": shape})
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("0.npy", header.getvalue() + bytes(10**6))
    return path


def zip_that_claims(path, size, name="pred.csv", content=b"id,"):
    """Return a zip archive whose directory declares this size for a member."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, content + bytes(10**6))
        archive.filelist[0].file_size = size
    return path


def bombs(folder):
    """Return files that declare gigabytes of content, by name. Each needs less than 2 MB on the disk."""
    head = ",".join(["id", *map(str, range(6144))]) + "\n"
    (folder / "header.csv").write_text(head)
    with (folder / "header.csv").open("ab") as file:
        file.truncate(10 * 10**9)
    sparse(folder / "zeros.csv", 10 * 10**9)
    sparse(folder / "zeros.txt", 10 * 10**9)
    sparse(folder / "zeros.pt", 10 * 10**9)
    sparse(folder / "zeros.safetensors", 10 * 10**9)
    png_that_claims(folder / "pictures" / "0.png", 60_000, 60_000)
    png_that_claims(folder / "medium" / "0.png", 10_000, 10_000)
    gif_that_claims(folder / "large.gif", 60_000, 60_000)
    npz_that_claims(folder / "array.npz", (5_000_000, 3, 100, 100))
    npz_that_claims(folder / "overflow.npz", (2**40, 2**40, 3, 2**40))
    zip_that_claims(folder / "submission.zip", 100 * 10**9)
    zip_that_claims(folder / "weights.pt", 100 * 10**9, "archive/data.pkl")
    return {
        "header.csv", "zeros.csv", "zeros.txt", "zeros.pt", "zeros.safetensors", "pictures", "medium", "large.gif",
        "array.npz", "overflow.npz", "submission.zip", "weights.pt",
    }  # fmt: skip


def data_set():
    tests = tuple(
        Clip(str(n), clip[0], torch.full_like(clip, 255), clip) for n, clip in enumerate(tensors(TRUTH))
    )
    empty = Video(torch.empty(0, 3, 32, 64, dtype=torch.uint8), torch.empty(0, 3, 32, 64, dtype=torch.uint8))
    return Dataset("class", empty, empty, tests)


def test_files_that_claim_gigabytes_are_refused_in_little_memory_and_time(tmp_path):
    """The files are read in a separate process with a file-size limit. The peak memory of this process is measured."""
    names = bombs(tmp_path)
    code = f"""
        import resource, sys, time
        from pathlib import Path
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        import test_grading
        from cvae_lab.teaching.grading import grade_class
        data = test_grading.data_set()
        before, begun = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
        table = grade_class(Path({str(tmp_path)!r}), data)
        after, took = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time() - begun
        table.to_csv({str(tmp_path / "table.out")!r})
        print((after - before) / 1024, took)
    """
    command = [sys.executable, "-W", "ignore", "-c", textwrap.dedent(code)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, timeout=120)
    assert done.returncode == 0, done.stderr
    table = pd.read_csv(tmp_path / "table.out").set_index("submission")
    assert set(table.index) == names
    assert table["fault"].notna().all()
    assert table["grade"].isna().all()
    megabytes, seconds = map(float, done.stdout.split()[-2:])
    assert megabytes < 200
    assert seconds < 20


def test_a_prediction_larger_than_the_limit_is_refused_while_it_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr("cvae_lab.teaching.grading.prediction_files.MAX_VALUES", 3 * 6144)
    for name, write in (WRITERS | SINGLE).items():
        if name not in ("later.csv", "usage.csv", "texts", "answers"):  # limited by their number of rows
            with pytest.raises(DataError, match="bytes of pixels"):
                read_clips(write(tmp_path / name, TRUTH), FRAMES)


# ---- grading of many submissions


class Evil:
    """Object that creates a file when it is unpickled."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


@pytest.fixture
def class_folder(tmp_path):
    """Return a folder with submissions of every kind, and the file that a harmful submission would create."""
    folder, marker = tmp_path / "class", tmp_path / "executed"
    folder.mkdir()
    write_csv(folder / "anna.csv", PREDICTION)
    write_texts(folder / "ben", PREDICTION)  # the same prediction in another format
    near = [clip.copy() for clip in PREDICTION]
    for clip in near:
        clip[:, ::7, ::5] += 1
    write_pngs(folder / "carla", near)
    write_npz(folder / "dora.npz", TRUTH)
    (folder / "emil").mkdir()
    write_csv(
        folder / "emil" / "submission.csv", [moving_square(3, 20, seed=5), moving_square(5, 20, seed=6)]
    )
    (folder / "emil" / "notes.txt").write_text("See the attached file.")
    with zipfile.ZipFile(folder / "finn.zip", "w") as archive:
        file = write_csv(tmp_path / "finn.csv", [moving_square(2, 9, seed=7), moving_square(4, 9, seed=8)])
        archive.write(file, "lab4/submission.csv")
        archive.writestr("__MACOSX/lab4/._submission.csv", b"\0")
    (folder / "gina.csv").write_text((folder / "anna.csv").read_text()[:90_000])
    np.savez(folder / "hugo.npz", **{"0": np.array([Evil(marker)], dtype=object)})
    torch.save({"state_dict": Evil(marker)}, folder / "ida.pt")
    (folder / "jan.pt").write_bytes(pickle.dumps(Evil(marker)))
    write_npz(folder / "kim.npz", [np.repeat(clip, 2, axis=1) for clip in TRUTH])
    (folder / "lea.csv").symlink_to(folder / "anna.csv")
    (folder / "max.txt").symlink_to(folder / "nowhere")
    os.mkfifo(folder / "nina.csv")  # reading from this pipe would never end
    return folder, marker


def test_a_class_is_graded_and_broken_submissions_are_reported(class_folder):
    folder, marker = class_folder
    lines = []
    table = grade_class(folder, data_set(), lines.append).set_index("submission")
    assert not marker.exists()
    assert len(lines) == len(table)
    assert set(table.index[table["fault"] == ""]) == {
        "anna.csv", "ben", "carla", "dora.npz", "emil/submission.csv", "finn.zip"
    }  # fmt: skip
    faults = table["fault"][table["fault"] != ""]
    for name, words in {
        "gina.csv": "columns", "hugo.npz": "Object arrays", "ida.pt": "could run code", "jan.pt": "not a checkpoint",
        "kim.npz": "64 x 64 pixels", "lea.csv": "a link", "max.txt": "a link",
    }.items():  # fmt: skip
        assert pd.Series([faults[name]]).str.contains(words)[0], (name, faults[name])
    assert table["grade"][faults.index].isna().all()


def test_scores_grades_and_baseline_of_a_class_are_those_of_numpy(class_folder):
    table = grade_class(class_folder[0], data_set()).set_index("submission")
    psnr = [np.mean(oracle(p[1:], t[1:])[0]) for p, t in zip(PREDICTION, TRUTH, strict=True)]
    for name in ("anna.csv", "ben"):
        assert table["mean PSNR"][name] == pytest.approx(np.mean(psnr), abs=1e-3)
    bands = {25: 100, 24: 90, 23: 80, 22: 70, 21: 60, 20: 50}  # grades of the assignment
    for value, grade in table.loc[table["fault"] == "", ["mean PSNR", "grade"]].to_numpy():
        assert grade == max([percent for bound, percent in bands.items() if value >= bound], default=0)
    static = [np.mean(oracle(t[:1].repeat(FRAMES - 1, 0), t[1:])[0]) for t in TRUTH]
    assert table["static baseline"].to_numpy() == pytest.approx(np.mean(static), abs=1e-3)
    assert table["mean PSNR"].dropna().is_monotonic_decreasing


def test_identical_and_nearly_identical_submissions_are_named_on_both_sides(class_folder):
    similar = grade_class(class_folder[0], data_set()).set_index("submission")["similar to"]
    assert "ben (identical)" in similar["anna.csv"]
    assert "anna.csv (identical)" in similar["ben"]
    assert "carla (" in similar["anna.csv"]
    assert "dB between them" in similar["carla"]
    assert not similar[["dora.npz", "finn.zip", "emil/submission.csv", "gina.csv"]].any()


def test_good_predictions_of_a_quiet_clip_are_not_taken_for_copies(tmp_path):
    """Both predictions have a PSNR of 40 dB, and their errors are independent."""
    for seed in (1, 2):
        random = np.random.default_rng(seed)
        errors = random.normal(0, 255 * 10 ** (-40 / 20), (2, *TRUTH[0].shape))
        noisy = [np.rint(np.clip(t + e, 0, 255)).astype(np.uint8) for t, e in zip(TRUTH, errors, strict=True)]
        write_npz(tmp_path / f"{seed}.npz", noisy)
    table = grade_class(tmp_path, data_set())
    assert table["mean PSNR"].min() > 39
    assert not table["similar to"].any()


def test_folders_of_single_students_are_graded_together(class_folder):
    folder, _ = class_folder
    paths = [folder / "ben", folder / "carla", folder / "dora.npz", folder / "emil"]
    names = set(grade_class(paths, data_set())["submission"])
    assert names == {str(folder / name) for name in ("ben", "carla", "dora.npz", "emil/submission.csv")}


@pytest.mark.parametrize("name", ["s4.csv", "s4.txt", "s4/0.png", "1.png", "s4_text.csv"])
def test_a_broken_submission_does_not_turn_the_class_into_one_submission(name, tmp_path):
    """Each of these names could be a part of a prediction in several files."""
    for student in range(3):
        write_csv(tmp_path / f"s{student}.csv", PREDICTION)
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("0.5 0.5" if "text" in name else "<html>Sign in</html>")
    table = grade_class(tmp_path, data_set()).set_index("submission")
    assert (table.loc[["s0.csv", "s1.csv", "s2.csv"], "fault"] == "").all()
    others = set(table.index) - {"s0.csv", "s1.csv", "s2.csv"}
    assert others == ({name.removesuffix("/0.png")} if name != "1.png" else set())
    assert table.loc[list(others), "fault"].str.len().gt(0).all()


def test_a_class_of_one_text_file_per_student_is_graded_file_by_file(tmp_path):
    folder = write_texts(tmp_path / "class", [PREDICTION[0], TRUTH[0]])
    data = data_set()
    table = grade_class(folder, Dataset("class", data.train, data.val, data.tests[:1]))
    assert table["submission"].tolist() == ["pred1.csv", "pred0.csv"]
    assert (table["fault"] == "").all()


@pytest.mark.parametrize(("bias", "level"), [(0.302, 0.302), (-1.7, 1 / (1 + np.exp(1.7)))])
def test_a_checkpoint_predicts_the_test_clips_with_the_activation_that_fits(bias, level, tmp_path):
    """The last layer outputs a constant. In the second case, a sigmoid of it is closer to the dark frames."""
    torch.manual_seed(0)
    model = CVAE(ModelConfig.preset("handout"))
    last = list(model.Generator)[-1]
    torch.nn.init.zeros_(last.weight)
    torch.nn.init.constant_(last.bias, bias)
    torch.save({"state_dict": model.state_dict(), "lr": 1e-3}, tmp_path / "epoch=6.ckpt")
    row = grade_class(tmp_path, data_set()).iloc[0]
    flat = np.full_like(TRUTH[0][1:], round(255 * level))
    assert row["fault"] == ""
    assert row["mean PSNR"] == pytest.approx(np.mean([oracle(flat, true[1:])[0] for true in TRUTH]), abs=1e-3)


def test_data_without_answers_are_refused(tmp_path):
    write_csv(tmp_path / "a.csv", TRUTH)
    data = data_set()
    unknown = tuple(Clip(clip.name, clip.first, clip.labels) for clip in data.tests)
    with pytest.raises(DataError, match="nothing can be graded"):
        grade_class(tmp_path, Dataset("class", data.train, data.val, unknown))


def test_a_folder_without_submissions_is_refused(tmp_path):
    (tmp_path / "readme.md").write_text("none")
    with pytest.raises(DataError, match="there is no submission in this folder"):
        grade_class(tmp_path, data_set())
    with pytest.raises(DataError, match="no such file"):
        grade_class(tmp_path / "nowhere", data_set())


@pytest.mark.parametrize("names", [[], ["a.csv", "b.csv"], ["inner.zip"]])
def test_a_zip_archive_holds_one_submission(names, tmp_path):
    file = write_csv(tmp_path / "pred.csv", TRUTH)
    (tmp_path / "class").mkdir()
    with zipfile.ZipFile(tmp_path / "class" / "a.zip", "w") as archive:
        for name in names:
            archive.write(file, name)
        archive.writestr("report.pdf", b"")
    (fault,) = grade_class(tmp_path / "class", data_set())["fault"]
    assert "must contain one submission" in fault
