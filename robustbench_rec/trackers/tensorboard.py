from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from robustbench_rec.trackers import trackers
from robustbench_rec.tracking import Tracker, package


@trackers.register
class TensorBoard(Tracker):
    """Event files for TensorBoard, in the folder `tensorboard` of the run directory.

    `tensorboard --logdir outputs` shows all runs: the epochs and the results as scalars, the settings as a text.
    """

    @dataclass
    class Config:
        pass

    def __init__(self, config: Config) -> None:
        package("tensorboard", "tensorboard")

    def start(self, out: Path, verb: str, settings: Mapping[str, str]) -> None:
        from torch.utils.tensorboard import SummaryWriter  # half a second, needed here only

        self.writer = SummaryWriter(str(out / "tensorboard"))
        rows = "\n".join(f"| {key} | {value.replace('|', '/')} |" for key, value in settings.items())
        self.writer.add_text("settings", f"| key | value |\n|---|---|\n{rows}")

    def note(self, values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            self.writer.add_scalar(f"epoch/{name}", value, step)
        self.writer.flush()

    def finish(self, metrics: Mapping[str, float] | None) -> None:
        for name, value in (metrics or {}).items():
            self.writer.add_scalar(f"result/{name}", value)
        self.writer.close()
