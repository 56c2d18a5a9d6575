"""Soak test: kill training, sweep, prediction and caching many times, and compare the results with runs without kills.

`python tests/soak.py --kills 100 --seed 0` first kills a process at every write of a run, when the file is complete but
still has its temporary name. It then sends SIGKILL, SIGTERM or SIGINT at random times. It prints counts, and exits with
1 if an activity failed or its result differs. Every process is a fork of this process, which has trained nothing.
"""

import argparse
import collections
import functools
import itertools
import json
import math
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
SECONDS = 300  # a process that runs longer is counted as hanging
TINY = {"epochs": 2, "eval_every": 1, "width": 8, "clips_per_epoch": 10, "precision": "float32"}
WORDS = [word for name, value in TINY.items() for word in ("-p", name, str(value))]


@dataclass(frozen=True)
class Activity:
    """A user's task: `run(folder)` does the task and returns an exit status; `read(folder)` returns the result."""

    run: callable
    read: callable


def write_data(root):
    """Write a part of the synthetic data set `tiny`: the first 64 training frames, and the first 12 of each clip."""
    main(["synthetic", str(root), "--size", "tiny"])
    for file in root.glob("**/*.png"):
        if int(file.stem) >= (64 if "train" in file.parent.name else 12):
            file.unlink()
    for file in root.glob("**/cuts.txt"):
        file.unlink()


def train(folder):
    if RunFolder(folder / "run").done:
        return 0
    return main(["train", str(folder / "run"), "--data", str(folder / "data"), *WORDS, "--resume"])


def sweep_two(folder):
    jobs = plan(str(folder / "data"), folder / "runs", {"a": {}, "b": {"kl_strategy": "none"}}, [0], TINY)
    return 0 if all(outcome.ok for outcome in sweep(None, jobs, workers=1)) else 1


def predict(folder):
    return main(
        ["predict", str(folder / "run"), "--data", str(folder / "data"), "--out", str(folder / "out")]
    )


def read_data(folder):
    """Load a data folder with the cache enabled, and write the loaded frames to a file."""
    os.environ["CVAE_LAB_CACHE"] = str(folder / "cache")
    data = load(str(folder / "data"))
    np.save(folder / "loaded.npy", data.train.frames.numpy())
    return 0


def of_run(run):
    """Return the results of a run, without times."""
    run = RunFolder(run)
    result = {
        name: value for name, value in run.result.items() if name not in ("minutes", "commit", "command")
    }
    history = run.history.drop(columns=["seconds", "frames_per_s"]).to_csv()
    pixels = {name: frames.tobytes() for name, frames in run.predictions().items()}
    weights = [
        torch.load(run.path / name, weights_only=True)["state_dict"] for name in ("best.pt", "last.pt")
    ]
    weights = [{name: tensor.numpy().tobytes() for name, tensor in values.items()} for values in weights]
    return json.dumps(result, sort_keys=True), history, pixels, weights


ACTIVITIES = {
    "training": Activity(train, lambda folder: of_run(folder / "run")),
    "sweep": Activity(sweep_two, lambda folder: [of_run(folder / "runs" / f"{name}-seed0") for name in "ab"]),
    "prediction": Activity(predict, lambda folder: (folder / "out" / "submission.csv").read_bytes()),
    "cache": Activity(read_data, lambda folder: (folder / "loaded.npy").read_bytes()),
}
FRACTIONS = {"training": 0.45, "prediction": 0.2, "cache": 0.25, "sweep": 0.1}
"""Probability of each activity in a cycle of random kills."""

WRITES = ("training", "cache", "prediction", "sweep")
"""Activities that are killed at every write."""


DIE_AT = """
import os
import signal
from pathlib import Path

replace = Path.replace

def replace_or_die(self, target):
    if ".tmp-" in self.name:
        file = os.open({counter!r}, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.write(file, b"x")
        size = os.fstat(file).st_size
        os.close(file)
        if size == {number}:
            os.killpg(0, signal.SIGKILL)
    return replace(self, target)

Path.replace = replace_or_die
"""


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
    except KeyboardInterrupt:  # raised before or after the part of the command line that handles it
        status = 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(status)


def waited(child):
    """Return the exit status of a process. If the process hangs, kill it and return None."""
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        found, status = os.waitpid(child, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None


def die_at(number, folder):
    """Return a function that kills the activity and all its processes at file write `number`.

    At this moment, the file is complete and has a temporary name. The workers of a sweep are other processes, so the
    patch is also in a module `sitecustomize`, which Python imports at start. A file counts the writes of all processes.
    """

    def prepare():
        modules = folder / "modules"
        modules.mkdir()
        code = DIE_AT.format(counter=str(folder / "writes"), number=number)
        (modules / "sitecustomize.py").write_text(code)
        os.environ["PYTHONPATH"] = os.pathsep.join([str(modules), os.environ.get("PYTHONPATH", "")])
        exec(compile(code, "sitecustomize.py", "exec"), {})

    return prepare


def prepared(name, out, label):
    """Create a folder in which the activity can run. It contains the data and, for `prediction`, a finished run."""
    folder = out / f"{name}-{label}"
    folder.mkdir()
    if name == "prediction":
        shutil.copytree(out / "training-whole" / "run", folder / "run")
    (folder / "data").symlink_to(out / "data")
    return folder


def outcome(name, folder, wanted):
    """Run the activity to its end and compare the result; return the outcome (such as `equal`) and details."""
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
    """Reference results, counts of outcomes, and descriptions of the errors."""

    def __init__(self, out, seed, log=lambda text: None):
        self.out, self.random, self.log = out, random.Random(seed), log
        self.wanted, self.seconds = {}, {}
        self.number = itertools.count(1)
        self.counts, self.faults = collections.Counter(), []
        write_data(out / "data")

    def reference(self, name):
        """Run an activity once without a kill, and store its result and duration."""
        if name in self.wanted:
            return
        if name == "prediction":
            self.reference("training")
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

    def random_cycle(self, name, kills):
        """Kill an activity one to three times at random times, then run it to its end; count the kills before that."""
        self.reference(name)
        folder = prepared(name, self.out, f"random-{next(self.number)}")
        count = 0
        for _ in range(min(kills, self.random.randint(1, 3))):
            begun = time.monotonic()
            child = forked(ACTIVITIES[name], folder)
            time.sleep(self.random.uniform(0, 1.05 * self.seconds[name]))
            sent = self.random.choice(SIGNALS)
            os.kill(child, sent)
            status = waited(child)
            self.counts[name, sent.name] += 1
            count += status != 0
            if status == 0:
                self.counts[name, "after the end"] += 1
                self.seconds[name] = min(self.seconds[name], time.monotonic() - begun)
                break
            if status not in (-sent, 1 if sent == signal.SIGINT else 128 + sent):
                text = (folder / "output.txt").read_text()[-1500:]
                self.counts[name, "traceback" if status is not None else "hang"] += 1
                self.faults.append(f"{name}: status {status} after {sent.name}: {text}")
            if name == "sweep":
                time.sleep(2)  # time for the workers to detect that the main process has ended
        self.finish(name, folder, count)
        return count

    def every_write(self, name):
        """For every write of the activity, start the activity and kill it at this write."""
        self.reference(name)
        for number in itertools.count(1):
            folder = prepared(name, self.out, f"write-{number}")
            status = waited(forked(ACTIVITIES[name], folder, die_at(number, folder)))
            if status == 0:
                self.log(f"{name}: {self.line(name)} (all of its {number - 1} writes)")
                return
            self.counts[name, "at a write"] += 1
            self.finish(name, folder, 1)

    def line(self, name):
        return ", ".join(f"{what} {count}" for (other, what), count in self.counts.items() if other == name)


def soak(out, kills, seed, log=lambda text: None, minutes=math.inf, fractions=FRACTIONS, writes=WRITES):
    """Kill activities at every write, then `kills` times at random moments, for about `minutes` minutes at most."""
    begun = time.monotonic()
    done = Soak(out, seed, log)
    for name in writes:
        done.every_write(name)
    left = kills
    while left and time.monotonic() - begun < 60 * minutes:
        (name,) = done.random.choices(list(fractions), list(fractions.values()))
        left -= done.random_cycle(name, left)
    for name in fractions:
        log(f"{name}: {done.line(name)}")
    return done


def summary(done):
    """Return the counts of all activities as text."""
    names = ("kills", "at a write", "after the end", "cycles", "equal", "different", "refused", "traceback", "hang",
             "temporary file left")  # fmt: skip
    sums = {name: sum(count for (_, what), count in done.counts.items() if what == name) for name in names}
    return "\n".join(f"{name:<20} {count:>5}" for name, count in sums.items())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--minutes", type=float, default=math.inf, help="no new cycle begins after this time")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--writes", nargs="*", default=WRITES, choices=WRITES, help="activities killed at every write"
    )
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        print_now = functools.partial(print, flush=True)
        done = soak(
            Path(folder), options.kills, options.seed, print_now, options.minutes, writes=options.writes
        )
    print(*done.faults, summary(done), sep="\n")  # noqa: T201
    sys.exit(bool(done.faults))
