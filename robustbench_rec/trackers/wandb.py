from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from robustbench_rec.errors import unknown
from robustbench_rec.trackers import trackers
from robustbench_rec.tracking import Tracker, package

MODES = ("online", "offline", "disabled")


@trackers.register
class WandB(Tracker):
    """Runs at Weights & Biases.

    project, entity: where they belong; entity null is your own. mode: online, offline (kept in the folder `wandb` of
    the run directory, for `wandb sync`) or disabled.
    """

    @dataclass
    class Config:
        project: str
        entity: str | None
        mode: str

    def __init__(self, config: Config) -> None:
        if config.mode not in MODES:
            raise unknown("mode of tracker 'wandb'", config.mode, MODES)
        self.config, self.wandb = config, package("wandb", "wandb")

    def start(self, out: Path, verb: str, settings: Mapping[str, str]) -> None:
        self.run = self.wandb.init(
            project=self.config.project,
            entity=self.config.entity,
            mode=self.config.mode,
            dir=str(out),
            name=f"{verb} {out.name}",
            job_type=verb,
            config=dict(settings),
            reinit="create_new",
        )

    def note(self, values: Mapping[str, float], step: int) -> None:
        self.run.log({f"epoch/{name}": value for name, value in values.items()}, step=step)

    def finish(self, metrics: Mapping[str, float] | None) -> None:
        self.run.summary.update(dict(metrics or {}))
        self.run.finish(exit_code=int(metrics is None))
