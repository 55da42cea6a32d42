"""Perturbed rows, features and vectors of triples: APR in several steps, AMR, PamaCF, VAT."""

from typing import Any

import pytest
import torch
from conftest import (
    DATA,
    assert_gradients,
    batch_for,
    batch_of,
    build,
    defended,
    delta_of,
    gradients,
    learner,
    usual,
)
from torch import Tensor
from torch.nn import functional as F

from robustbench_rec.batch import Batch, Output
from robustbench_rec.errors import RrecError
from robustbench_rec.model import RecModel
from robustbench_rec.objective import Plain, start_epoch
from robustbench_rec.sampling import sampler
from robustbench_rec.shifted import Shifted

MEETING = ["mf", "biased_mf", "lightgcn", "kgat", "structure_aware_kgat", "kgcn"]


def paired(model: RecModel, *, size: int = 16) -> Batch:
    """A batch with a sampled negative."""
    built = sampler(DATA, model, loss="bpr", batch_size=size, negatives=1)
    return next(iter(built.epoch(torch.Generator().manual_seed(0))))


class TestSeveralSteps:
    def test_they_stay_in_the_l2_ball_of_one_step_and_climb_higher(self) -> None:
        model, batch = learner("toy"), batch_of()
        values = {}
        for steps, size in ((1, 1.0), (10, 0.25), (25, 0.25)):
            objective = defended("apr", model, eps=0.8, relative="no", steps=steps, step_size=size)
            delta = delta_of(objective, model, batch)
            assert all(each.norm(dim=1).max() <= 0.8 * (1 + 1e-9) for each in delta.values())
            values[steps] = objective(Shifted(model), batch).item()
        assert values[1] < values[10]
        assert values[25] > values[1]


class TestAMR:
    @pytest.mark.parametrize("name", ["toy", "deepfm", "lstm_text"])
    def test_features_alone_move_by_the_share_of_their_norm(self, name: str) -> None:
        model = learner(name)
        batch = batch_for(model)
        delta = delta_of(defended("amr", model, eps=0.3), model, batch)
        assert delta
        for key, each in delta.items():
            assert key.rpartition(".")[2].startswith("feature_")
            own = dict(model.named_buffers())[key].norm(dim=-1)
            moved = each.norm(dim=-1)
            torch.testing.assert_close(moved[moved > 0], (0.3 * own)[moved > 0])
            assert moved.any()

    def test_it_is_the_clean_loss_plus_lambda_times_the_one_at_the_moved_features(self) -> None:
        model, batch = learner("toy"), batch_of()
        objective = defended("amr", model, weight=2.5)
        there = Shifted(model, delta_of(objective, model, batch))
        expected = usual(model)(Shifted(model), batch) + 2.5 * usual(model)(there, batch)
        found = objective(Shifted(model), batch)
        torch.testing.assert_close(found, expected)
        assert_gradients(gradients(model, found), gradients(model, expected), rtol=1e-5, atol=1e-7)

    def test_a_model_without_features_is_refused(self) -> None:
        with pytest.raises(RrecError, match="model 'mf' has no feature surface to attack .*embedding"):
            defended("amr", build("mf"))


def exact(output: Output, batch: Batch) -> Tensor:
    """BPR in the precision of the scores."""
    return F.softplus(output.scores[:, 1] - output.scores[:, 0])


class TestPerUser:
    """Reference: the published loops over triples, written out for matrix factorisation."""

    TRIPLES = torch.tensor([[0, 1, 2], [0, 3, 4], [5, 1, 6], [7, 8, 1]])

    def by_hand(self, model: RecModel, eps: float, shares: Tensor) -> Tensor:
        """Loss at the vectors of each triple moved uphill by themselves."""
        users, items = (model.get_parameter(f"{name}.weight").detach() for name in ("user", "item"))
        losses = []
        for (u, i, j), share in zip(self.TRIPLES.tolist(), shares.tolist(), strict=True):
            p, q, r = users[u], items[i], items[j]
            down = q - r  # the gradient of the loss in p is −g·(q − r), g > 0
            p_, q_, r_ = (
                p - eps * share * down / down.norm(),
                q - eps * share * p / p.norm(),
                r + eps * share * p / p.norm(),
            )
            losses.append(F.softplus(p_ @ r_ - p_ @ q_))
        return torch.stack(losses).mean()

    def case(self) -> tuple[RecModel, Batch]:
        model = build("mf").double()
        labels = torch.tensor([[1.0, 0.0]]).repeat(len(self.TRIPLES), 1)
        return model, Batch(self.TRIPLES[:, 0], self.TRIPLES[:, 1:], labels)

    def found(self, name: str, model: RecModel, batch: Batch, **changes: Any) -> Tensor:
        objective = defended(name, model, Plain(exact), epoch=5, relative="no", **changes)
        value: Tensor = objective(Shifted(model), batch)
        return value

    def test_pamacf_has_radii_by_the_length_of_the_user_vectors(self) -> None:
        model, batch = self.case()
        sizes = model.get_parameter("user.weight").detach()[batch.users].square().sum(1)
        shares = 2 * torch.sigmoid(sizes / sizes.mean() - 1)
        assert shares.min() > 0.5
        clean = Plain(exact)(Shifted(model), batch)
        expected = clean + 0.7 * self.by_hand(model, 0.2, shares)
        torch.testing.assert_close(self.found("pamacf", model, batch, eps=0.2, weight=0.7), expected)

    def test_vat_has_radii_by_the_sum_of_the_losses_of_a_user(self) -> None:
        model, batch = self.case()
        losses = exact(Shifted(model)(batch), batch).detach()
        sums = {0: losses[0] + losses[1], 5: losses[2], 7: losses[3]}
        mean = torch.stack(list(sums.values())).mean()
        shares = torch.stack([2 * torch.sigmoid(mean / sums[int(user)] - 1) for user in batch.users])
        assert shares[0] == shares[1] < shares[2]  # who is active looks hard
        expected = Plain(exact)(Shifted(model), batch) + self.by_hand(model, 0.2, shares)
        torch.testing.assert_close(self.found("vat_user", model, batch, eps=0.2), expected)

    @pytest.mark.parametrize("defense", ["pamacf", "vat_user"])
    @pytest.mark.parametrize("name", MEETING)
    def test_the_vectors_that_are_multiplied_move_sample_by_sample(self, name: str, defense: str) -> None:
        model = learner(name)
        batch = paired(model)
        objective = defended(defense, model, epoch=5, eps=0.2)
        value = objective(Shifted(model), batch)
        users, items = objective.attack.names
        base = objective.attack.base(Shifted(model), batch)
        assert base[users].shape[0] == len(batch)
        assert base[items].shape[:2] == (len(batch), 2)
        shares = objective.attack.shares
        delta = delta_of(objective, model, batch)
        torch.testing.assert_close(delta[users].norm(dim=1), 0.2 * shares * base[users].norm(dim=1))
        assert ((shares > 0.5) & (shares <= 2)).all()
        expected = usual(model)(Shifted(model), batch) + usual(model)(Shifted(model, delta), batch)
        torch.testing.assert_close(value, expected)

    @pytest.mark.parametrize("defense", ["pamacf", "vat_user"])
    @pytest.mark.parametrize("name", ["sasrec", "gru4rec"])
    def test_the_state_that_is_scored_stands_for_the_user(self, name: str, defense: str) -> None:
        model = learner(name)
        batch = paired(model)
        assert batch.history is not None
        assert batch.history.steps is not None
        objective = defended(defense, model, Plain(exact), epoch=5)
        objective(Shifted(model), batch)
        base = objective.attack.base(Shifted(model), batch)
        assert {len(each) for each in base.values()} == {len(batch)}
        assert len(objective.attack.shares) == len(batch) > len(batch.users)

    @pytest.mark.parametrize("defense", ["pamacf", "vat_user"])
    def test_it_begins_after_some_epochs_and_is_plain_training_before(self, defense: str) -> None:
        model, batch = build("mf"), batch_of()
        objective = defended(defense, model, start=3)
        plain = usual(model)(Shifted(model), batch)
        for epoch in range(5):
            start_epoch(objective, epoch, torch.Generator())
            assert torch.equal(objective(Shifted(model), batch), plain) == (epoch < 3)

    @pytest.mark.parametrize("defense", ["pamacf", "vat_user"])
    @pytest.mark.parametrize("changes", [{"eps": 0.0}, {"scale": 0.0}], ids=str)
    def test_no_radius_doubles_the_plain_gradient(self, defense: str, changes: dict[str, float]) -> None:
        model, batch = build("mf"), batch_of()
        found = gradients(model, defended(defense, model, epoch=5, **changes)(Shifted(model), batch))
        plain = gradients(model, usual(model)(Shifted(model), batch))
        assert_gradients(found, {key: 2 * each for key, each in plain.items()})

    @pytest.mark.parametrize("defense", ["pamacf", "vat_user"])
    def test_what_it_cannot_do_is_one_line(self, defense: str) -> None:
        model = learner("sasrec")
        for epoch in (0, 5):  # not only when it begins
            with pytest.raises(RrecError, match=f"defense '{defense}' .*whole catalogue: set loss=bpr negatives=1"):
                defended(defense, model, epoch=epoch)(Shifted(model), batch_for(model))
        with pytest.raises(RrecError, match="model 'neumf' has no user and item vectors whose dot product"):
            defended(defense, build("neumf"))
        for key in ("weight", "scale", "start"):
            with pytest.raises(RrecError, match=f"{key}=-1"):
                defended(defense, build("mf"), **{key: -1})
