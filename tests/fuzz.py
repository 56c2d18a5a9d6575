"""Fuzzer: test random external inputs of every kind. Each must be used correctly or refused with a message of one line.

`python tests/fuzz.py --examples 10000 --seed 0` prints counts by kind of input and outcome. It exits with 1 if an input
caused a traceback, a hang or a silently wrong value. Inputs are generated, and no harmful input is stored.
"""

import argparse
import ast
import collections
import contextlib
import copy
import io
import logging
import math
import os
import shutil
import signal
import sys
import tempfile
import time
import traceback
import zlib
from pathlib import Path

import numpy as np
import torch
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from PIL import Image

from cvae_lab.config import RunConfig, parameters
from cvae_lab.data import course_csv, read_folder
from cvae_lab.data.pixels import Group, decode
from cvae_lab.runs.commands import values
from cvae_lab.runs.folder import RunFolder, find_runs, train_run
from cvae_lab.runs.result import RunError
from cvae_lab.runs.tables import runs_table, terminal
from cvae_lab.training import checkpoint

OUTCOMES = ("success", "clean refusal", "traceback", "hang", "silently wrong")
SECONDS = 30  # time limit of one input
SMALL = {"epochs": 1, "width": 8, "clips_per_epoch": 10, "precision": "float32"}


class WrongError(AssertionError):
    """Error: an input was accepted, but it gave a wrong value."""


class HangError(BaseException):
    """Error: the check of an input took longer than SECONDS."""


def require(condition, what):
    if not condition:
        raise WrongError(what)


def edits(maximum=3, minimum=1):
    """Hypothesis strategy for random changes of bytes: kind, position as a fraction of the length, and data."""
    place = st.floats(0, 1, exclude_max=True)
    kinds = st.sampled_from(["replace", "insert", "delete", "flip", "cut"])
    return st.lists(
        st.tuples(kinds, place, st.binary(min_size=1, max_size=12)), min_size=minimum, max_size=maximum
    )


def edited(content, changes):
    content = bytearray(content)
    for kind, place, data in changes:
        start = int(place * len(content))
        if kind == "flip" and content:
            content[start] ^= 1 << (data[0] % 8)
        elif kind == "cut":
            del content[start:]
        elif kind in ("replace", "insert", "delete"):
            stop = start + (0 if kind == "insert" else len(data))
            content[start:stop] = b"" if kind == "delete" else data
    return bytes(content)


# -- values of parameters ------------------------------------------------------------------------------------

NAMES = sorted({"preset"} | {parameter.name for parameter in parameters()})
LITERALS = st.recursive(
    st.integers()
    | st.floats()
    | st.booleans()
    | st.none()
    | st.text(max_size=5)
    | st.sampled_from([10**30, -(10**30), 1e308, -1e308, math.nan, math.inf, 0, -1, 1, 0.5]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.tuples(inner) | st.dictionaries(st.text(max_size=2), inner)
    ),
    max_leaves=4,
)
CHOICES = st.sampled_from(sorted({str(choice) for parameter in parameters() for choice in parameter.choices}))
VALUES = (
    LITERALS.map(repr) | CHOICES | st.text(max_size=20) | st.sampled_from(["{[]:1}", "(" * 300, "1" * 5000])
)


def fuzz_values(folder):
    def check(pairs):
        params = values(pairs, ())
        config = RunConfig.from_params("tiny", **params)
        require(RunConfig.from_json(config.to_json()) == config, "another configuration after a round trip")
        for name, text in dict(pairs).items():
            found = config.model.name if name == "preset" else getattr(config.train, name, None)
            found = getattr(config.model, name, found)
            with contextlib.suppress(ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
                wanted = ast.literal_eval(text)
                wanted = tuple(wanted) if isinstance(wanted, list) else wanted
                require(name == "output" or found == wanted, f"{name} = {found!r} from {text!r}")

    return check, {"pairs": st.lists(st.tuples(st.sampled_from(NAMES), VALUES), min_size=1, max_size=2)}


# -- pictures ------------------------------------------------------------------------------------------------


def picture_bytes(mode):
    pixels = np.random.default_rng(0).integers(0, 256, (32, 64, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(stream, "PNG")
    return stream.getvalue()


def chunks_are_sound(content):
    """Return whether the checksum of every chunk of a PNG is correct. This check does not use Pillow."""
    place = 8
    while place + 12 <= len(content):
        size = int.from_bytes(content[place : place + 4], "big")
        body, kind = content[place + 4 : place + 8 + size], content[place + 4 : place + 8]
        check = content[place + 8 + size : place + 12 + size]
        if len(check) < 4 or int.from_bytes(check, "big") != zlib.crc32(body):
            return False
        if kind == b"IEND":
            return True
        place += 12 + size
    return False


def fuzz_pictures(folder):
    contents = [picture_bytes(mode) for mode in ("RGB", "P", "L", "RGBA")]
    file = folder / "7.png"
    originals = []
    for content in contents:
        file.write_bytes(content)
        originals.append(decode([Group([file], False)], (32, 64)).pixels)

    def check(index, changes):
        content = edited(contents[index], changes)
        file.write_bytes(content)
        pixels = decode([Group([file], False)], (32, 64)).pixels
        same = torch.equal(pixels, originals[index])
        require(same or chunks_are_sound(content), "other pixels from a file whose check values are wrong")

    return check, {"index": st.integers(0, len(contents) - 1), "changes": edits(minimum=0)}


# -- text files of the course --------------------------------------------------------------------------------

PIECES = st.sampled_from([b",", b"\n", b"nan", b"-", b"e", b"\0", b"\xff", b" ", b"1e999", b'"', b"300", b""])


def fuzz_csv(folder):
    clip = torch.randint(256, (2, 3, 32, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    course_csv.write_submission(folder / "s.csv", [clip.float() / 255])
    course_csv.write_2023(folder / "GT0.csv", clip.float() / 255)
    contents = {name: (folder / name).read_bytes() for name in ("s.csv", "GT0.csv")}

    def check(name, place, piece):
        content = bytearray(contents[name])
        at = int(place * len(content))
        content[at : at + 1] = piece
        (folder / name).write_bytes(content)
        if name == "GT0.csv":
            frames = course_csv.read_2023(folder / name, 2)
        else:
            (frames,) = course_csv.read_submission(folder / name, 2)
        require(int((frames != clip).sum()) <= 1, "more than the edited value changed")

    places = st.floats(0, 1, exclude_max=True)
    return check, {"name": st.sampled_from(["s.csv", "GT0.csv"]), "place": places, "piece": PIECES}


# -- data folders --------------------------------------------------------------------------------------------


def write_data(root):
    """Write the data folders of the course. Picture k has grey level k, and its label has grey level k + 100."""
    counts = {"train/train": 20, "val/val": 4}
    folders = {f"{part}_img": (count, 0) for part, count in counts.items()}
    folders |= {f"{part}_label": (count, 100) for part, count in counts.items()}
    folders |= {"test/test_img/0": (1, 0), "test/test_label/0": (3, 100)}
    for name, (count, base) in folders.items():
        (root / name).mkdir(parents=True)
        for k in range(count):
            pixels = np.full((32, 64, 3), base + k, np.uint8)
            Image.fromarray(pixels).save(root / name / f"{k}.png", compress_level=1)


def spoil(path, kind, data):
    """Damage one file. Such damage is typical after a folder was copied, unpacked or edited."""
    if kind == "remove":
        path.unlink()
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "noise":
        path.write_bytes(data)
    elif kind == "folder":
        path.unlink()
        path.mkdir()
    elif kind == "fifo":
        path.unlink()
        os.mkfifo(path)
    elif kind == "loop":
        path.unlink()
        path.symlink_to(path.name)
    elif kind == "double":
        shutil.copyfile(path, path.with_name(f"0{path.name}"))
    elif kind == "other number":
        path.rename(path.with_name(f"{data[0]}.png"))
    elif kind == "copy name":
        path.rename(path.with_name(f"{path.stem} (1).png"))
    elif kind == "system file":
        (path.parent / f"._{path.name}").write_bytes(data)
    elif kind == "other size":
        Image.new("RGB", (data[0] + 1, 32)).save(path)
    elif kind == "parent":
        shutil.rmtree(path.parent)


KINDS = ("remove", "empty", "noise", "folder", "fifo", "loop", "double", "other number", "copy name", "system file",
         "other size", "parent")  # fmt: skip


def fuzz_folders(folder):
    write_data(folder / "sound")

    def check(changes):
        root = folder / "data"
        shutil.rmtree(root, ignore_errors=True)
        shutil.copytree(folder / "sound", root)
        for place, kind, data in changes:
            files = sorted(path for path in root.glob("**/*.png") if path.is_file())
            spoil(files[int(place * len(files))], kind, data)
        data = read_folder(root, progress=False)
        kinds = {kind for _, kind, _ in changes}
        if kinds <= {"double", "other number", "copy name", "other size"} and kinds & {
            "other size",
            "double",
        }:
            return  # a picture was renamed or replaced, so its grey level is no longer its number
        for video in (data.train, data.val):
            frames, labels = (part[:, 0, 0, 0].int() for part in (video.frames, video.labels))
            pairs = (labels - frames).tolist()
            renamed = kinds & {"other number", "other size", "double"}
            require(renamed or set(pairs) <= {100}, f"frames and labels are paired wrongly: {pairs}")

    places = st.floats(0, 1, exclude_max=True)
    change = st.tuples(places, st.sampled_from(KINDS), st.binary(min_size=1, max_size=40))
    return check, {"changes": st.lists(change, min_size=1, max_size=2)}


# -- checkpoints ---------------------------------------------------------------------------------------------


def small_run(folder):
    train_run(folder, RunConfig.from_params("tiny", **SMALL), pictures=False)
    return RunFolder(folder)


def fuzz_checkpoints(folder):
    run = small_run(folder / "run")
    config = run.config
    content = (run.path / "last.pt").read_bytes()
    raw = torch.load(run.path / "last.pt", weights_only=True)
    file = folder / "last.pt"

    def weights_of(path):
        return [checkpoint.load_model(path).state_dict(), checkpoint.resume(path, config).model.state_dict()]

    sound = weights_of(run.path / "last.pt")

    def check(changes, keys, value):
        if changes:
            file.write_bytes(edited(content, changes))
        else:
            torch.save(replaced(raw, keys, value), file)
        for found, wanted in zip(weights_of(file), sound, strict=True):
            same = all(torch.equal(found[name], wanted[name]) for name in wanted)
            finite = all(bool(tensor.isfinite().all()) for tensor in found.values())
            touched = not changes and any(key in ("state_dict", "average") for key in keys_of(raw, keys))
            require(same or (touched and finite), "other weights from a damaged file")

    small = st.integers() | st.floats() | st.none() | st.text(max_size=5) | st.booleans()
    anything = (
        small | st.lists(small, max_size=2) | st.just({}) | st.sampled_from([torch.zeros(2), torch.ones(())])
    )
    numbers = st.lists(st.integers(0, 10**6), min_size=1, max_size=4)
    return check, {"changes": st.just([]) | edits(), "keys": numbers, "value": anything}


def keys_of(raw, numbers):
    """Return a path of keys in nested dicts and lists. Each number selects the key of one level."""
    path = []
    for number in numbers:
        options = (
            list(raw) if isinstance(raw, dict) else list(range(len(raw))) if isinstance(raw, list) else []
        )
        if not options:
            break
        path.append(options[number % len(options)])
        raw = raw[path[-1]]
    return path


def replaced(raw, numbers, value):
    changed = inner = copy.copy(raw)
    path = keys_of(raw, numbers)
    for key in path[:-1]:
        inner[key] = copy.copy(inner[key])
        inner = inner[key]
    inner[path[-1]] = value
    return changed


# -- run folders ---------------------------------------------------------------------------------------------


def fuzz_runs(folder):
    sound = small_run(folder / "runs" / "sound-seed0")
    other = folder / "runs" / "damaged-seed0"
    names = ["result.json", "config.json", "history.csv", "psnr_per_frame.csv", "predictions.npz"]
    wanted = {name: frames.copy() for name, frames in sound.predictions().items()}

    def check(name, changes):
        shutil.rmtree(other, ignore_errors=True)
        shutil.copytree(sound.path, other)
        (other / name).write_bytes(edited((other / name).read_bytes(), changes))
        runs = find_runs(folder / "runs")
        require(sound.path in {run.path for run in runs}, "the sound run is missing")
        terminal(runs_table(runs))
        for run in runs:
            _ = run.psnr
            same = all(np.array_equal(frames, wanted.get(clip)) for clip, frames in run.predictions().items())
            require(same, "other pixels from a damaged file")
        if len(runs) == 1:
            # The damaged run was left out, so reading it must raise an error with a message of one line.
            RunFolder(other).check()

    return check, {"name": st.sampled_from(names), "changes": edits()}


FUZZERS = {
    "values": (fuzz_values, 0.30),
    "pictures": (fuzz_pictures, 0.25),
    "CSVs": (fuzz_csv, 0.15),
    "folders": (fuzz_folders, 0.05),
    "checkpoints": (fuzz_checkpoints, 0.15),
    "run folders": (fuzz_runs, 0.10),
}
"""For each kind of input: the function that makes its check, and its fraction of the examples."""


def outcome(check, inputs):
    """Run one check; return its outcome and, if it failed, a description of the failure."""

    def alarm(*_):
        raise HangError

    signal.signal(signal.SIGALRM, alarm)
    signal.alarm(SECONDS)
    try:
        check(**inputs)
        return "success", ""
    except WrongError as error:
        return "silently wrong", str(error)
    except HangError:
        return "hang", f"more than {SECONDS} s"
    except (ValueError, RunError) as error:
        if type(error).__module__.startswith("cvae_lab") and "\n" not in str(error).strip() and str(error):
            return "clean refusal", ""
        return "traceback", traceback.format_exc()
    except Exception:
        return "traceback", traceback.format_exc()
    finally:
        signal.alarm(0)


def fuzz(examples, start=0, kinds=tuple(FUZZERS), log=lambda text: None):
    """Run `examples` checks; return counts by kind of input and outcome, and the first failures as text."""
    counts, faults = {kind: collections.Counter() for kind in kinds}, []
    for number, kind in enumerate(kinds):
        make, fraction = FUZZERS[kind]
        with tempfile.TemporaryDirectory() as folder:
            check, strategies = make(Path(folder))

            def one(kind=kind, check=check, **inputs):
                found, what = outcome(check, inputs)
                counts[kind][found] += 1
                if what and len(faults) < 20:
                    faults.append(f"{found} ({kind}) for {inputs!r:.300}: {what}")

            options = settings(
                max_examples=max(1, round(examples * fraction)), deadline=None, database=None,
                phases=[Phase.generate], suppress_health_check=list(HealthCheck),
            )  # fmt: skip
            begun = time.monotonic()
            _run(one, strategies, options, start + number)
            log(f"{kind:<12} {dict(counts[kind])} in {time.monotonic() - begun:.0f} s")
    return counts, faults


def _run(one, strategies, options, start):
    @seed(start)
    @options
    @given(data=st.fixed_dictionaries(strategies))
    def test(data):
        one(**data)

    test()


def table(counts):
    """Return the counts as text, with one row per kind of input and one column per outcome."""
    lines = [f"{'':<14}" + "".join(f"{name:>16}" for name in OUTCOMES)]
    total = collections.Counter()
    for kind, found in counts.items():
        total.update(found)
        lines.append(f"{kind:<14}" + "".join(f"{found[name]:>16}" for name in OUTCOMES))
    lines.append(f"{'all':<14}" + "".join(f"{total[name]:>16}" for name in OUTCOMES))
    return "\n".join(lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--examples", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", nargs="+", default=list(FUZZERS), choices=list(FUZZERS))
    options = parser.parse_args()
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    found, faults = fuzz(options.examples, options.seed, options.kinds, lambda text: print(text, flush=True))  # noqa: T201
    print(*faults, table(found), sep="\n")  # noqa: T201
    sys.exit(bool(faults))
