"""Noise on embeddings: how large it is, that training and a finished model have it, and that level 0 has none."""

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from conftest import DATA, batch_for, build, buildable, compose, configured, gradients, usual
from test_trainer import run
from torch import Tensor

from robustbench_rec import checkpoint, composing
from robustbench_rec.batch import Batch
from robustbench_rec.errors import RrecError
from robustbench_rec.models import models
from robustbench_rec.noise import Noise
from robustbench_rec.noises import noises
from robustbench_rec.objective import Objective
from robustbench_rec.shifted import SURFACES, Shifted
from robustbench_rec.tasks import distill, finetune, train
from robustbench_rec.tasks import eval as evaluate

WORDS = ("dataset=synthetic", "dataset.n_users=40", "dataset.n_items=30", "dataset.events_per_user=12", "device=cpu")
EMBEDDED = [
    name
    for name in models
    if buildable(name) and build(name).trainable and (SURFACES["embedding"](build(name)) or models[name].given)
]


def noise(level: float = 0.5, seed: int = 0) -> Noise:
    return noises.build(configured("noise", "embedding", level=level, seed=seed))


def drawn(model: Any, level: float = 0.5, seed: int = 0) -> dict[str, Tensor]:
    return noise(level).delta(model, torch.Generator().manual_seed(seed))


def trained(verb: str, out: Path, *words: str) -> dict[str, float]:
    out.mkdir()
    task = {"train": train, "distill": distill, "finetune": finetune, "eval": evaluate}[verb]
    own = words if verb in ("finetune", "eval") else (*WORDS, "epochs=2", *words)
    found: dict[str, float] = task.run(composing.typed(compose(verb, *own), verb), out)
    return found


def tensors(out: Path) -> dict[str, Tensor]:
    return checkpoint.load(str(out), data_dir=None, device=torch.device("cpu")).model.state_dict()


def same(one: dict[str, Tensor], two: dict[str, Tensor]) -> bool:
    return all(torch.equal(each, two[name]) for name, each in one.items())


class TestDraw:
    def test_it_is_about_as_long_as_the_level_says_in_every_row(self) -> None:
        model = build("mf", dim=4000)
        for name, each in drawn(model, 0.3).items():
            lengths = each.norm(dim=1) / model.get_parameter(name).detach().norm(dim=1)
            torch.testing.assert_close(lengths, torch.full_like(lengths, 0.3), rtol=0.1, atol=0)

    def test_each_number_has_the_spread_of_its_row(self) -> None:
        """A closed form: of e + level · rms(e) · z the variance is level² · rms(e)²."""
        model = build("mf")
        draws = torch.stack([drawn(model, 0.5, seed)["item.weight"] for seed in range(400)])
        rms = model.get_parameter("item.weight").detach().square().mean(1, keepdim=True).sqrt()
        torch.testing.assert_close(draws.std(0), (0.5 * rms).expand_as(draws[0]), rtol=0.25, atol=0)
        assert (draws.mean(0) / rms).abs().max() < 0.5 * 5 / 400**0.5

    def test_rows_of_zeros_have_none(self) -> None:
        model = build("mf")
        with torch.no_grad():
            model.get_parameter("item.weight")[3] = 0
        assert not drawn(model)["item.weight"][3].any()

    def test_data_stay_and_level_0_is_nothing(self) -> None:
        assert noise()(DATA) is DATA
        assert drawn(build("mf"), 0.0) == {}

    def test_the_seed_decides(self) -> None:
        one, two, other = (drawn(build("mf"), seed=seed)["user.weight"] for seed in (1, 1, 2))
        assert torch.equal(one, two)
        assert not torch.equal(one, other)

    def test_a_model_without_embeddings_is_refused(self) -> None:
        with pytest.raises(RrecError, match="noise 'embedding': model 'ease' has no embeddings"):
            drawn(build("ease"))

    def test_the_vectors_of_a_frozen_encoder_are_embeddings(self) -> None:
        if not buildable("text_tower"):
            pytest.skip("no encoder")
        assert "feature_text" in drawn(build("text_tower"))

    @pytest.mark.parametrize(
        ("level", "told"),
        [(-0.1, "noise 'embedding' has levels at least 0"), (float("nan"), "noise.level=nan: not a finite number")],
    )
    def test_a_level_that_makes_no_sense_is_refused(self, level: float, told: str) -> None:
        with pytest.raises(RrecError, match=told):
            noise(level)


@pytest.mark.parametrize("name", EMBEDDED)
def test_every_model_learns_under_it(name: str) -> None:
    model = build(name).train()
    batch, at = batch_for(model), Shifted(model)
    found = []
    for delta in ({}, drawn(model)):
        torch.manual_seed(3)
        found.append(gradients(model, usual(model)(at.shift(delta), batch)))
    assert found[0].keys() == found[1].keys()
    assert all(each.isfinite().all() for each in found[1].values())
    assert not same(*found)


class TestTraining:
    @pytest.mark.parametrize("model", ["mf", "sasrec", "kgat"])
    def test_level_0_is_plain_training_bit_for_bit_and_others_are_not(self, tmp_path: Path, model: str) -> None:
        trained("train", tmp_path / "plain", f"model={model}")
        for level in ("0", "0.5"):
            trained("train", tmp_path / level, f"model={model}", "noise=embedding", f"noise.level={level}")
        plain, none, some = (tensors(tmp_path / each) for each in ("plain", "0", "0.5"))
        assert same(plain, none)
        assert not same(plain, some)

    def test_each_step_has_a_draw_of_its_own_and_seeds_are_apart(self, tmp_path: Path) -> None:
        seen: list[dict[str, Tensor]] = []

        class Watching(Objective):
            def forward(self, at: Shifted, batch: Batch) -> Tensor:
                seen.append(dict(at.delta))
                return usual(at.model)(at, batch)

        drawn_by = []
        for folder, seed in (("one", 0), ("two", 0), ("other", 1)):
            seen.clear()
            (tmp_path / folder).mkdir()
            run(
                tmp_path / folder,
                objective=Watching(),
                noise=configured("noise", "embedding", level=0.5, seed=seed),
                epochs=2,
            )
            drawn_by.append([each["user.weight"] for each in seen])
        one, two, other = drawn_by
        assert len(one) > 2
        assert all(torch.equal(*pair) for pair in zip(one, two, strict=True))
        assert not any(torch.equal(first, second) for first, second in zip(one, [*one[1:], other[0]], strict=True))

    @pytest.mark.parametrize("defense", ["apr", "rawp", "smart", "dp_sgd"])
    def test_defences_train_under_it(self, tmp_path: Path, defense: str) -> None:
        words = ("model=mf", "model.l2=0", f"defense={defense}")
        words += ("defense.noise=0",) if defense == "dp_sgd" else ()
        trained("train", tmp_path / "clean", *words)
        metrics = trained("train", tmp_path / "noisy", *words, "noise=embedding")
        assert all(value == value for value in metrics.values())
        assert not same(tensors(tmp_path / "clean"), tensors(tmp_path / "noisy"))

    def test_a_student_learns_under_it_and_is_tuned_under_it(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        levels: list[float] = []
        kind = type(noise())
        original = kind.delta

        def delta(self: Any, model: Any, generator: torch.Generator) -> dict[str, Tensor]:
            levels.append(self.level)
            return original(self, model, generator)

        monkeypatch.setattr(kind, "delta", delta)
        trained("train", tmp_path / "teacher", "model=mf", "epochs=10", "lr=0.02")
        words = (
            "model=mf",
            "model.dim=8",
            f"teacher='{tmp_path / 'teacher'}'",
            "task_weight=0",
            "epochs=10",
            "lr=0.02",
        )
        terms = {}
        for name, more in (
            ("clean", ()),
            ("none", ("noise=embedding", "noise.level=0")),
            ("noisy", ("noise=embedding", "noise.level=0.5")),
        ):
            trained("distill", tmp_path / name, *words, *more)
            terms[name] = pd.read_csv(tmp_path / name / "history.csv")["term/listwise"]
            assert terms[name].iloc[-1] < 0.9 * terms[name].iloc[0]
        assert same(tensors(tmp_path / "clean"), tensors(tmp_path / "none"))
        assert terms["noisy"].iloc[-1] > terms["clean"].iloc[-1]
        assert not same(tensors(tmp_path / "clean"), tensors(tmp_path / "noisy"))
        for name, expected in (("clean", set()), ("noisy", {0.5})):
            levels.clear()
            trained("finetune", tmp_path / f"{name}-tuned", f"ckpt='{tmp_path / name}'", "epochs=1", "device=cpu")
            assert set(levels) == expected
        assert json.loads((tmp_path / "noisy-tuned" / "model.json").read_text())["recipe"]["noise"]["level"] == 0.5

    def test_a_model_without_embeddings_is_refused_before_it_is_trained(self, tmp_path: Path) -> None:
        with pytest.raises(RrecError, match="noise 'embedding': model 'ease' has no embeddings"):
            trained("train", tmp_path / "noisy", "model=ease", "noise=embedding")
        trained("train", tmp_path / "ease", "model=ease")
        with pytest.raises(RrecError, match="has no embeddings"):
            trained("eval", tmp_path / "judged", f"ckpt='{tmp_path / 'ease'}'", "device=cpu", "noise=embedding")


class TestFinished:
    @pytest.mark.parametrize("name", ["mf", "lightgcn", "sasrec", "kgcn"])
    def test_a_model_has_one_draw_in_its_tables(self, tmp_path: Path, name: str) -> None:
        trained("train", tmp_path / "run", f"model={name}")
        path, cpu = str(tmp_path / "run"), torch.device("cpu")
        clean = checkpoint.load(path, data_dir=None, device=cpu)
        config = configured("noise", "embedding", level=0.5, seed=3)
        loaded = checkpoint.load(path, data_dir=None, device=cpu, noise=config)
        assert loaded.data.fingerprint == clean.data.fingerprint
        delta = noises.build(config).delta(clean.model, torch.Generator().manual_seed(3))
        own = clean.model.state_dict()
        for key, each in loaded.model.state_dict().items():
            assert torch.equal(each, own[key] + delta.get(key, 0)), key

    def test_more_noise_is_worse_and_level_0_is_the_model(self, tmp_path: Path) -> None:
        plain = trained("train", tmp_path / "run", "model=mf", "epochs=30", "lr=0.01")
        found = []
        for level in ("0", "1", "30"):
            words = (f"ckpt='{tmp_path / 'run'}'", "device=cpu", "noise=embedding", f"noise.level={level}")
            found.append(trained("eval", tmp_path / level, *words)["test/ndcg@10"])
        assert found[0] == pytest.approx(plain["test/ndcg@10"])
        assert found[0] > found[1] > found[2]
