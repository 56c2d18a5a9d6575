"""Kill training, sweep, prediction and cache again and again; each must end as if it had not been killed.

`python tests/soak.py --kills 100 --seed 0` sends SIGKILL, SIGTERM or SIGINT at random moments, then ends a process at
every write of a run, before and after the file gets its name. It prints counts and exits with 1 where something was
lost. Every process is a fork of this one, which has imported the libraries and trained nothing.
"""

import argparse
import collections
import itertools
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from cvae_lab.__main__ import main
from cvae_lab.data import load
from cvae_lab.data.files import TEMPORARY
from cvae_lab.runs.folder import RunFolder
from cvae_lab.runs.studies import plan
from cvae_lab.runs.sweep import sweep

SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
SECONDS = 300  # after which a process hangs
TINY = {"epochs": 2, "eval_every": 1, "width": 8, "clips_per_epoch": 10, "precision": "float32"}
WORDS = [word for name, value in TINY.items() for word in ("-p", name, str(value))]


@dataclass(frozen=True)
class Activity:
    """Something that a user runs: `run` into a folder, which returns an exit status, and what `read` finds there."""

    run: callable
    read: callable


def train(folder):
    return main(["train", str(folder / "run"), "--data", "tiny", *WORDS, "--resume"])


def sweep_two(folder):
    jobs = plan("tiny", folder / "runs", {"a": {}, "b": {"kl_strategy": "none"}}, [0], TINY)
    return 0 if all(outcome.ok for outcome in sweep(None, jobs, workers=1)) else 1


def predict(folder):
    return main(["predict", str(folder / "run"), "--data", "tiny", "--out", str(folder / "out")])


def read_data(folder):
    """Load a folder through the cache, and leave what was loaded as a file."""
    os.environ["CVAE_LAB_CACHE"] = str(folder / "cache")
    data = load(str(folder / "data"))
    np.save(folder / "loaded.npy", data.train.frames.numpy())
    return 0


def of_run(run):
    """What a run found, except times."""
    run = RunFolder(run)
    result = {name: value for name, value in run.result.items() if name not in ("minutes", "commit", "command")}
    history = run.history.drop(columns=["seconds", "frames_per_s"]).to_csv()
    pixels = {name: frames.tobytes() for name, frames in run.predictions().items()}
    weights = [torch.load(run.path / name, weights_only=True)["state_dict"] for name in ("best.pt", "last.pt")]
    weights = [{name: tensor.numpy().tobytes() for name, tensor in values.items()} for values in weights]
    return json.dumps(result, sort_keys=True), history, pixels, weights


ACTIVITIES = {
    "training": Activity(train, lambda folder: of_run(folder / "run")),
    "sweep": Activity(sweep_two, lambda folder: [of_run(folder / "runs" / f"{name}-seed0") for name in "ab"]),
    "prediction": Activity(predict, lambda folder: (folder / "out" / "submission.csv").read_bytes()),
    "cache": Activity(read_data, lambda folder: (folder / "loaded.npy").read_bytes()),
}
FRACTIONS = {"training": 0.45, "sweep": 0.1, "prediction": 0.2, "cache": 0.25}
"""Of the random kills, by activity."""


def forked(activity, folder, before=None):
    """Start the activity in a fork with its output in `folder`/output.txt; return the process number."""
    sys.stdout.flush()
    child = os.fork()
    if child:
        return child
    status = 99
    try:
        os.setsid()
        output = os.open(folder / "output.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.environ["CVAE_LAB_CACHE"] = str(folder.parent / "cache")
        if before:
            before()
        status = activity.run(folder)
    except KeyboardInterrupt:  # before or after the command line's own handling
        status = 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(status)


def waited(child):
    """The exit status of a process, or None where it hangs, after which it is ended."""
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        found, status = os.waitpid(child, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None


def die_at(number, moment):
    """End this process without clean-up at its `number`-th write: `before` or `after` the file gets its name."""
    replace, count = Path.replace, itertools.count(1)

    def replace_or_die(self, target):
        this = next(count)
        if this == number and moment == "before":
            os._exit(9)
        replace(self, target)
        if this == number:
            os._exit(9)

    def prepare():
        Path.replace = replace_or_die

    return prepare


def prepared(name, out, label):
    """A folder in which the activity can run: for `prediction` with a finished run, for `cache` with data."""
    folder = out / f"{name}-{label}"
    folder.mkdir()
    if name == "prediction":
        shutil.copytree(out / "training-whole" / "run", folder / "run")
    if name == "cache":
        (folder / "data").symlink_to(out / "data")
    return folder


def outcome(name, folder, wanted):
    """Run to the end and compare: `equal`, or what is wrong."""
    activity = ACTIVITIES[name]
    status = waited(forked(activity, folder))
    text = (folder / "output.txt").read_text()
    if status is None:
        return "hang", text[-500:]
    if "Traceback" in text or status == 99:
        return "traceback", text[-1500:]
    if status:
        return "refused", text[-500:]
    left = [path for path in folder.glob("**/.*") if TEMPORARY.fullmatch(path.name)]
    if left:
        return "temporary file left", str(left)
    return ("equal", "") if activity.read(folder) == wanted else ("different", str(folder))


class Soak:
    """The reference results, the counts, and what went wrong."""

    def __init__(self, out, seed, log=lambda text: None):
        self.out, self.random, self.log = out, random.Random(seed), log
        self.wanted, self.seconds = {}, {}
        self.counts, self.faults = collections.Counter(), []

    def reference(self, name):
        """Run an activity without a kill, once."""
        if name in self.wanted:
            return
        if name == "prediction":
            self.reference("training")
        if name == "cache" and not (self.out / "data").exists():
            main(["synthetic", str(self.out / "data"), "--size", "tiny"])
        folder = prepared(name, self.out, "whole")
        begun = time.monotonic()
        status = waited(forked(ACTIVITIES[name], folder))
        assert status == 0, (folder / "output.txt").read_text()
        self.seconds[name] = time.monotonic() - begun
        self.wanted[name] = ACTIVITIES[name].read(folder)

    def finish(self, name, folder, kills):
        found, what = outcome(name, folder, self.wanted[name])
        self.counts[name, "cycles"] += 1
        self.counts[name, "kills"] += kills
        self.counts[name, found] += 1
        if what:
            self.faults.append(f"{found} ({folder.name}): {what}")
        else:
            shutil.rmtree(folder)

    def random_kills(self, name, kills):
        """Cycles of one to three kills at random moments, each cycle then run to its end."""
        self.reference(name)
        done = cycle = 0
        while done < kills:
            folder, cycle = prepared(name, self.out, f"random-{cycle}"), cycle + 1
            count = min(kills - done, self.random.randint(1, 3))
            for _ in range(count):
                child = forked(ACTIVITIES[name], folder)
                time.sleep(self.random.uniform(0, 1.05 * self.seconds[name]))
                number = self.random.choice(SIGNALS)
                os.kill(child, number)
                status = waited(child)
                self.counts[name, number.name] += 1
                if status == 0:
                    self.counts[name, "after the end"] += 1
                elif status not in (-number, 1 if number == signal.SIGINT else 128 + number):
                    text = (folder / "output.txt").read_text()[-1500:]
                    self.counts[name, "traceback" if status is not None else "hang"] += 1
                    self.faults.append(f"{name}: status {status} after {number.name}: {text}")
                if name == "sweep":
                    time.sleep(2)  # its workers notice that it is gone
            done += count
            self.finish(name, folder, count)
        self.log(f"{name}: {self._line(name)}")

    def every_write(self, name):
        """End the activity at each of its writes in turn, before and after the file gets its name."""
        self.reference(name)
        for number in itertools.count(1):
            for moment in ("before", "after"):
                folder = prepared(name, self.out, f"write-{number}-{moment}")
                status = waited(forked(ACTIVITIES[name], folder, die_at(number, moment)))
                if status == 0:
                    self.log(f"{name}: {self._line(name)} (with {number - 1} writes, twice each)")
                    return
                self.counts[name, "at a write"] += 1
                self.finish(name, folder, 1)

    def _line(self, name):
        return ", ".join(f"{what} {count}" for (other, what), count in self.counts.items() if other == name)


def soak(out, kills, seed, log, fractions=FRACTIONS, writes=("training", "prediction", "cache")):
    """Return a Soak after `kills` random kills and one kill at every write."""
    done = Soak(out, seed, log)
    for name in writes:
        done.every_write(name)
    for name, fraction in fractions.items():
        if round(kills * fraction):
            done.random_kills(name, round(kills * fraction))
    return done


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        done = soak(Path(folder), options.kills, options.seed, lambda text: print(text, flush=True))
    print(*done.faults, sep="\n")
    for what in ("kills", "at a write", "cycles", "equal", "different", "refused", "traceback", "hang",
                 "temporary file left", "after the end"):  # fmt: skip
        print(f"{what:<20} {sum(count for (_, name), count in done.counts.items() if name == what):>5}")
    sys.exit(bool(done.faults))
