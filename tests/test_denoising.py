"""Denoising defences against their definitions."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import DATA, Fixed, Toy, batch_for, batch_of, build, configured, gradients
from torch import Tensor
from torch.distributions import Bernoulli, kl_divergence

from robustbench_rec.batch import Batch
from robustbench_rec.defenses import defenses
from robustbench_rec.defenses.self_purification import SelfPurification
from robustbench_rec.defenses.t_ce import TruncatedLoss
from robustbench_rec.denoising import SINGLE, Denoiser
from robustbench_rec.errors import RrecError
from robustbench_rec.losses import bernoulli, loss
from robustbench_rec.model import RecModel
from robustbench_rec.objective import Plain, start_epoch
from robustbench_rec.shifted import Shifted
from robustbench_rec.tasks.train import tell_late

NAMES = [name for name in defenses if issubclass(defenses[name], Denoiser)]
OFF: dict[str, dict[str, Any]] = {
    "t_ce": {"rate": 0.0},
    "r_ce": {"beta": 0.0},
    "bootstrapping": {"beta": 1.0},
    "self_purification": {"share": 0.0},
}
ON = [(name, kind) for name in NAMES for kind in defenses[name].supported]  # type: ignore[attr-defined]


def denoiser(name: str, trained: str = "bce", model: RecModel | None = None, *, epoch: int = 99, **changes: Any) -> Any:
    built = defenses.build(configured("defense", name, **changes), Plain(loss(trained)), model or build("mf"))
    start_epoch(built, epoch, torch.Generator().manual_seed(epoch))
    return built


def plain(kind: str, model: RecModel, batch: Batch) -> Tensor:
    value: Tensor = Plain(loss(kind))(Shifted(model), batch)
    return value


def fixed(scores: list[list[float]], labels: list[list[float]] | None = None) -> tuple[RecModel, Batch]:
    """Known scores; the positive is column 0 unless labels say otherwise."""
    table = torch.tensor(scores)
    label = torch.zeros_like(table) if labels is None else torch.tensor(labels)
    if labels is None:
        label[:, 0] = 1
    users, items = torch.arange(len(table)), torch.arange(table.shape[1]).expand_as(table)
    return Fixed(table), Batch(users, items, label)


@pytest.mark.parametrize(("name", "kind"), [(name, kind) for name, kind in ON if name in OFF])
def test_switched_off_it_is_plain_training(name: str, kind: str) -> None:
    model, batch = build("mf"), batch_of()
    value = denoiser(name, kind, model, **OFF[name])(Shifted(model), batch)
    torch.testing.assert_close(value, plain(kind, model, batch))
    found, expected = gradients(model, value), gradients(model, plain(kind, model, batch))
    for key, each in expected.items():
        torch.testing.assert_close(found[key], each)


@pytest.mark.parametrize("name", ["bootstrapping", "self_purification"])
def test_the_warm_up_is_plain_training_bit_for_bit(name: str) -> None:
    model, batch = build("mf"), batch_of()
    for epoch in range(3):
        value = denoiser(name, "bpr", model, epoch=epoch, warm_up=3)(Shifted(model), batch)
        assert torch.equal(value, plain("bpr", model, batch))


@pytest.mark.parametrize(
    ("name", "changes", "waits"),
    [
        ("bootstrapping", {"warm_up": 3}, 3),
        ("self_purification", {"warm_up": 3}, 3),
        ("t_ce", {"ramp": 4}, 1),
        ("pamacf", {"start": 2}, 2),
        ("vat_user", {"start": 2}, 2),
        ("rwp", {"growth": 4}, 1),
    ],
)
def test_a_training_that_ends_before_a_defence_begins_says_so(
    name: str, changes: dict[str, int], waits: int, caplog: pytest.LogCaptureFixture
) -> None:
    model, batch = build("mf"), batch_of()
    objective = defenses.build(configured("defense", name, **changes), Plain(loss("bpr")), model)
    around = defenses.build(configured("defense", "none"), objective, model)
    value = plain("bpr", model, batch)
    for epoch in range(waits):
        start_epoch(objective, epoch, torch.Generator().manual_seed(epoch))
        torch.testing.assert_close(objective(Shifted(model), batch), value)
    tell_late(around, waits + 1)
    assert not caplog.records
    tell_late(around, waits)
    told = f"defense={name} does nothing in its first epochs, {waits} of them, and epochs={waits}: "
    assert caplog.messages == [told + "this trains without it"]
    tell_late(denoiser("t_ce", ramp=0), 1)
    assert len(caplog.messages) == 1


@pytest.mark.parametrize("name", NAMES)
def test_it_stands_innermost(name: str) -> None:
    model = build("mf")
    around = defenses.build(configured("defense", "apr"), Plain(loss("bpr")), model)
    with pytest.raises(RrecError, match=f"defense '{name}' acts on the losses of single events.* not around 'apr'"):
        defenses.build(configured("defense", name), around, model)
    inner = denoiser(name, "bpr", model)
    outer = defenses.build(configured("defense", "awp"), inner, model)
    start_epoch(outer, 9, torch.Generator().manual_seed(0))
    assert inner.epoch == 9
    assert outer(Shifted(model), batch_of()).isfinite()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", ["mse", "margin"])
def test_a_loss_that_is_no_probability_is_refused(name: str, kind: str) -> None:
    with pytest.raises(RrecError, match=f"defense '{name}' works with loss=bce, bpr.*; the loss here is {kind}"):
        denoiser(name, kind)


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("t_ce", {"rate": 1.0}),
        ("t_ce", {"ramp": -1}),
        ("r_ce", {"beta": -0.1}),
        ("gce", {"q": 0.0}),
        ("gce", {"q": 1.1}),
        ("bootstrapping", {"beta": 1.1}),
        ("bootstrapping", {"kind": "firm"}),
        ("self_purification", {"share": 1.1}),
        ("self_purification", {"confidence": 0.4}),
    ],
)
def test_settings_that_make_no_sense_are_refused(name: str, changes: dict[str, Any]) -> None:
    with pytest.raises(RrecError, match="defense."):
        denoiser(name, **changes)


class TestTruncated:
    """Conformance 14.11."""

    @pytest.mark.parametrize("rate", [0.1, 0.25, 0.5])
    @pytest.mark.parametrize("negatives", [1, 4])
    def test_it_drops_the_requested_share_of_the_positives_and_no_negative(self, rate: float, negatives: int) -> None:
        batch = batch_of(size=40, negatives=negatives)
        assert batch.items is not None
        n = len(batch)
        torch.manual_seed(1)
        model = Fixed(torch.randn(DATA.n_users, DATA.n_items))
        scores = Shifted(model)(batch).scores
        each = F.binary_cross_entropy_with_logits(scores, batch.labels, reduction="none")
        kept = each[:, 0].sort().values[: n - round(rate * n)]
        expected = torch.cat([kept, each[:, 1:].flatten()]).mean()
        value = denoiser("t_ce", "bce", model, rate=rate, ramp=0)(Shifted(model), batch)
        torch.testing.assert_close(value, expected)

    @pytest.mark.parametrize("kind", ["bpr", "softmax"])
    def test_of_a_ranking_loss_it_drops_whole_examples(self, kind: str) -> None:
        model, batch = build("mf"), batch_of(size=20)
        each = loss(kind)(Shifted(model)(batch), batch)
        value = denoiser("t_ce", kind, model, rate=0.2, ramp=0)(Shifted(model), batch)
        torch.testing.assert_close(value, each.sort().values[: len(each) - round(0.2 * len(each))].mean())

    def test_what_is_dropped_has_no_gradient(self) -> None:
        model, batch = fixed([[-9.0, 0.0], [1.0, 0.0], [2.0, 0.0], [3.0, 0.0]])
        found = gradients(model, denoiser("t_ce", "bce", model, rate=0.25, ramp=0)(Shifted(model), batch))["table"]
        assert (found != 0).tolist() == [[False, True], [True, True], [True, True], [True, True]]

    def test_the_rate_grows_with_the_epochs_and_ends_where_it_leads_to(self) -> None:
        rates = []
        for epoch in range(7):
            built = denoiser("t_ce", epoch=epoch, rate=0.2, ramp=4)
            assert isinstance(built, TruncatedLoss)
            rates.append(built.rate)
        assert rates == pytest.approx([0.0, 0.05, 0.1, 0.15, 0.2, 0.2, 0.2])

    def test_padding_is_neither_dropped_nor_counted(self) -> None:
        model, batch = fixed([[-9.0, 5.0], [1.0, 0.0], [2.0, 0.0]])
        mask = torch.tensor([[False, True], [True, True], [True, True]])
        masked = Batch(batch.users, batch.items, batch.labels, mask=mask)
        value = denoiser("t_ce", "bce", model, rate=0.5, ramp=0)(Shifted(model), masked)
        kept = F.binary_cross_entropy_with_logits(
            torch.tensor([5.0, 0.0, 2.0, 0.0]), torch.tensor([0.0, 0.0, 1.0, 0.0])
        )
        torch.testing.assert_close(value, kept)


class TestReweighted:
    """Conformance 14.11."""

    def test_its_weights_are_those_of_the_paper_and_detached(self) -> None:
        model, batch = fixed([[-2.0, 1.0], [0.5, -0.3]])
        scores = model.get_parameter("table")
        with torch.no_grad():
            weights = torch.stack([scores[:, 0].sigmoid() ** 0.25, (1 - scores[:, 1].sigmoid()) ** 0.25], 1)
        each = F.binary_cross_entropy_with_logits(scores, batch.labels, reduction="none")
        value = denoiser("r_ce", "bce", model, beta=0.25)(Shifted(model), batch)
        expected = (weights * each).mean()
        torch.testing.assert_close(value, expected)
        found = gradients(model, value)["table"]
        torch.testing.assert_close(found, gradients(model, expected)["table"])

    @pytest.mark.parametrize("kind", SINGLE)
    @pytest.mark.parametrize("q", [0.1, 0.7])
    def test_gce_has_its_gradient(self, kind: str, q: float) -> None:
        model, batch = build("mf"), batch_of()
        one = gradients(model, denoiser("gce", kind, model, q=q)(Shifted(model), batch))
        two = gradients(model, denoiser("r_ce", kind, model, beta=q)(Shifted(model), batch))
        for key, each in two.items():
            torch.testing.assert_close(one[key], each, rtol=1e-5, atol=1e-8)


class TestGeneralised:
    def test_it_goes_from_cross_entropy_to_the_absolute_error(self) -> None:
        model, batch = fixed([[-2.0, 1.0], [0.5, -0.3]])
        p = (model.get_parameter("table").detach() * torch.tensor([1.0, -1.0])).sigmoid()
        values = {q: denoiser("gce", "bce", model, q=q)(Shifted(model), batch).detach() for q in (1e-4, 0.5, 1.0)}
        torch.testing.assert_close(values[1e-4], plain("bce", model, batch).detach(), rtol=1e-3, atol=0)
        torch.testing.assert_close(values[0.5], ((1 - p.sqrt()) / 0.5).mean())
        torch.testing.assert_close(values[1.0], (1 - p).mean())


class TestBootstrapping:
    @pytest.mark.parametrize("kind", ["soft", "hard"])
    def test_it_is_the_loss_of_the_mixed_labels(self, kind: str) -> None:
        model, batch = fixed([[-2.0, 1.0], [0.5, -0.3]])
        p = model.get_parameter("table").detach().sigmoid()
        target = 0.8 * batch.labels + 0.2 * (p if kind == "soft" else (p > 0.5).float())
        expected = -(target * p.log() + (1 - target) * (1 - p).log()).mean()
        value = denoiser("bootstrapping", "bce", model, kind=kind, beta=0.8)(Shifted(model), batch)
        torch.testing.assert_close(value.detach(), expected)

    def test_the_soft_one_is_more_than_a_smaller_step(self) -> None:
        model, batch = fixed([[-2.0, 1.0], [0.5, -0.3]])
        value = denoiser("bootstrapping", "bce", model, kind="soft", beta=0.8)(Shifted(model), batch)
        found, expected = (gradients(model, each)["table"] for each in (value, plain("bce", model, batch)))
        assert not torch.allclose(found, 0.8 * expected, atol=1e-3)

    @pytest.mark.parametrize("kind", ["soft", "hard"])
    def test_with_softmax_the_belief_is_that_of_all_candidates(self, kind: str) -> None:
        table = torch.tensor([[0.3, 2.0, -1.0], [1.0, 0.2, 0.1]])
        model = Fixed(table)
        batch = Batch(torch.arange(2), None, torch.zeros(2, 0), targets=torch.tensor([0, 0]))
        p = table.softmax(1)
        own = p if kind == "soft" else F.one_hot(p.argmax(1), 3).float()
        target = 0.9 * F.one_hot(torch.tensor([0, 0]), 3) + 0.1 * own
        value = denoiser("bootstrapping", "softmax", model, kind=kind, beta=0.9)(Shifted(model), batch)
        torch.testing.assert_close(value.detach(), -(target * p.log()).sum(1).mean())
        masked = Batch(
            batch.users,
            torch.arange(3).expand(2, 3),
            torch.eye(3)[[0, 0]],
            mask=torch.tensor([[True, True, False]] * 2),
        )
        value = denoiser("bootstrapping", "softmax", model, kind=kind, beta=0.9)(Shifted(model), masked)
        assert gradients(model, value)["table"].isfinite().all()


class TestSelfPurification:
    def purifier(self, model: RecModel, **changes: Any) -> SelfPurification:
        built = denoiser("self_purification", "bce", model, warm_up=0, **changes)
        assert isinstance(built, SelfPurification)
        return built

    def test_the_divergence_is_that_of_two_coins(self) -> None:
        p, q = torch.tensor([-1.0, 0.0, 30.0]), torch.tensor([2.0, 0.0, -30.0])
        expected = torch.distributions.kl_divergence(
            torch.distributions.Bernoulli(logits=p.double()), torch.distributions.Bernoulli(logits=q.double())
        )
        torch.testing.assert_close(bernoulli(p.double(), q.double()), expected, rtol=1e-6, atol=1e-9)

    def test_no_perturbation_finds_nobody_fragile_and_a_real_one_everybody(self) -> None:
        model, batch = Toy(dtype=torch.float32), batch_of()
        assert not self.purifier(model, eps=0.0).fragility(Shifted(model), batch).any()
        assert (self.purifier(model, eps=0.3).fragility(Shifted(model), batch) > 0).all()

    def test_different_masks_make_nobody_fragile(self) -> None:
        model, batch = build("neumf", dropout=0.5).train(), batch_of()
        assert (Shifted(model)(batch).scores != Shifted(model)(batch).scores).any()
        assert not self.purifier(model, eps=0.0).fragility(Shifted(model), batch).any()

    def test_it_is_the_divergence_of_the_predictions_before_from_those_after(self) -> None:
        model, batch = Toy(dtype=torch.float32), batch_of()
        built = self.purifier(model, eps=1.5)
        found = built.fragility(Shifted(model), batch)
        start_epoch(built, 99, torch.Generator().manual_seed(99))
        before = Bernoulli(logits=Shifted(model)(batch).scores.detach())
        worse, _ = built.attack(
            Shifted(model), batch, lambda at, batch: kl_divergence(before, Bernoulli(logits=at(batch).scores)).mean(1)
        )
        expected = kl_divergence(before, Bernoulli(logits=worse(batch).scores)).mean(1)
        torch.testing.assert_close(found, expected, rtol=1e-2, atol=1e-6)

    def test_it_is_the_worst_of_its_size_by_and_large(self) -> None:
        model, batch = Toy(dtype=torch.float32), batch_of(size=60)
        built = self.purifier(model, eps=0.3)
        found = built.fragility(Shifted(model), batch).mean()
        random = configured("attack", "noise", surface="embedding", eps=0.3, norm="l2", per="row", relative="own")
        from robustbench_rec.attacks import attacks

        built.attack = attacks.build(random)  # type: ignore[assignment]
        assert found > 2 * built.fragility(Shifted(model), batch).mean()

    def test_only_sure_mistakes_on_positives_of_users_at_risk_are_corrected(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        model, batch = fixed([[-5.0, 5.0], [-1.0, 0.0], [-5.0, 0.0], [4.0, 0.0]])
        built = self.purifier(build("mf"), confidence=0.9)
        monkeypatch.setattr(built, "at_risk", lambda at, batch: torch.tensor([True, True, False, True]))
        labels = batch.labels.clone()
        labels[0, 0] = 0
        expected = F.binary_cross_entropy_with_logits(model.get_parameter("table"), labels)
        torch.testing.assert_close(built(Shifted(model), batch), expected)
        assert built.told() == {"purified/share": 1 / 4}

    def test_the_most_fragile_users_are_at_risk_with_all_their_events(self, monkeypatch: pytest.MonkeyPatch) -> None:
        model = build("mf")
        built = self.purifier(model, share=0.25)
        users = torch.tensor([3, 1, 3, 2, 0])
        batch = Batch(users, torch.zeros(5, 2, dtype=torch.long), torch.zeros(5, 2))
        monkeypatch.setattr(built, "fragility", lambda at, batch: torch.tensor([0.1, 0.4, 0.9, 0.2, 0.3]))
        assert built.at_risk(Shifted(model), batch).tolist() == [True, False, True, False, False]

    def test_a_model_of_sequences_has_its_steps_judged_by_user(self) -> None:
        model = build("sasrec")
        built = denoiser("self_purification", "bpr", model, warm_up=0)
        from robustbench_rec.sampling import sampler

        batches = sampler(DATA, model, loss="bpr", batch_size=16, negatives=1)
        batch = next(iter(batches.epoch(torch.Generator().manual_seed(0))))
        found = built.at_risk(Shifted(model), batch)
        assert found.shape == (len(batch),)
        assert built(Shifted(model), batch).isfinite()


@pytest.mark.parametrize("name", NAMES)
def test_under_flipped_labels_it_still_learns(name: str) -> None:
    model = build("mf")
    objective, batch = denoiser(name, "bpr", model), batch_for(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    first = plain("bpr", model, batch).item()
    for _ in range(60):
        optimizer.zero_grad()
        objective(Shifted(model), batch).backward()
        optimizer.step()
    assert plain("bpr", model, batch).item() < 0.8 * first
