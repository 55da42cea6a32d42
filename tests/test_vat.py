"""Virtual adversarial training: against its formula, the direction in closed form, and on every kind of model."""

from dataclasses import replace
from typing import Any

import pandas as pd
import pytest
import torch
from conftest import DATA, assert_gradients, batch_for, batch_of, build, buildable, defended, gradients, usual
from torch import Tensor, nn
from torch.distributions import Bernoulli, Categorical, Distribution, Normal, kl_divergence

from robustbench_rec.batch import Batch, Output
from robustbench_rec.data import Data
from robustbench_rec.defenses._masks import Masks
from robustbench_rec.errors import RrecError
from robustbench_rec.hardware import autocast
from robustbench_rec.losses import bce, bpr, divergence, kl, mse, softmax, squared_hinge
from robustbench_rec.model import RecModel
from robustbench_rec.objective import Plain
from robustbench_rec.shifted import Shifted

TITLES = ["sea", "old sea house", "", "red night song", "winter", "song sea"]
MIXED: Data = replace(
    DATA, item_table=pd.DataFrame({"title": [TITLES[each % len(TITLES)] for each in range(DATA.n_items)]})
)
RAGGED = replace(DATA, train=DATA.train.where((DATA.train.users % 3 > 0) | (torch.arange(len(DATA.train)) % 5 < 4)))
LORA = {"lora": {"rank": 2, "alpha": 4, "dropout": 0.0}}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    **{name: (name, {}) for name in ("mf", "lightgcn", "kgat", "sasrec", "gru4rec", "stosa", "deepfm", "biased_mf")},
    "lstm_text": ("lstm_text", {}),
    "llm_prompt": ("llm_prompt", {"template": "The {history} Will like {item} :", "window": 2, "title_tokens": 6}),
    "text_tower": ("text_tower", {}),
    "a tower of histories": ("text_tower", {"user": "history"}),
    "an adapted tower": ("text_tower", LORA),
    "an adapted tower of histories": ("text_tower", {"user": "history", **LORA}),
}
KNOWN = [name for name, (model, _) in MODELS.items() if buildable(model)]
READING = ("sasrec", "gru4rec", "lstm_text", "llm_prompt", "an adapted tower", "an adapted tower of histories")
OF: dict[Any, Any] = {
    bpr: lambda scores: Categorical(logits=scores),
    softmax: lambda scores: Categorical(logits=scores),
    bce: lambda scores: Bernoulli(logits=scores),
    squared_hinge: lambda scores: Bernoulli(logits=scores),
    mse: lambda scores: Normal(scores, 1.0),
}


def case(name: str, *, train: bool = False) -> tuple[RecModel, Batch]:
    """A model with texts and histories of several lengths, and a batch of its training."""
    model, changes = MODELS[name]
    data = MIXED if model in ("lstm_text", "llm_prompt", "text_tower") else RAGGED
    built = build(model, replace(data, train=RAGGED.train), **changes).train(train)
    return built, batch_for(built, replace(data, train=RAGGED.train))


def found(objective: Any, model: RecModel, batch: Batch) -> tuple[dict[str, Tensor], Output]:
    """r, and the clean output."""
    at = Shifted(model)
    with torch.no_grad():
        clean = Shifted(model)(batch)
    return objective.perturbation(at, batch, clean, Masks(at, batch)), clean


def apart(loss: Any, clean: Tensor, there: Tensor) -> Tensor:
    """KL(p‖q) `[B]`, by torch.distributions."""
    p, q = OF[loss](clean), OF[loss](there)
    assert isinstance(p, Distribution)
    each = kl_divergence(p, q)
    return each if each.ndim == 1 else each.mean(1)


class TestKL:
    ONE, TWO = (3 * torch.randn(5, 4, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    BATCH = Batch(torch.arange(5), None, torch.zeros(5, 4))

    @pytest.mark.parametrize("loss", list(OF))
    def test_it_is_that_of_the_distributions_and_both_ways_it_is_the_divergence(self, loss: Any) -> None:
        one, two = Output(self.ONE), Output(self.TWO)
        torch.testing.assert_close(kl(one, two, self.BATCH, loss), apart(loss, self.ONE, self.TWO))
        both = kl(one, two, self.BATCH, loss) + kl(two, one, self.BATCH, loss)
        torch.testing.assert_close(both, divergence(one, two, self.BATCH, loss))

    @pytest.mark.parametrize("loss", [bce, softmax, mse])
    def test_candidates_that_do_not_count_are_left_out_and_have_no_gradient(self, loss: Any) -> None:
        mask = torch.ones(5, 4, dtype=torch.bool)
        mask[:, 3] = False
        two = self.TWO.clone().requires_grad_()
        value = kl(Output(self.ONE), Output(two), replace(self.BATCH, mask=mask), loss)
        short = kl(Output(self.ONE[:, :3]), Output(self.TWO[:, :3]), self.BATCH, loss)
        torch.testing.assert_close(value, short)
        (slope,) = torch.autograd.grad(value.sum(), two)
        assert slope.isfinite().all()
        assert not slope[:, 3].any()


class TestFormula:
    @pytest.mark.parametrize("relative", ["own", "no"])
    @pytest.mark.parametrize("loss", [bpr, bce, mse])
    def test_one_step_is_the_formula_of_the_paper(self, loss: Any, relative: str) -> None:
        """Reference: matrix factorisation written out, r and p(x) constants."""
        model, batch = build("mf"), batch_of(negatives=3)
        assert batch.items is not None
        objective = defended("vat", model, Plain(loss), eps=0.3, xi=0.05, weight=2.5, steps=1, relative=relative)
        value = objective(Shifted(model), batch)

        tables = {"user.weight": model.get_parameter("user.weight"), "item.weight": model.get_parameter("item.weight")}

        def scores(moved: dict[str, Tensor]) -> Tensor:
            users, items = (tables[name] + moved[name] for name in tables)
            return (users[batch.users][:, None] * items[batch.items]).sum(2)

        draw = torch.Generator().manual_seed(0)
        sizes = {name: each.detach().norm(dim=1, keepdim=True) for name, each in tables.items()}
        units = sizes if relative == "own" else {name: torch.ones(1) for name in tables}
        start = {}
        for name, each in tables.items():
            drawn = torch.randn(each.shape, generator=draw)
            start[name] = (0.05 * units[name] * drawn / drawn.norm(dim=1, keepdim=True)).requires_grad_()
        clean = scores({name: torch.zeros_like(each) for name, each in tables.items()}).detach()
        slopes = torch.autograd.grad(apart(loss, clean, scores(start)).sum(), list(start.values()))
        r = {}
        for name, slope in zip(start, slopes, strict=True):
            size = slope.norm(dim=1, keepdim=True)
            r[name] = torch.where(size > 0, 0.3 * units[name] * slope / size, 0.0)
        expected = Plain(loss)(Shifted(model), batch) + 2.5 * apart(loss, clean, scores(r)).mean()
        torch.testing.assert_close(value, expected, rtol=1e-4, atol=1e-6)
        assert_gradients(gradients(model, value), gradients(model, expected), rtol=1e-3, atol=1e-6)

    def test_nothing_flows_into_the_clean_side(self) -> None:
        clean, there = (torch.randn(3, 4, requires_grad=True) for _ in range(2))
        batch = Batch(torch.arange(3), None, torch.zeros(3, 4))
        defended("vat", build("mf")).apart(Output(there), Output(clean), batch).sum().backward()
        assert clean.grad is None
        assert there.grad is not None

    def test_power_iteration_finds_the_direction_in_which_the_divergence_curves_most(self) -> None:
        """Scores W x: the KL of softmaxes is ½ rᵀ Wᵀ (diag p − p pᵀ) W r to second order."""
        model = Linear()
        batch = Batch(torch.arange(4), None, torch.zeros(4, 6))
        angles = []
        for steps in (0, 1, 60):
            objective = defended("vat", model, Plain(softmax), steps=steps, eps=0.2, xi=1e-2, relative="no")
            (r,) = found(objective, model, batch)[0].values()
            torch.testing.assert_close(r.norm(dim=1), torch.full((4,), 0.2))
            tops = []
            for user, each in enumerate(r):
                p = (model.scores @ model.user.weight[user]).softmax(0).detach()
                curvature = model.scores.T @ (p.diag() - p[:, None] * p) @ model.scores
                tops.append(torch.linalg.eigh(curvature)[1][:, -1] @ each / 0.2)
            angles.append(torch.stack(tops).abs())
        assert (angles[2] > 0.999).all()
        assert angles[0].mean() < angles[1].mean() < angles[2].mean()

    def test_rows_that_a_batch_does_not_name_stay(self) -> None:
        model, batch = build("mf"), batch_of(size=3)
        r, _ = found(defended("vat", model), model, batch)
        assert batch.items is not None
        for name, named in (("user.weight", batch.users), ("item.weight", batch.items.unique())):
            moved = r[name].any(1)
            assert moved[named].all()
            assert moved.sum() == len(named.unique())


class Linear(RecModel):
    """Scores of a fixed matrix and the vector of each user."""

    def __init__(self) -> None:
        super().__init__()
        draw = torch.Generator().manual_seed(5)
        self.user = nn.Embedding(4, 5)
        self.scores: Tensor
        self.register_buffer("scores", torch.randn(6, 5, generator=draw))

    def forward(self, batch: Batch, encoded: None) -> Output:
        return Output(self.user(batch.users) @ self.scores.T)


@pytest.mark.parametrize("name", KNOWN)
class TestModels:
    @pytest.mark.parametrize("train", [True, False])
    def test_no_perturbation_gives_no_loss(self, name: str, train: bool) -> None:
        """With dropout too: both outputs have the same masks."""
        model, batch = case(name, train=train)
        values = []
        for objective in (usual(model), defended("vat", model, eps=0.0, weight=7.0)):
            torch.manual_seed(3)
            values.append(objective(Shifted(model), batch))
        torch.testing.assert_close(*values, rtol=0, atol=1e-5)

    def test_without_weight_it_is_plain_training_bit_for_bit(self, name: str) -> None:
        model, batch = case(name, train=True)
        seen = []
        for objective in (usual(model), defended("vat", model, weight=0.0)):
            torch.manual_seed(3)
            seen.append(gradients(model, objective(Shifted(model), batch)))
        assert all(torch.equal(seen[0][key], seen[1][key]) for key in seen[0])

    def test_it_parts_the_scores_more_than_a_random_perturbation_of_that_size(self, name: str) -> None:
        model, batch = case(name)
        values = []
        for steps in (3, 0):
            objective = defended("vat", model, eps=0.1, steps=steps)
            r, clean = found(objective, model, batch)
            assert all(each.isfinite().all() for each in r.values())
            with torch.no_grad():
                values.append(objective.apart(Shifted(model, r)(batch), clean, batch).mean())
        assert values[0] > 1.2 * values[1] > 0

    def test_it_trains_in_reduced_precision_as_in_single(self, name: str) -> None:
        model, batch = case(name)
        values = []
        for bf16 in (False, True):
            objective = defended("vat", model, weight=100.0)
            with autocast("bf16" if bf16 else "fp32", torch.device("cpu")):
                values.append(objective.added(Shifted(model), batch))
        assert any(each.any() for each in gradients(model, values[0]).values())
        assert values[1].item() == pytest.approx(values[0].item(), rel=1e-3)


@pytest.mark.parametrize("name", [each for each in READING if each in KNOWN])
@pytest.mark.parametrize("relative", ["own", "no"])
def test_tokens_and_events_of_a_row_share_one_ball_without_padding(name: str, relative: str) -> None:
    model, batch = case(name)
    at = Shifted(model)
    r, _ = found(defended("vat", model, eps=0.1, relative=relative), model, batch)
    ((key, each),) = r.items()
    lengths = model.read_lengths(batch, at.encoded)
    real = torch.arange(each.shape[1]) < lengths[:, None]
    assert not real.all()
    assert not each[~real].any()
    units = (at.activations([key], batch)[key] * real[..., None]).flatten(1).norm(dim=1)
    if relative == "no":
        units = torch.ones_like(units)
    sizes = each.flatten(1).norm(dim=1)
    read = sizes > 0
    assert read.any()
    torch.testing.assert_close(sizes[read], 0.1 * units[read], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "changes", [{"weight": -1.0}, {"steps": -1}, {"xi": 0.0}, {"eps": -1.0}, {"relative": "some"}], ids=str
)
def test_settings_that_make_no_sense_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(RrecError, match=next(iter(changes))):
        defended("vat", build("mf"), **changes)


def test_a_model_without_embeddings_is_refused() -> None:
    with pytest.raises(RrecError, match="model 'ease' has no embedding surface"):
        defended("vat", build("ease"))
