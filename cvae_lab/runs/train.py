"""One run without a notebook, in one process or, under torchrun, in several."""

from pathlib import Path

from cvae_lab.config import RunConfig
from cvae_lab.data import load
from cvae_lab.runs.folder import RunError, RunFolder
from cvae_lab.training import distributed, fit
from cvae_lab.training.progress import reporter


def train_run(
    path: Path, config: RunConfig, resume: bool = False, tensorboard: bool = False, pictures: bool = True
) -> None:
    """Train and score a run and write its folder. Every rank trains; rank 0 alone writes and prints.

    Args:
        resume: continue from last.pt.
        pictures: as in `RunFolder.finish`.
    """
    run = RunFolder(path)
    if not resume and (run.done or (path / "last.pt").exists()):
        raise RunError(f"{path} holds a run already; give --resume to go on with it, or another folder.")
    if run.done and not run.config.difference(config, ignore=("threads",)):
        raise RunError(
            f"{path} is done; ask for more epochs or minutes to go on with it, or for another folder."
        )
    data = load(config.data, progress=distributed.rank() == 0)
    state = run.begin(config)
    if distributed.rank():
        for _ in fit(state, data, config.train):
            pass
        return
    with reporter(path, tensorboard=tensorboard) as report:
        for record in fit(state, data, config.train, report.step):
            run.log(state, config)
            report.epoch(record)
    result = run.finish(config, data, pictures=pictures)
    report.say(f"{result['psnr_mean']:.2f} dB on {result['scored_on']} clips")
    report.say(f"{result['baseline_static']:.2f} dB for a static baseline")
    report.say(f"Wrote {path}.")
