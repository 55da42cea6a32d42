import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from robustbench_rec.trackers import trackers
from robustbench_rec.tracking import Tracker, package

MOST = 100
"""Settings that a server takes at once."""
LONGEST = 500
"""Characters of a setting that every server takes."""


@trackers.register
class MLflow(Tracker):
    """Runs on an MLflow server, or in a database or folder of MLflow.

    uri: of the tracking server; null is MLFLOW_TRACKING_URI, else MLflow's own default. experiment: that the runs
    belong to. MLflow allows no @ in a name: ndcg@10 is there as ndcg_10.
    """

    @dataclass
    class Config:
        uri: str | None
        experiment: str

    def __init__(self, config: Config) -> None:
        self.config, self.mlflow = config, package("mlflow", "mlflow")

    def start(self, out: Path, verb: str, settings: Mapping[str, str]) -> None:
        self.client = self.mlflow.MlflowClient(tracking_uri=self.config.uri)
        found = self.client.get_experiment_by_name(self.config.experiment)
        new = found is None
        number = self.client.create_experiment(self.config.experiment) if new else found.experiment_id
        tags = {"verb": verb, "run directory": str(out)}
        self.run = self.client.create_run(number, run_name=f"{verb} {out.name}", tags=tags).info.run_id
        params = [self.mlflow.entities.Param(_name(key), each[:LONGEST]) for key, each in settings.items()]
        for first in range(0, len(params), MOST):
            self.client.log_batch(self.run, params=params[first : first + MOST])

    def note(self, values: Mapping[str, float], step: int) -> None:
        self._log({f"epoch/{name}": value for name, value in values.items()}, step)

    def finish(self, metrics: Mapping[str, float] | None) -> None:
        self._log(metrics or {}, 0)
        self.client.set_terminated(self.run, "FAILED" if metrics is None else "FINISHED")

    def _log(self, values: Mapping[str, float], step: int) -> None:
        from time import time

        now, metric = int(1000 * time()), self.mlflow.entities.Metric
        self.client.log_batch(self.run, metrics=[metric(_name(key), value, now, step) for key, value in values.items()])


def _name(key: str) -> str:
    return re.sub(r"[^\w\-. :/]", "_", key)
