"""Commands that train: `train`, `sweep` and `study`."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cvae_lab.runs.commands import DATA, SCHEDULER, WORKERS, Add, add_parameters, log_line, values
from cvae_lab.schedules import KL_STRATEGIES

STRATEGIES = ["cyclical", "monotonic", "none", "constant"]  # default of `sweep --strategies`
STUDIES = ["reference", "strategies", "ablation", "minutes", "initial-weights", "latent", "handout"]


def add_commands(add: Add) -> None:
    _add_train(add)
    _add_sweep(add)
    _add_study(add)


def _add_train(add: Add) -> None:
    train = add(
        "train", "train one model, without executing a notebook",
        "runs/mine --data tiny -p epochs 3", "runs/mine --data tiny -p epochs 6 --resume",
    )  # fmt: skip
    train.add_argument("run_dir", type=Path, metavar="RUN", help="folder of the run")
    train.add_argument("--data", default="small", help=DATA)
    train.add_argument(
        "--minutes", type=float, help="time limit in minutes; default: no limit, train for `epochs` epochs"
    )
    train.add_argument("--resume", action="store_true", help="continue the run from RUN/last.pt")
    train.add_argument("--tensorboard", action="store_true", help="also write event files for TensorBoard")
    add_parameters(train)


def _add_sweep(add: Add) -> None:
    sweep = add(
        "sweep", "train every strategy with every seed, by executing notebook 03 with papermill",
        "--out runs/first -p minutes 4", "--strategies cyclical constant --seeds 0 1 2 --out runs/seeds",
    )  # fmt: skip
    sweep.add_argument("--data", default="small", help=DATA)
    sweep.add_argument("--out", type=Path, default=Path("runs"), help="parent folder of the run folders")
    sweep.add_argument(
        "--strategies", nargs="+", default=STRATEGIES, choices=[*KL_STRATEGIES, "stages"], metavar="STRATEGY",
        help=f"KL strategies: {', '.join(KL_STRATEGIES)}, stages",
    )  # fmt: skip
    sweep.add_argument("--seeds", nargs="+", type=int, default=[0], metavar="SEED", help="seeds of the runs")
    sweep.add_argument("--workers", type=int, default=0, help=WORKERS)
    sweep.add_argument("--scheduler", help=SCHEDULER)
    add_parameters(sweep)


def _add_study(add: Add) -> None:
    study = add(
        "study", "train every variant of a study with every seed",
        "ablation --out runs/ablation", "ablation --variants base no-noise --seeds 0 --out runs/noise",
        "initial-weights --data FOLDER --out runs/initial",
    )  # fmt: skip
    study.add_argument("name", choices=STUDIES, metavar="STUDY", help=", ".join(STUDIES))
    text = "folder of the run folders; required, no default"
    study.add_argument("--out", type=Path, required=True, help=text)
    study.add_argument("--data", default="", help=f"{DATA}; default: the data of the study")
    study.add_argument("--workers", type=int, default=0, help=WORKERS)
    study.add_argument("--scheduler", help=SCHEDULER)
    study.add_argument("--seeds", nargs="+", type=int, metavar="SEED", help="default: seeds of the study")
    study.add_argument("--variants", nargs="+", metavar="VARIANT", help="default: all variants of the study")
    add_parameters(study)


def train(options: argparse.Namespace) -> None:
    from cvae_lab.config import RunConfig
    from cvae_lab.runs.folder import train_run
    from cvae_lab.training import distributed

    given = values(options.params)
    if options.minutes:
        given["minutes"] = options.minutes
    config = RunConfig.from_params(options.data, **given)
    with distributed.process_group():
        train_run(options.run_dir, config, options.resume, options.tensorboard)


def sweep(options: argparse.Namespace) -> int:
    from cvae_lab.runs.sweep import template

    variants = {name: {"kl_strategy": name} for name in options.strategies}
    # kl_target is reserved, because a controller would then set the KL weight and the strategy would have no effect.
    given = values(options.params, ("data", "seed", "kl_strategy", "kl_target", "protocol"))
    return _run_all(template(), options, options.data, variants, options.seeds, given)


def study(options: argparse.Namespace) -> int:
    from cvae_lab.config import ConfigError
    from cvae_lab.runs.studies import STUDIES

    chosen = STUDIES[options.name]
    wanted = options.variants or list(chosen.variants)
    if unknown := [name for name in wanted if name not in chosen.variants]:
        raise ConfigError(
            f"study {options.name} has no variant {unknown[0]!r}; it has {', '.join(chosen.variants)}."
        )
    print(chosen.about)
    given = chosen.base | values(options.params, ("data", "seed"))
    variants = {name: chosen.variants[name] for name in wanted}
    return _run_all(
        None, options, options.data or chosen.data, variants, options.seeds or chosen.seeds, given
    )


def _run_all(
    template: Path | None,
    options: argparse.Namespace,
    data: str,
    variants: dict[str, dict[str, Any]],
    seeds: Sequence[int],
    params: dict[str, Any],
) -> int:
    from cvae_lab.data import load
    from cvae_lab.runs.studies import plan
    from cvae_lab.runs.sweep import sweep

    jobs = plan(data, options.out, variants, seeds, params)
    # Load the data once before the workers start. This fills the cache, and an error in the folder is raised here.
    load(data, required=("train",), height=params.get("height", 32))
    print(f"{len(jobs)} runs to {options.out}", flush=True)
    failed = 0
    log = log_line
    for count, outcome in enumerate(sweep(template, jobs, options.workers, options.scheduler, log), 1):
        failed += not outcome.ok
        state = outcome.message if outcome.ok else f"FAILED: {outcome.message}"
        took = f" ({outcome.minutes:.1f} min)" if outcome.minutes else ""
        log(f"[{count}/{len(jobs)}] {Path(outcome.run_dir).name}: {state}{took}")
    return 1 if failed else 0
