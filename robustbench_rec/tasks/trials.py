"""Attacks run one after the other on one model, each kept until all are done."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from torch import Tensor

from robustbench_rec.attack import Member
from robustbench_rec.config import RESUMABLE_WITH, Attack
from robustbench_rec.errors import RrecError, unknown
from robustbench_rec.evaluation import Evaluator, Result
from robustbench_rec.evaluation.base import Predicted, Shown
from robustbench_rec.evaluation.worst import attacked, judged
from robustbench_rec.files import write_text
from robustbench_rec.goal import Goal
from robustbench_rec.goals import goals
from robustbench_rec.progress import Bar
from robustbench_rec.rewording import Reworded
from robustbench_rec.savepoint import load_state, save_state
from robustbench_rec.shifted import Shifted
from robustbench_rec.tasks.journal import Journal
from robustbench_rec.trainer import RESUME

LABELS = ("true", "own")
Trial = tuple[Result, dict[str, float]]  # what an attack left, and its budget


def labelled(cfg: Attack) -> None:
    """RrecError where the config names no labels that there are, or a model's own where these decide nothing."""
    if cfg.labels not in LABELS:
        raise unknown("labels", cfg.labels, LABELS)
    if cfg.labels == "own" and cfg.protocol == "ratings":
        raise RrecError(
            "labels=own with protocol=ratings: a score above 0 says what is relevant, not how it is rated; "
            "take labels=true"
        )
    if cfg.labels == "own" and goals[cfg.goal["name"]].aims is not Goal.aims:
        raise RrecError(
            f"labels=own with goal={cfg.goal['name']}: it is about its targets, whatever is relevant; take labels=true"
        )


@dataclass
class Trials:
    """Runs the members of an attack; what is done, and what one was told so far, is kept in `out/resume` until all are.

    digests: of the tensors of the models that are attacked. about: what else is told of the run; what was kept is taken
    up where these and the config agree. state: what the model that is attacked is called, where there are several of
    it. first: how many attacks on others come before.
    """

    cfg: Attack
    out: Path
    judging: Evaluator[Any]
    at: Shifted
    goal: Goal
    digests: Sequence[str]
    about: Mapping[str, Any]
    state: str = ""
    first: int = 0

    def run(self, chosen: Sequence[Member], bar: Bar) -> list[Trial]:
        found = []
        for number, member in enumerate(chosen):
            path = self.out / RESUME / f"{self.state}{member.name or 'attack'}.safetensors"
            trial = self._kept(path) or self._tried(path, self.first + number, member, bar)
            if not self.state and len(chosen) > 1:
                name, value = next(iter(trial[0].metrics.items()))
                bar.note(number, f"{member.name}: {name} {value:.4f}")
            found.append(trial)
        return found

    def finish(self) -> None:
        """Drop what was kept."""
        folder = self.out / RESUME
        for each in folder.glob("*"):
            each.unlink()
        if folder.is_dir():
            folder.rmdir()

    def _tried(self, path: Path, number: int, member: Member, bar: Bar) -> Trial:
        journal = Journal(path.with_suffix(".told"), self._identity(), self.judging.data.train.users.device)
        passes = iter(bar.each(number, range(self.judging.passes(member.attack, self.cfg.part))))
        moved, budget = attacked(
            self.judging,
            self.at,
            member,
            self.cfg.part,
            self.goal,
            self.cfg.loss,
            own_labels=self.cfg.labels == "own",
            on_pass=lambda: next(passes, None),
            keeper=journal,
        )
        point = None if isinstance(moved[0], Tensor) else moved[0][0]
        if isinstance(point, Reworded):
            write_text(self.out / "texts.csv", point.frame.to_csv(index=False))
        trial = judged(self.judging, moved, self.cfg.part, self.goal), budget
        self._keep(path, trial)
        journal.drop()
        return trial

    def _keep(self, path: Path, trial: Trial) -> None:
        path.parent.mkdir(exist_ok=True)
        result, budget = trial
        told = {"metrics": result.metrics, "names": list(result.per_user), "budget": budget}
        notes = {"identity": self._identity(), "told": json.dumps(told)}
        tensors = {"users": result.users, **result.per_user}
        shown, predicted = (vars(each) if each else {} for each in (result.shown, result.predicted))
        for name, kept in (("shown", shown), ("predicted", predicted), ("pairs", result.pairs)):
            tensors |= {f"{name}.{key}": each for key, each in kept.items()}
        save_state(path, tensors, notes)

    def _kept(self, path: Path) -> Trial | None:
        if not path.is_file():
            return None
        tensors, notes = load_state(path, self.judging.data.train.users.device)
        if notes.get("identity") != self._identity():
            return None
        told = json.loads(notes["told"])
        per_user = {name: tensors[name] for name in told["names"]}

        def of(name: str) -> dict[str, Tensor]:
            return {key.removeprefix(f"{name}."): each for key, each in tensors.items() if key.startswith(f"{name}.")}

        lists, single = of("shown"), of("predicted")
        result = Result(
            told["metrics"],
            tensors["users"],
            per_user,
            shown=Shown(**lists) if lists else None,
            predicted=Predicted(**single) if single else None,
            pairs=of("pairs"),
        )
        return result, told["budget"]

    def _identity(self) -> str:
        settings = {key: each for key, each in asdict(self.cfg).items() if key not in (*RESUMABLE_WITH, "resume")}
        told = json.dumps([settings, list(self.digests), self.about], sort_keys=True, default=str)
        return sha256(told.encode()).hexdigest()
