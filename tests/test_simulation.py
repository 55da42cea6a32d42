"""Training events that change in every epoch, and students that learn to bear it."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import build, configured, usual
from lessons import distil, teacher_of
from test_embedding_noise import same as alike
from test_embedding_noise import tensors, trained
from test_noises import CLEAN, same
from test_trainer import run
from torch import Tensor

from robustbench_rec.batch import Batch
from robustbench_rec.data import Data
from robustbench_rec.errors import RrecError
from robustbench_rec.noise import Noise, pairs
from robustbench_rec.noises import noises
from robustbench_rec.objective import Objective, show
from robustbench_rec.shifted import Shifted

N = len(CLEAN.train)


def noise(**changes: Any) -> Noise:
    return noises.build(configured("noise", "simulation", **{"level": 0.2, **changes}))


def shown(seed: int = 0, **changes: Any) -> Data:
    return noise(**changes).shown(CLEAN, torch.Generator().manual_seed(seed))


class TestShown:
    @pytest.mark.parametrize(("op", "size"), [("delete", 0.8), ("insert", 1.2), ("replace", 1.0)])
    def test_an_epoch_shows_a_share_of_the_events_changed(self, op: str, size: float) -> None:
        data = shown(ops=[op])
        assert len(data.train) == round(size * N)
        old, new = pairs(CLEAN.train, CLEAN), pairs(data.train, data)
        assert int((~torch.isin(old, new)).sum()) == (0 if op == "insert" else round(0.2 * N))
        assert int((~torch.isin(new, old)).sum()) == (0 if op == "delete" else round(0.2 * N))
        assert same(data.valid, CLEAN.valid)
        assert same(data.test, CLEAN.test)

    def test_what_is_put_in_is_what_hardly_anybody_has(self) -> None:
        popularity = torch.bincount(CLEAN.train.items, minlength=CLEAN.n_items).float()
        means = {}
        for items in ("popular", "uniform", "unpopular"):
            data = shown(ops=["insert"], items=items, level=1.0)
            means[items] = popularity[data.train.items[data.truth["train/noise"]]].mean()
        assert means["unpopular"] < means["uniform"] < means["popular"]

    def test_each_of_the_ops_has_its_epochs(self) -> None:
        sizes = [len(shown(seed).train) - N for seed in range(30)]
        assert {min(sizes), 0, max(sizes)} == set(sizes)
        assert min(sizes) < 0 < max(sizes)

    def test_data_and_a_trained_model_are_left_alone(self, tmp_path: Path) -> None:
        assert noise()(CLEAN) is CLEAN
        trained("train", tmp_path / "run", "model=mf")
        words = (f"ckpt='{tmp_path / 'run'}'", "device=cpu", "noise=simulation")
        with pytest.raises(RrecError, match="noise=simulation: drawn in each epoch of a training"):
            trained("eval", tmp_path / "judged", *words)
        trained("eval", tmp_path / "clean", *words, "noise.level=0")

    @pytest.mark.parametrize(
        ("changes", "told"),
        [
            ({"ops": []}, r"noise.ops=\[\]: at least one is needed, of delete, insert, replace"),
            ({"ops": ["swap"]}, "noise.ops 'swap'"),
            ({"items": "rare"}, "noise.items 'rare'"),
            ({"level": 1.1}, "levels between 0 and 1"),
        ],
    )
    def test_what_makes_no_sense_is_refused(self, changes: dict[str, Any], told: str) -> None:
        with pytest.raises(RrecError, match=told):
            noise(**changes)


class Watching(Objective):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[list[Tensor]] = []
        self.shown: list[Data] = []
        self.counts: list[int] = []

    def start_epoch(self, epoch: int, generator: torch.Generator) -> None:
        self.seen.append([])
        self.counts.append(self.batches)

    def show(self, data: Data) -> None:
        self.shown.append(data)

    def forward(self, at: Shifted, batch: Batch) -> Tensor:
        items = batch.items[:, 0] if batch.items is not None else batch.targets
        self.seen[-1].append(batch.owners * CLEAN.n_items + items)
        return usual(at.model)(at, batch)


class TestTraining:
    @pytest.mark.parametrize("name", ["mf", "sasrec", "biased_mf"])
    def test_every_epoch_has_events_of_its_own(self, tmp_path: Path, name: str) -> None:
        epochs: dict[int, list[Tensor]] = {}
        for seed in (0, 1):
            watching = Watching()
            config = configured("noise", "simulation", level=0.2, seed=seed)
            (tmp_path / str(seed)).mkdir()
            more = {"negatives": 0, "loss": "mse"} if name == "biased_mf" else {}
            run(
                tmp_path / str(seed),
                model=build(name, CLEAN),
                data=CLEAN,
                objective=watching,
                noise=config,
                epochs=3,
                **more,
            )
            assert len(watching.shown) == 3
            epochs[seed] = [torch.cat(each).sort().values for each in watching.seen]
            if name != "sasrec":
                assert watching.counts == [len(each) for each in watching.seen]
            assert not any(len(each.part(part)) for each in watching.shown for part in ("valid", "test"))
            for keys, data in zip(epochs[seed], watching.shown, strict=True):
                had = pairs(data.train, data)
                assert torch.isin(keys, had).all()
                assert len(keys) == len(had) - (CLEAN.n_users if name == "sasrec" else 0)
        found = [*epochs[0], *epochs[1]]
        assert not any(torch.equal(one, two) for one in found for two in found if one is not two)

    def test_level_0_is_plain_training_bit_for_bit_and_others_are_not(self, tmp_path: Path) -> None:
        trained("train", tmp_path / "plain", "model=mf")
        for level in ("0", "0.5"):
            trained("train", tmp_path / level, "model=mf", "noise=simulation", f"noise.level={level}")
        plain, none, some = (tensors(tmp_path / each) for each in ("plain", "0", "0.5"))
        assert alike(plain, none)
        assert not alike(plain, some)

    @pytest.mark.parametrize("op", ["delete", "insert"])
    def test_the_cost_of_a_step_counts_the_steps_there_were(self, tmp_path: Path, op: str) -> None:
        config = configured("noise", "simulation", level=0.9, ops=[op])
        built = run(tmp_path, model=build("mf", CLEAN), data=CLEAN, noise=config, epochs=2, batch_size=16)
        assert built.passes.equivalents == 3 * built.counted
        assert built.counted != len(built.sampler)

    @pytest.mark.parametrize(("name", "more"), [("comirec", {}), ("sasrec", {"loss": "bce", "negatives": 0})])
    def test_every_epoch_shows_the_histories_before_its_events(
        self, tmp_path: Path, name: str, more: dict[str, Any]
    ) -> None:
        lengths: list[int] = []

        class Reading(Objective):
            def forward(self, at: Shifted, batch: Batch) -> Tensor:
                assert batch.history is not None
                lengths.append(int(batch.history.lengths.max()))
                return at(batch).scores.sum()

        data = replace(CLEAN, train=replace(CLEAN.train, values=(CLEAN.train.items % 2).float())) if more else CLEAN
        config = configured("noise", "simulation", level=0.2)
        run(tmp_path, model=build(name, data), data=data, objective=Reading(), noise=config, epochs=2, **more)
        assert max(lengths) > 1

    def test_refusals_are_read_by_no_student(self) -> None:
        clicks = replace(CLEAN, train=replace(CLEAN.train, values=(CLEAN.train.items % 2).float()))
        built = distil("finest", teacher=teacher_of(data=CLEAN), data=CLEAN)
        show(built, clicks)
        assert len(built.terms[0].histories) == int(clicks.train.values.sum())

    def test_a_guarantee_of_privacy_is_refused(self, tmp_path: Path) -> None:
        pytest.importorskip("opacus")
        with pytest.raises(RrecError, match="defense=dp_sgd: noise=simulation shows an event in more places than one"):
            trained("train", tmp_path / "run", "model=mf", "model.l2=0", "defense=dp_sgd", "noise=simulation")

    def test_an_epoch_without_an_example_names_the_noise(self, tmp_path: Path) -> None:
        config = configured("noise", "simulation", level=1.0, ops=["delete"])
        with pytest.raises(RrecError, match="noise=simulation noise.level=1, in epoch 1: .* there is no step to learn"):
            run(tmp_path, model=build("sasrec", CLEAN), data=CLEAN, noise=config)

    def test_a_model_without_epochs_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(RrecError, match="noise=simulation: model=ease has no epochs to draw it in"):
            trained("train", tmp_path / "run", "model=ease", "noise=simulation")

    @pytest.mark.parametrize("name", ["finest", "contrastive"])
    def test_a_student_reads_the_histories_that_the_epoch_shows(self, name: str) -> None:
        student = build("sasrec", CLEAN)
        built = distil(name, teacher=teacher_of("sasrec", CLEAN), student=student, data=CLEAN)
        read: list[Tensor] = []
        student.events.register_forward_pre_hook(lambda _, given: read.append(given[1].items))
        users = torch.arange(4)
        data = shown(ops=["replace"], level=0.8)
        show(built, data)
        with torch.no_grad():
            built.terms[0](Shifted(student), Batch.unlabelled(users, torch.arange(4)[:, None]))
        expected = data.train.items[torch.isin(data.train.users, users)].view(4, -1)
        clean = CLEAN.train.items[torch.isin(CLEAN.train.users, users)].view(4, -1)
        assert torch.equal(read[-1], expected[:, -read[-1].shape[1] :])
        assert not torch.equal(expected, clean)

    def test_a_student_is_taught_under_it_from_its_own_start(self, tmp_path: Path) -> None:
        trained("train", tmp_path / "base", "model=sasrec", "split=leave_one_out")
        words = [f"{each}='{tmp_path / 'base'}'" for each in ("teacher", "start")]
        metrics = trained(
            "distill",
            tmp_path / "tuned",
            *("model=sasrec", "split=leave_one_out", "distill=finest", "distill.top=5", "noise=simulation", *words),
        )
        assert all(value == value for value in metrics.values())
