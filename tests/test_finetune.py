"""Fine-tuning: criticality, what is tuned, and the interpolation."""

import csv
import re
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import Toy, assert_gradients, batch_of, build, compose, configured, gradients, moved
from safetensors.torch import load_file
from torch import Tensor, nn

from robustbench_rec import checkpoint, composing
from robustbench_rec.attacks import single
from robustbench_rec.batch import Batch, Output
from robustbench_rec.config import Finetune
from robustbench_rec.criticality import criticality
from robustbench_rec.errors import RrecError
from robustbench_rec.evaluation import evaluator
from robustbench_rec.finetunes import finetunes
from robustbench_rec.finetuning import first
from robustbench_rec.losses import loss
from robustbench_rec.model import RecModel
from robustbench_rec.objective import Plain
from robustbench_rec.shifted import Shifted, label, surface
from robustbench_rec.tasks import finetune, train
from robustbench_rec.trainer import Trainer

BPR = Plain(loss("bpr"))
SYNTHETIC = (
    "dataset=synthetic",
    "dataset.n_users=40",
    "dataset.n_items=30",
    "dataset.events_per_user=9",
    "dataset.n_entities=12",
    "device=cpu",
)
SMALL = {"mf": ("model=mf", "model.dim=8"), "kgat": ("model=kgat", "model.dim=8", "model.layers=[6,4]")}


def measured(model: RecModel, eps: float = 0.05, steps: int = 10, objective: Plain = BPR) -> dict[str, float]:
    return criticality(Shifted(model), batch_of(size=40), objective, eps=eps, per="row", steps=steps)


class Exact(Plain):
    """BPR in the precision of the scores."""

    def __init__(self) -> None:
        super().__init__(
            lambda output, batch: nn.functional.softplus(output.scores[:, 1:] - output.scores[:, :1]).mean(1)
        )


class TwoLayers(RecModel):
    """ReLU network; scaling one layer down and the next one up changes nothing."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.register_buffer("x", torch.randn(12, 5, dtype=torch.float64))
        self.one, self.two = nn.Linear(5, 8, dtype=torch.float64), nn.Linear(8, 20, dtype=torch.float64)
        with torch.no_grad():
            self.one.weight.mul_(scale)
            self.one.bias.mul_(scale)
            self.two.weight.div_(scale)

    def forward(self, batch: Batch, encoded: None) -> Output:
        scores = self.two(torch.relu(self.one(self.get_buffer("x")[batch.users])))
        return Output(scores if batch.items is None else scores.gather(1, batch.items))


class TestCriticality:
    @pytest.mark.parametrize("name", ["toy", "mf", "kgat"])
    def test_it_is_never_negative_and_names_every_module_largest_first(self, name: str) -> None:
        model = Toy() if name == "toy" else build(name).eval()
        found = measured(model)
        assert set(found) == {label(each) for each in surface(model, "weight")}
        assert list(found.values()) == sorted(found.values(), reverse=True)
        assert min(found.values()) >= 0
        assert max(found.values()) > 0

    @pytest.mark.parametrize("name", ["toy", "mf", "kgat"])
    def test_it_grows_with_the_budget(self, name: str) -> None:
        model = Toy() if name == "toy" else build(name).eval()
        tables = [measured(model, eps=eps) for eps in (0.0, 0.01, 0.05, 0.2)]
        assert not any(tables[0].values())
        for less, more in pairwise(tables):
            assert all(more[module] >= less[module] for module in less)

    def test_it_grows_with_the_steps_by_and_large(self) -> None:
        model = Toy()
        tables = [measured(model, eps=0.2, steps=steps, objective=Exact()) for steps in (0, 1, 5, 40)]
        assert not any(tables[0].values())
        for less, more in pairwise(tables):
            assert all(more[module] >= 0.97 * less[module] for module in less)  # the step size changes, too

    def test_a_module_off_the_path_of_the_loss_has_none(self) -> None:
        assert measured(Toy())["aside"] == 0
        found = measured(build("kgat").eval())
        assert found["relation"] == found["projection"] == 0

    def test_it_does_not_change_under_a_rescaling_that_changes_nothing(self) -> None:
        one, other = measured(TwoLayers(1.0), objective=Exact()), measured(TwoLayers(0.1), objective=Exact())
        assert one == pytest.approx(other, rel=1e-6)

    def test_it_is_the_rise_within_a_ball_of_that_module_alone(self) -> None:
        """No random point of the ball is worse, and every step of the budget counts."""
        model, batch, eps = Toy(), batch_of(size=40), 0.1
        found = criticality(Shifted(model), batch, Exact(), eps=eps, per="row", steps=30)
        start = Exact()(Shifted(model), batch).item()
        for name in surface(model, "weight"):
            weight = model.get_parameter(name)
            for seed in range(20):
                draw = torch.randn(weight.shape, generator=torch.Generator().manual_seed(seed), dtype=weight.dtype)
                delta = eps * weight.detach().norm(dim=-1, keepdim=True) * draw / draw.norm(dim=-1, keepdim=True)
                rise = Exact()(Shifted(model, {name: delta}), batch).item() - start
                assert rise <= found[label(name)] + 1e-9

    @pytest.mark.parametrize(("per", "over"), [("row", (1,)), ("layer", (0, 1))])
    def test_it_is_the_largest_loss_of_an_ascent_of_that_module_alone(self, per: str, over: tuple[int, ...]) -> None:
        """Reference: the ascent written out, with projected steps of 2.5 radii / steps and the loss of every point."""
        model, batch, eps, steps = Toy(), batch_of(size=40), 0.5, 4
        found = criticality(Shifted(model), batch, Exact(), eps=eps, per=per, steps=steps)
        for name in surface(model, "weight"):
            radius = eps * model.get_parameter(name).detach().norm(dim=over, keepdim=True)
            delta, losses = torch.zeros_like(model.get_parameter(name)), []
            for _ in range(steps + 1):
                there = moved(model, {name: delta})
                value = Exact()(Shifted(there), batch)
                losses.append(value.item())
                slope = gradients(there, value)[name]
                size = slope.norm(dim=over, keepdim=True)
                delta = delta + 2.5 / steps * radius * torch.where(size > 0, slope / size, 0.0)
                delta = delta * (radius / delta.norm(dim=over, keepdim=True).clamp_min(1e-30)).clamp_max(1)
            assert found[label(name)] == pytest.approx(max(losses) - losses[0], rel=1e-6, abs=1e-12)

    def test_the_worst_point_counts_and_not_the_last(self) -> None:
        """A loss of −(t − 0.8)² at t radii: the two steps of 1.25 radii stop at 1 and go back to −0.25."""
        model = build("mf")
        row = model.get_parameter("item.weight").detach()[0]

        def objective(at: Shifted, batch: Batch) -> Tensor:
            t = (at.tensors(["item.weight"])["item.weight"][0] @ row / row.norm() - row.norm()) / (0.1 * row.norm())
            return -(t - 0.8).square()

        found = criticality(Shifted(model), batch_of(), objective, eps=0.1, per="row", steps=2)
        assert found == {"item": pytest.approx(0.64 - 0.04, rel=1e-3), "user": 0.0}

    def test_the_model_is_left_as_it_was(self) -> None:
        model = build("kgat").eval()
        before = {name: each.clone() for name, each in model.state_dict().items()}
        measured(model)
        assert all(torch.equal(each, before[name]) for name, each in model.state_dict().items())
        assert all(each.grad is None for each in model.parameters())


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Run directories of small trained models."""
    runs = {}
    for name, words in SMALL.items():
        out = tmp_path_factory.mktemp(name)
        overrides = (*SYNTHETIC, *words, "epochs=8", "batch_size=128", "lr=0.02", "top_k=[5]", "monitor=ndcg@5")
        train.run(composing.typed(compose("train", *overrides), "train"), out)
        runs[name] = out
    return runs


@pytest.fixture(scope="module")
def adapted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a sequence model with LoRA on a body that stays."""
    plain, out = (tmp_path_factory.mktemp(name) for name in ("plain", "lora"))
    words = (*SYNTHETIC, "split=leave_one_out", "model=sasrec", "model.dim=8", "epochs=2", "top_k=[5]")
    train.run(composing.typed(compose("train", *words), "train"), plain)
    train.run(composing.typed(compose("train", *words, f"start='{plain}'", "adaptation=lora"), "train"), out)
    return out


def config(ckpt: Path, *overrides: str) -> Finetune:
    words = (
        "epochs=3",
        "batch_size=128",
        "top_k=[5]",
        "monitor=ndcg@5",
        "alphas=3",
        "criticality.steps=3",
        "device=cpu",
    )
    composed = compose("finetune", f"ckpt='{ckpt}'", *dict_of(words, overrides))
    typed = composing.typed(composed, "finetune")
    assert isinstance(typed, Finetune)
    return typed


def dict_of(defaults: tuple[str, ...], overrides: tuple[str, ...]) -> list[str]:
    """The later word for a key counts."""
    return [
        f"{key}={value}"
        for key, value in {
            key: value for key, _, value in (each.partition("=") for each in (*defaults, *overrides))
        }.items()
    ]


def tensors(run: Path) -> dict[str, Tensor]:
    loaded = checkpoint.load(str(run), data_dir=None, device=torch.device("cpu"))
    return {name: each.detach() for name, each in loaded.model.named_parameters()}


def rows(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def tuned_alone(
    chosen: str, words: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *overrides: str
) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Parameters of a small model, and what its fine-tuning in `tuned` says where one module is critical."""
    for each in ("start", "tuned"):
        (tmp_path / each).mkdir()
    asked = compose("train", *SYNTHETIC, *words, "epochs=1", "top_k=[5]")
    train.run(composing.typed(asked, "train"), tmp_path / "start")
    start = tensors(tmp_path / "start")
    names = [label(name) for name, each in start.items() if each.ndim > 1]
    measured = {name: float(name == chosen) for name in sorted(names, key=lambda name: name != chosen)}
    monkeypatch.setattr(finetune, "criticality", lambda *_, **__: measured)
    return start, finetune.run(config(tmp_path / "start", "alphas=2", *overrides), tmp_path / "tuned")


def share(start: dict[str, Tensor], *names: str) -> float:
    """Of all parameters, those of the named tensors."""
    return sum(start[each].numel() for each in names) / sum(each.numel() for each in start.values())


class TestTask:
    @pytest.mark.parametrize("name", SMALL)
    def test_only_the_least_robust_module_changes(self, trained: dict[str, Path], tmp_path: Path, name: str) -> None:
        metrics = finetune.run(config(trained[name], "lr=0.1", "tolerance=0.9"), tmp_path)
        table = rows(tmp_path / "criticality.csv")
        (chosen,) = [row["module"] for row in table if row["tuned"] == "yes"]
        assert chosen == max(table, key=lambda row: float(row["criticality"]))["module"]
        before, after = tensors(trained[name]), tensors(tmp_path)
        for key in before:
            if not key.startswith(f"{chosen}.") and key != chosen:
                assert torch.equal(before[key], after[key]), key
        assert {"valid/ndcg@5", "test/ndcg@5"} <= metrics.keys()

    def test_a_matrix_beside_the_chosen_one_in_its_layer_does_not_change(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        chosen, words = "layers.0.recurrent", ("model=gru4rec", "model.dim=4", "model.hidden=4")
        start, told = tuned_alone(chosen, words, tmp_path, monkeypatch, "lr=0.1", "tolerance=0.9")
        after = tensors(tmp_path / "tuned")
        assert [name for name in start if not torch.equal(start[name], after[name])] in ([], [chosen])
        assert told["budget/tuned_share"] == pytest.approx(share(start, chosen))

    def test_a_table_is_tuned_with_the_bias_that_stands_beside_it(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        words = ("model=deepcf_mlp", "model.dim=4", "model.hidden=[4]")
        start, told = tuned_alone("user", words, tmp_path, monkeypatch, "lr=0.1")
        assert told["budget/tuned_share"] == pytest.approx(share(start, "user.weight", "user_bias"))

    @pytest.mark.parametrize("name", SMALL)
    def test_it_never_loses_to_the_start_on_validation(
        self, trained: dict[str, Path], tmp_path: Path, name: str
    ) -> None:
        finetune.run(config(trained[name], "lr=0.3"), tmp_path)
        trace = rows(tmp_path / "alpha.csv")
        assert [float(row["alpha"]) for row in trace] == [0.0, 0.5, 1.0]
        scores = [float(row["score"] or "-inf") for row in trace]
        assert max(scores) >= scores[0] == float(trace[0]["attacked_ndcg@5"])  # α = 0 is feasible

    def test_the_best_of_the_interpolation_is_what_is_kept(self, trained: dict[str, Path], tmp_path: Path) -> None:
        """With steps that ruin the model the best is the start, and that is what is saved and judged."""
        found = finetune.run(config(trained["mf"], "lr=5", "tolerance=0"), tmp_path)
        trace = rows(tmp_path / "alpha.csv")
        scores = [float(row["score"] or "-inf") for row in trace]
        assert scores.index(max(scores)) == 0 > scores[-1] - scores[0]
        assert found["valid/ndcg@5"] == pytest.approx(float(trace[0]["ndcg@5"]))
        before, after = (load_file(each / "model.safetensors") for each in (trained["mf"], tmp_path))
        assert all(torch.equal(each, after[name]) for name, each in before.items())

    def test_of_equals_in_the_interpolation_the_nearest_to_the_start_is_kept(self, tmp_path: Path) -> None:
        model = build("mf")
        start = {name: each.detach().clone() for name, each in model.named_parameters()}
        with torch.no_grad():
            for each in model.parameters():
                each.add_(1.0)
        scores = iter([1.0, 3.0, 2.0, 3.0, 3.0])
        told = SimpleNamespace(alphas=5)
        finetune._interpolate(told, model, start, lambda: {"score": next(scores)}, tmp_path)  # type: ignore[arg-type]
        for name, each in model.named_parameters():
            torch.testing.assert_close(each.detach(), start[name] + 0.25)

    def test_a_module_whose_name_begins_like_the_chosen_one_does_not_change(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        layers = "[" + ",".join("4" for _ in range(11)) + "]"  # sum.1 and sum.10
        words = ("model=kgat", "model.dim=4", f"model.layers={layers}")
        start, told = tuned_alone("sum.1", words, tmp_path, monkeypatch, "epochs=1")
        assert told["budget/tuned_share"] == pytest.approx(share(start, "sum.1.weight", "sum.1.bias"))

    def test_a_frozen_body_stays_frozen(self, adapted: Path, tmp_path: Path) -> None:
        """The most critical modules of a model with adapters are those that its training left alone."""
        finetune.run(config(adapted, "epochs=2", "lr=0.1", "finetune.modules=2"), tmp_path)
        measured = {row["module"] for row in rows(tmp_path / "criticality.csv")}
        assert measured
        assert not any("base" in each or each == "item" for each in measured)
        before, after = (load_file(each / "model.safetensors") for each in (adapted, tmp_path))
        moved = {name for name, each in before.items() if not torch.equal(each, after[name])}
        assert not any(".base." in name or name.startswith(("item.", "position.")) for name in moved)

    def test_tuning_the_layers_of_kgat_is_possible(self, trained: dict[str, Path], tmp_path: Path) -> None:
        """Every weight module, one after the other: also those that the TransR phase does not train."""
        names = {row["module"] for row in self.table(trained["kgat"], tmp_path)}
        assert {"node", "relation", "projection", "sum.0", "sum.1"} <= names
        out = tmp_path / "all"
        out.mkdir()
        finetune.run(config(trained["kgat"], f"finetune.modules={len(names)}", "epochs=1"), out)

    def table(self, ckpt: Path, tmp_path: Path) -> list[dict[str, str]]:
        out = tmp_path / "one"
        out.mkdir()
        finetune.run(config(ckpt, "epochs=1"), out)
        return rows(out / "criticality.csv")

    @pytest.mark.parametrize("name", SMALL)
    def test_a_learning_rate_of_zero_gives_back_the_start(
        self, trained: dict[str, Path], tmp_path: Path, name: str
    ) -> None:
        finetune.run(config(trained[name], "lr=0.0", "epochs=1"), tmp_path)
        before, after = tensors(trained[name]), tensors(tmp_path)
        assert all(torch.equal(before[key], after[key]) for key in before)

    def test_the_perturbation_is_real(
        self, trained: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The released code tunes without any: its proxy never moves."""
        sizes: list[float] = []
        inner = Plain.forward

        def watched(self: Plain, at: Shifted, batch: Batch) -> Tensor:
            if at.delta and not torch.is_grad_enabled():
                return inner(self, at, batch)
            sizes.extend(each.detach().norm().item() for each in at.delta.values())
            return inner(self, at, batch)

        monkeypatch.setattr(Plain, "forward", watched)
        finetune.run(config(trained["mf"], "finetune.gamma=0.1", "epochs=1"), tmp_path)
        assert max(sizes) > 0

    @pytest.mark.parametrize("name", ["rawp_ft", "pdaf", "soft"])
    @pytest.mark.parametrize(("per", "over"), [("row", 1), ("layer", (0, 1))])
    def test_gamma_is_a_share_of_the_norm_of_what_per_says(self, name: str, per: str, over: Any) -> None:
        model, batch, name_ = Toy(), batch_of(), "item.weight"
        tuning = finetunes.build(
            configured("finetune", name, gamma=0.3, per=per, **({"ramp": 1} if name == "pdaf" else {}))
        )
        attack = tuning.objective(BPR, {name_: 1.0}, (name_,)).attack  # type: ignore[union-attr]
        worse, _ = attack(Shifted(model), batch, Exact())
        moves, weight = worse.delta[name_].norm(dim=over), model.get_parameter(name_).detach().norm(dim=over)
        assert torch.allclose(moves[moves > 0], 0.3 * weight[moves > 0])
        assert moves.any()

    def test_gamma_matters(self, trained: dict[str, Path], tmp_path: Path) -> None:
        ends = []
        for gamma in ("0", "0.3"):
            out = tmp_path / gamma
            out.mkdir()
            finetune.run(config(trained["mf"], f"finetune.gamma={gamma}", "lr=0.3", "tolerance=0.9", "alphas=2"), out)
            ends.append(rows(out / "history.csv")[-1]["loss"])
        assert ends[0] != ends[1]

    def test_it_is_repeatable(self, trained: dict[str, Path], tmp_path: Path) -> None:
        results = []
        for number in range(2):
            out = tmp_path / str(number)
            out.mkdir()
            results.append(finetune.run(config(trained["mf"]), out))
        assert results[0] == results[1]

    def test_the_budget_is_told(self, trained: dict[str, Path], tmp_path: Path) -> None:
        metrics = finetune.run(config(trained["mf"]), tmp_path)
        sizes = {name: each.numel() for name, each in tensors(trained["mf"]).items()}
        (chosen,) = [row["module"] for row in rows(tmp_path / "criticality.csv") if row["tuned"] == "yes"]
        assert metrics["budget/tuned_share"] == pytest.approx(sizes[f"{chosen}.weight"] / sum(sizes.values()))
        assert (metrics["budget/epochs"], metrics["budget/epochs_before"]) == (3, 8)

    def test_an_attack_on_each_user_by_itself_is_one(self, trained: dict[str, Path], tmp_path: Path) -> None:
        cfg = config(trained["mf"], "attack.scope=user", "attack.steps=2", "lr=0.0", "epochs=1", "alphas=2")
        finetune.run(cfg, tmp_path)
        loaded = checkpoint.load(str(trained["mf"]), data_dir=None, device=torch.device("cpu"))
        judging = evaluator(loaded.data, cfg, alone=True)
        worse, _ = judging.attack(Shifted(loaded.model), single(cfg.attack), "valid", judging.climbed(None))
        found = judging.evaluate(worse, "valid").metrics["ndcg@5"]
        assert float(rows(tmp_path / "alpha.csv")[0]["attacked_ndcg@5"]) == pytest.approx(found, abs=1e-6)

    @pytest.mark.parametrize("name", ["cw", "fab"])
    def test_a_smallest_perturbation_needs_lists_to_break(
        self, trained: dict[str, Path], tmp_path: Path, name: str
    ) -> None:
        words = (f"attack={name}", "protocol=ratings", "monitor=rmse")
        with pytest.raises(RrecError, match=f"'{name}' needs a goal that is reached or not"):
            finetune.run(config(trained["mf"], *words), tmp_path)
        assert not list(tmp_path.iterdir())
        cfg = config(trained["mf"], f"attack={name}", "attack.steps=3", "lr=0.0", "epochs=1", "alphas=2")
        finetune.run(cfg, tmp_path)
        [start, _] = rows(tmp_path / "alpha.csv")
        assert float(start["attacked_ndcg@5"]) < float(start["ndcg@5"])

    def test_inputs_that_an_attacker_has_moved_change_the_criticality(
        self, trained: dict[str, Path], tmp_path: Path
    ) -> None:
        tables = []
        for eps in ("0", "0.3"):
            out = tmp_path / eps
            out.mkdir()
            finetune.run(config(trained["mf"], f"criticality.embedding_eps={eps}", "epochs=1"), out)
            tables.append([float(row["criticality"]) for row in rows(out / "criticality.csv")])
        assert tables[0] != tables[1]

    @pytest.mark.parametrize(
        ("override", "message"),
        [
            ("finetune.modules=3", "the model has 2 "),
            ("alphas=1", "alphas=1"),
            ("tolerance=1.0", "tolerance=1.0"),
            ("finetune.modules=0", "finetune.modules=0: the model has 2 .*user, item"),
            ("finetune.gamma=-0.1", "gamma=-0.1: a budget"),
            ("finetune.per=column", "unknown per 'column'"),
            ("criticality.per=column", "unknown per 'column'"),
            ("criticality.eps=-1", "eps=-1"),
            ("criticality.embedding_eps=-1", "embedding_eps=-1"),
            ("criticality.steps=-1", "steps=-1"),
            ("criticality.pairs=0", "pairs"),
            ("criticality.steps=0", "criticality.steps=0, .* else no module is more critical"),
            ("criticality.eps=0", "criticality.eps=0.0: steps >= 1 and eps > 0 are needed"),
            ("monitor=ndcg@7", "unknown monitor 'ndcg@7'"),
            ("attack.surface=feature", "no feature surface"),
            ("epochs=0", "epochs=0: must be at least 1"),
            ("loss=dlr", "unknown loss 'dlr'"),
            (
                "protocol=ratings monitor=rmse",
                "protocol=ratings judges ratings, and loss=bpr with negatives=1 learns none",
            ),
            ("ckpt=/nowhere", "ckpt=/nowhere"),
        ],
    )
    def test_settings_that_make_no_sense_are_refused(
        self, trained: dict[str, Path], tmp_path: Path, override: str, message: str
    ) -> None:
        key, _, value = override.partition("=")
        cfg: Any = config(Path(value) if key == "ckpt" else trained["mf"], *([] if key == "ckpt" else override.split()))
        with pytest.raises(RrecError, match=message):
            finetune.run(cfg, tmp_path)


class TestRiFT:
    @pytest.mark.parametrize("name", SMALL)
    def test_the_most_robust_module_is_tuned_for_clean_quality(
        self, trained: dict[str, Path], tmp_path: Path, name: str
    ) -> None:
        finetune.run(config(trained[name], "finetune=rift", "lr=0.02", "tolerance=0.2"), tmp_path)
        table = rows(tmp_path / "criticality.csv")
        (chosen,) = [row["module"] for row in table if row["tuned"] == "yes"]
        reached = [row for row in table if float(row["criticality"]) > 0]
        assert chosen == min(reached, key=lambda row: float(row["criticality"]))["module"]
        trace = rows(tmp_path / "alpha.csv")
        best = max(trace, key=lambda row: float(row["score"] or "-inf"))
        assert float(best["score"]) == float(best["ndcg@5"]) >= float(trace[0]["ndcg@5"])
        assert float(best["attacked_ndcg@5"]) >= 0.8 * float(trace[0]["attacked_ndcg@5"])

    def test_what_loses_too_much_robustness_is_not_chosen(self, trained: dict[str, Path], tmp_path: Path) -> None:
        finetune.run(config(trained["mf"], "finetune=rift", "lr=0.3", "tolerance=0", "alphas=5"), tmp_path)
        trace = rows(tmp_path / "alpha.csv")
        floor = float(trace[0]["attacked_ndcg@5"])
        for row in trace:
            assert (float(row["score"] or "-inf") > -1) == (float(row["attacked_ndcg@5"]) >= floor)

    def test_epochs_that_lose_too_much_are_told_with_both_qualities(
        self, trained: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        finetune.run(config(trained["mf"], "finetune=rift", "lr=0.3", "tolerance=0"), tmp_path)
        history = rows(tmp_path / "history.csv")
        assert any(float(row["score"]) < -1 for row in history)
        told = re.findall(r"valid (.*)", capsys.readouterr().err)  # not every epoch: they are quick
        judged = [
            f"ndcg@5 {float(r['ndcg@5']):.4f}  attacked_ndcg@5 {float(r['attacked_ndcg@5']):.4f}" for r in history
        ]
        assert told
        assert set(told) <= set(judged)


class TestPDAF:
    WORDS = ("finetune=pdaf", "finetune.rounds=3", "epochs=2", "lr=0.05", "tolerance=0.9")

    def test_every_round_chooses_anew_and_none_loses_attacked_quality(
        self, trained: dict[str, Path], tmp_path: Path
    ) -> None:
        metrics = finetune.run(config(trained["mf"], *self.WORDS), tmp_path)
        folders = sorted(tmp_path.glob("round-*"))
        assert [each.name for each in folders] == ["round-1", "round-2", "round-3"]
        first, second = (rows(each / "criticality.csv") for each in folders[:2])
        assert first != second
        trace = rows(tmp_path / "alpha.csv")
        assert float(trace[-1]["attacked_ndcg@5"]) >= float(trace[0]["attacked_ndcg@5"])
        assert metrics["budget/epochs"] == 6
        assert [row["epoch"] for row in rows(tmp_path / "history.csv")] == [str(each) for each in range(1, 7)]
        assert not list(tmp_path.rglob("resume"))

    def test_the_trajectory_goes_on_from_round_to_round(self, trained: dict[str, Path], tmp_path: Path) -> None:
        words = (*self.WORDS, "trajectory=1", "epochs=4", "patience=1")
        finetune.run(config(trained["mf"], *words), tmp_path)
        lengths = [len(rows(tmp_path / f"round-{number}" / "history.csv")) for number in (1, 2, 3)]
        assert checkpoint.epochs(str(tmp_path)) == list(range(1, sum(lengths) + 1))
        finetune.run(config(trained["mf"], *self.WORDS, "trajectory=3"), tmp_path)
        assert checkpoint.epochs(str(tmp_path)) == [3, 6]

    def test_a_round_that_gains_nothing_is_undone(self, trained: dict[str, Path], tmp_path: Path) -> None:
        finetune.run(config(trained["mf"], *self.WORDS, "lr=5", "tolerance=0.0"), tmp_path)
        before, after = tensors(trained["mf"]), tensors(tmp_path)
        assert all(torch.equal(before[key], after[key]) for key in before)

    def test_the_radius_grows_within_a_round(self) -> None:
        tuning = finetunes.build(configured("finetune", "pdaf", gamma=0.4, ramp=4))
        objective = tuning.objective(BPR, {"user.weight": 1.0}, ("user.weight",))
        sizes = []
        for epoch in range(6):
            objective.start_epoch(epoch, torch.Generator())
            sizes.append(objective.attack.ball.eps)  # type: ignore[union-attr]
        assert sizes == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.4, 0.4])

    def test_a_killed_run_goes_on(
        self, trained: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("robustbench_rec.trainer.SAVE_EVERY", 0.0)
        whole, cut = tmp_path / "whole", tmp_path / "cut"
        whole.mkdir()
        cut.mkdir()
        words = (*self.WORDS, "trajectory=1")
        wanted = finetune.run(config(trained["mf"], *words), whole)
        original, calls = Trainer._epoch, [0]

        def interrupted(self: Trainer, *args: Any) -> dict[str, float]:
            calls[0] += 1
            if calls[0] == 4:  # the second epoch of the second round
                raise KeyboardInterrupt
            return original(self, *args)

        monkeypatch.setattr(Trainer, "_epoch", interrupted)
        with pytest.raises(KeyboardInterrupt):
            finetune.run(config(trained["mf"], *words), cut)
        assert checkpoint.epochs(str(cut)) == [1, 2, 3]
        assert finetune.run(config(trained["mf"], *words), cut) == wanted
        assert calls[0] == 4 + 3  # one of the second round, two of the third
        kept = sorted(each.name for each in (whole / "trajectory").iterdir())
        assert kept == sorted(each.name for each in (cut / "trajectory").iterdir())
        for name in kept:
            one, other = (load_file(out / "trajectory" / name) for out in (whole, cut))
            assert all(torch.equal(each, other[key]) for key, each in one.items())


class TestSoft:
    @staticmethod
    def factors(temperature: float) -> dict[str, float]:
        tuning = finetunes.build(configured("finetune", "soft", temperature=temperature))
        table = {"a": 0.2, "b": 0.1, "c": 0.0}
        found: dict[str, float] = tuning.objective(BPR, table, tuple(table)).attack.factors  # type: ignore[union-attr]
        return found

    def test_the_mean_radius_is_gamma(self) -> None:
        for temperature in (0.1, 1.0, 10.0):
            assert sum(self.factors(temperature).values()) == pytest.approx(3)

    def test_more_critical_modules_move_further(self) -> None:
        found = self.factors(1.0)
        assert found["a"] > found["b"] > found["c"] > 0

    def test_its_limits_are_all_alike_and_the_most_critical_alone(self) -> None:
        assert list(self.factors(1e6).values()) == pytest.approx([1, 1, 1], abs=1e-4)
        assert list(self.factors(0.01).values()) == pytest.approx([3, 0, 0], abs=1e-6)

    @pytest.mark.parametrize("name", SMALL)
    def test_it_tunes_every_module(self, trained: dict[str, Path], tmp_path: Path, name: str) -> None:
        metrics = finetune.run(config(trained[name], "finetune=soft", "epochs=1"), tmp_path)
        assert {row["tuned"] for row in rows(tmp_path / "criticality.csv")} == {"yes"}
        assert metrics["budget/tuned_share"] == 1


@pytest.mark.parametrize(
    ("name", "factors"),
    [
        ("rawp_ft", {"user.weight": 1.0}),
        ("pdaf", {"user.weight": 1.0}),
        ("soft", {"user.weight": 2 * 0.731059, "item.weight": 2 * 0.268941}),  # softmax([1, 0.5] / 0.5)
    ],
)
def test_the_loss_is_that_where_every_row_of_the_chosen_tensors_moved_uphill(
    name: str, factors: dict[str, float]
) -> None:
    model, batch = build("mf"), batch_of()
    criticality = {key: each for key, each in {"user.weight": 2.0, "item.weight": 1.0}.items() if key in factors}
    tuning = finetunes.build(configured("finetune", name, gamma=0.2))
    objective = tuning.objective(BPR, criticality, tuple(criticality))
    objective.start_epoch(99, torch.Generator())
    slopes, delta = gradients(model, BPR(Shifted(model), batch)), {}
    for key, factor in factors.items():
        size = slopes[key].norm(dim=1, keepdim=True)
        radius = factor * 0.2 * model.get_parameter(key).detach().norm(dim=1, keepdim=True)
        delta[key] = radius * torch.where(size > 0, slopes[key] / size, 0.0)
    found, expected = objective(Shifted(model), batch), BPR(Shifted(model, delta), batch)
    torch.testing.assert_close(found, expected)
    assert_gradients(gradients(model, found), gradients(model, expected), rtol=1e-4, atol=1e-7)


class Told:
    """An evaluator whose clean and attacked qualities a test writes down."""

    def __init__(self, *, smaller: bool) -> None:
        self.smaller = frozenset({"m"} if smaller else ())
        self.clean, self.attacked = 0.0, 0.0

    def monitored(self, name: str) -> str:
        return name

    def climbed(self, name: None) -> None:
        return None

    def attack(self, *_: Any) -> tuple[None, dict[str, Tensor]]:
        return None, {}

    def evaluate(self, at: Shifted | None, part: str, metrics: list[str]) -> Any:
        assert (part, metrics) == ("valid", ["m"])
        return SimpleNamespace(metrics={"m": self.attacked if at is None else self.clean})


@pytest.mark.parametrize(
    ("raises", "smaller", "start", "rows"),
    [
        ("attacked", False, (0.5, 0.2), [(0.46, 0.3, 0.3), (0.44, 0.9, None)]),
        ("clean", False, (0.5, 0.2), [(0.7, 0.185, 0.7), (0.9, 0.175, None)]),
        ("attacked", True, (1.0, 2.0), [(1.05, 1.5, -1.5), (1.2, 1.5, None)]),
        ("clean", True, (1.0, 2.0), [(0.9, 2.1, -0.9), (0.9, 2.3, None)]),
    ],
)
def test_the_wanted_quality_counts_where_the_tolerance_of_the_other_one_is_kept(
    raises: str, smaller: bool, start: tuple[float, float], rows: list[tuple[float, float, float | None]]
) -> None:
    """tolerance=0.1; None: not feasible, below all that is."""
    judging: Any = Told(smaller=smaller)
    judging.clean, judging.attacked = start
    cfg: Any = SimpleNamespace(monitor="m", tolerance=0.1)
    member: Any = SimpleNamespace(attack=None, loss=None)
    tuning: Any = SimpleNamespace(raises=raises)
    score = finetune._Score(judging, member, cfg, Toy(), tuning)
    assert score()["score"] == (-1 if smaller else 1) * start[0 if raises == "clean" else 1]
    for clean, attacked, expected in rows:
        judging.clean, judging.attacked = clean, attacked
        found = score()
        assert (found["m"], found["attacked_m"]) == (clean, attacked)
        assert found["score"] == expected if expected is not None else found["score"] < -1e5


def test_another_loss_than_that_of_the_training_is_told(caplog: pytest.LogCaptureFixture) -> None:
    model = build("mf")
    cfg: Any = SimpleNamespace(ckpt="run", loss=None, negatives=None)
    for before in ({}, {"loss": None, "negatives": None}, {"loss": "bpr", "negatives": 1}):
        finetune._tell_other_loss(cfg, model, before)
    assert not caplog.records
    finetune._tell_other_loss(cfg, model, {"loss": "softmax", "negatives": 0})
    told = "ckpt=run was trained with loss=softmax negatives=0, it is tuned with loss=bpr negatives=1"
    assert caplog.messages == [told]


def test_what_a_fine_tuned_model_learnt_with_last_is_kept(trained: dict[str, Path], tmp_path: Path) -> None:
    finetune.run(config(trained["mf"], "loss=softmax", "negatives=0", "epochs=1"), tmp_path)
    loaded = checkpoint.load(str(tmp_path), data_dir=None, device=torch.device("cpu"))
    assert loaded.training is None
    assert loaded.learnt == {"loss": "softmax", "negatives": 0}


def test_a_state_is_continued_with_the_same_parameters_alone(
    trained: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[Any] = []
    monkeypatch.setattr(finetune.Rounds, "run", lambda self, about: told.append(about))
    finetune.run(config(trained["mf"]), tmp_path)
    assert told[0]["ckpt"] == checkpoint.digest(str(trained["mf"]))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("finetune=pdaf", "finetune.rounds=0"), "finetune.rounds=0"),
        (("finetune=soft", "finetune.temperature=0"), "finetune.temperature=0"),
        (("finetune=rift", "finetune.modules=9"), "finetune.modules=9"),
    ],
)
def test_components_refuse_what_makes_no_sense(
    trained: dict[str, Path], tmp_path: Path, words: tuple[str, ...], message: str
) -> None:
    with pytest.raises(RrecError, match=message):
        finetune.run(config(trained["mf"], *words), tmp_path)
    assert not list(tmp_path.iterdir())


def test_more_robust_modules_than_reach_the_loss_are_refused() -> None:
    assert first({"a": 2.0, "b": 1.0, "c": 0.0}, 2, least=True) == ["a", "b"]
    with pytest.raises(RrecError, match=r"finetune.modules=2: only 1 reach the loss \(a\)"):
        first({"a": 1.0, "b": 0.0, "c": 0.0}, 2, least=True)
