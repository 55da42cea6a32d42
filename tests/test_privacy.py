"""dp_sgd against gradients taken one event at a time, and against Opacus."""

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import batch_for, batch_of, build, buildable, compose, configured, gradients
from torch import Tensor, nn

from robustbench_rec import composing
from robustbench_rec.batch import Batch, Output
from robustbench_rec.defenses import defenses
from robustbench_rec.defenses.dp_sgd import DPSGD
from robustbench_rec.errors import RrecError
from robustbench_rec.losses import loss
from robustbench_rec.model import RecModel
from robustbench_rec.models import models
from robustbench_rec.objective import Plain, told
from robustbench_rec.shifted import Shifted
from robustbench_rec.tasks import distill, finetune, train

PRIVATE = ["mf", "neumf", "deepfm", "kgcn"]


def plain(model: RecModel) -> Plain:
    return Plain(loss(model.loss))


def learner(name: str, *, seed: int = 0, **changes: Any) -> RecModel:
    fields = models[name].Config.__dataclass_fields__
    off = {each: 0.0 for each in ("l2", "dropout") if each in fields}
    return build(name, seed=seed, **{**off, **changes}).train()


def private(model: RecModel, **changes: Any) -> DPSGD:
    built = defenses.build(configured("defense", "dp_sgd", **({"noise": 0.0} | changes)), plain(model), model)
    assert isinstance(built, DPSGD)
    built.start_epoch(0, torch.Generator().manual_seed(0))
    return built


def one_by_one(model: RecModel, batch: Batch) -> list[dict[str, Tensor]]:
    """The gradient of each event by itself."""
    return [
        gradients(model, plain(model)(Shifted(model), batch.rows(torch.tensor([row])))) for row in range(len(batch))
    ]


def length(gradient: dict[str, Tensor]) -> float:
    return torch.cat([each.flatten() for each in gradient.values()]).norm().item()


def assert_close(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    for name, each in expected.items():
        torch.testing.assert_close(found[name], each, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("name", PRIVATE)
class TestClipping:
    def test_a_clip_that_is_never_reached_is_plain_training(self, name: str) -> None:
        model = learner(name)
        batch = batch_for(model)
        found = gradients(model, private(model, clip=1e6)(Shifted(model), batch))
        assert_close(found, gradients(model, plain(model)(Shifted(model), batch)))

    def test_the_value_is_the_mean_loss(self, name: str) -> None:
        model = learner(name)
        batch = batch_for(model)
        value = private(model)(Shifted(model), batch)
        assert value.item() == pytest.approx(plain(model)(Shifted(model), batch).item(), rel=1e-5)

    def test_the_gradient_of_every_event_is_clipped_by_itself(self, name: str) -> None:
        model = learner(name)
        batch = batch_for(model)
        each = one_by_one(model, batch)
        clip = sorted(map(length, each))[len(each) // 2]  # half of them are longer
        expected = {
            key: torch.stack([min(1, clip / length(one)) * one[key] for one in each]).mean(0) for key in each[0]
        }
        assert_close(gradients(model, private(model, clip=clip)(Shifted(model), batch)), expected)

    def test_one_event_more_moves_the_sum_by_the_clip_at_most(self, name: str) -> None:
        model, clip = learner(name), 1e-3
        batch = batch_for(model)
        names = [each for each, _ in model.named_parameters()]
        objective = private(model, clip=clip)
        _, whole = objective.clipped(Shifted(model), batch, names)
        _, less = objective.clipped(Shifted(model), batch.rows(torch.arange(1, len(batch))), names)
        assert length({key: whole[key] - less[key] for key in names}) <= clip * (1 + 1e-4)

    def test_portions_of_a_batch_change_nothing(self, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        model = learner(name)
        batch = batch_for(model)
        once = gradients(model, private(model)(Shifted(model), batch))
        monkeypatch.setattr("robustbench_rec.defenses.dp_sgd.CELLS", 1)
        assert_close(gradients(model, private(model)(Shifted(model), batch)), once)


def test_the_optimiser_of_opacus_takes_the_same_clipped_mean() -> None:
    optimizers = pytest.importorskip("opacus.optimizers")
    for name in ("mf", "deepfm"):
        model, clip = learner(name), 0.05
        batch = batch_for(model)
        found = gradients(model, private(model, clip=clip)(Shifted(model), batch))
        each = one_by_one(model, batch)
        optimizer = optimizers.DPOptimizer(
            torch.optim.SGD(model.parameters(), lr=0.1),
            noise_multiplier=0.0,
            max_grad_norm=clip,
            expected_batch_size=len(batch),
        )
        for key, weight in model.named_parameters():
            weight.grad_sample = torch.stack([one[key] for one in each])  # type: ignore[attr-defined]
        optimizer.pre_step()
        for key, weight in model.named_parameters():
            assert weight.grad is not None
            torch.testing.assert_close(found[key], weight.grad, rtol=1e-3, atol=1e-7)


class BPR(nn.Module):
    """mf with the layers that Opacus knows."""

    def __init__(self, model: RecModel) -> None:
        super().__init__()
        self.user, self.item = (
            nn.Embedding.from_pretrained(model.get_parameter(f"{name}.weight").detach().clone(), freeze=False)
            for name in ("user", "item")
        )

    def forward(self, users: Tensor, items: Tensor) -> Tensor:
        return (self.user(users)[:, None] * self.item(items)).sum(2)


def test_gradient_samples_of_opacus_are_clipped_to_the_same_mean() -> None:
    opacus = pytest.importorskip("opacus")
    optimizers = pytest.importorskip("opacus.optimizers")
    model, batch, clip = learner("mf"), batch_of(negatives=1), 0.1
    assert batch.items is not None
    found = gradients(model, private(model, clip=clip)(Shifted(model), batch))
    peer = opacus.GradSampleModule(BPR(model))
    optimizer = optimizers.DPOptimizer(
        torch.optim.SGD(peer.parameters(), lr=0.1),
        noise_multiplier=0.0,
        max_grad_norm=clip,
        expected_batch_size=len(batch),
    )
    scores = peer(batch.users, batch.items)
    nn.functional.softplus(scores[:, 1] - scores[:, 0]).mean().backward()
    optimizer.pre_step()
    assert max(length({"": each}) for each in found.values()) > 0
    for key in ("user.weight", "item.weight"):
        expected = peer.get_parameter(f"_module.{key}").grad
        torch.testing.assert_close(found[key], expected, rtol=1e-3, atol=1e-7)


class Scaled(RecModel):
    """A score that is a number times that of an item."""

    loss = "bpr"

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(2.0))
        self.item = nn.Parameter(torch.linspace(-1, 1, 20))

    def forward(self, batch: Batch, encoded: None) -> Output:
        return Output(self.scale * self.item[batch.items])


def test_a_parameter_without_a_dimension_is_clipped_with_the_others() -> None:
    model, batch = Scaled(), batch_of()
    each, clip = one_by_one(model, batch), 0.3
    assert min(map(length, each)) < clip < max(map(length, each))
    expected = {key: torch.stack([min(1, clip / length(one)) * one[key] for one in each]).mean(0) for key in each[0]}
    assert_close(gradients(model, private(model, clip=clip)(Shifted(model), batch)), expected)


class TestNoise:
    @pytest.fixture(autouse=True)
    def _opacus(self) -> None:
        pytest.importorskip("opacus")

    def test_its_deviation_is_sigma_times_the_clip_over_the_batch(self) -> None:
        model, batch = learner("mf"), batch_of()
        quiet = gradients(model, private(model, clip=0.5)(Shifted(model), batch))
        loud = gradients(model, private(model, clip=0.5, noise=3.0)(Shifted(model), batch))
        added = torch.cat([(loud[key] - quiet[key]).flatten() for key in quiet])
        assert added.std().item() == pytest.approx(3.0 * 0.5 / len(batch), rel=0.05)
        assert added.mean().abs() < 0.01

    def test_it_comes_from_the_generator_of_the_epoch(self) -> None:
        model, batch = learner("mf"), batch_of()
        objective = private(model, noise=1.0)

        def drawn(seed: int) -> Tensor:
            objective.start_epoch(0, torch.Generator().manual_seed(seed))
            return gradients(model, objective(Shifted(model), batch))["user.weight"]

        assert torch.equal(drawn(1), drawn(1))
        assert not torch.equal(drawn(1), drawn(2))

    def test_epsilon_is_that_of_opacus_after_as_many_steps(self) -> None:
        from opacus.accountants import RDPAccountant

        model = learner("mf")
        objective = private(model, noise=1.1, delta=1e-4)
        assert objective.told() == {}
        batches = [batch_of(size=16, seed=seed) for seed in range(3)] + [batch_of(size=8)]
        for epoch in range(2):
            objective.start_epoch(epoch, torch.Generator().manual_seed(epoch))
            for batch in batches:
                objective(Shifted(model), batch)
        accountant = RDPAccountant()
        for _ in range(8):
            accountant.step(noise_multiplier=1.1, sample_rate=16 / 56)
        expected = {"privacy/epsilon": pytest.approx(accountant.get_epsilon(delta=1e-4)), "privacy/delta": 1e-4}
        assert told(objective) == expected

    def test_what_was_spent_is_part_of_a_resumable_state(self) -> None:
        model, batch = learner("mf"), batch_of()
        objective, again = private(model, noise=1.0), private(model, noise=1.0)
        for _ in range(3):
            objective(Shifted(model), batch)
        again.load_state_dict(objective.state_dict())
        assert again.told() == objective.told() != {}

    def test_a_run_tells_it(self, tmp_path: Path) -> None:
        words = [
            "dataset=synthetic",
            "dataset.n_users=40",
            "dataset.n_items=30",
            "device=cpu",
            f"data_dir='{tmp_path}'",
        ]
        words += ["model=mf", "model.dim=4", "model.l2=0", "defense=dp_sgd", "epochs=2", "batch_size=64"]
        metrics = train.run(composing.typed(compose("train", *words), "train"), tmp_path)
        assert 0 < metrics["privacy/epsilon"] < 100
        assert metrics["privacy/delta"] == 1e-5


def test_without_noise_nothing_is_private() -> None:
    model = learner("mf")
    objective = private(model)
    objective(Shifted(model), batch_of())
    assert objective.told() == {}


def test_without_opacus_noise_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "opacus.accountants", None)
    with pytest.raises(RrecError, match=r"robustbench_rec\[privacy\]"):
        private(learner("mf"), noise=1.0)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("lightgcn", "events of all users"),
        ("kgat", "events of all users"),
        ("deepcf_mlp", "events of all users"),
        ("sasrec", "histories"),
        ("biased_mf", "phase of its own"),
        ("text_tower", "which items have events"),
    ],
)
def test_models_through_which_events_meet_are_refused(name: str, reason: str) -> None:
    if not buildable(name):
        pytest.skip("transformers is not installed")
    with pytest.raises(RrecError, match=reason):
        private(build(name))


def test_a_model_without_gradients_of_single_events_is_refused_in_one_line() -> None:
    model = learner("lstm_text")
    with pytest.raises(RrecError, match="no gradients of single events") as error:
        private(model)(Shifted(model), batch_for(model))
    assert "\n" not in str(error.value)


def test_a_penalty_that_looks_at_the_batch_is_refused() -> None:
    model = build("mf", l2=0.1)
    with pytest.raises(RrecError, match="model.l2=0"):
        private(model)(Shifted(model), batch_of())


@pytest.mark.parametrize("changes", [{"clip": 0.0}, {"noise": -1.0}, {"delta": 0.0}, {"delta": 1.0}])
def test_settings_that_make_no_sense_are_refused(changes: dict[str, float]) -> None:
    with pytest.raises(RrecError, match="dp_sgd with"):
        private(learner("mf"), **changes)


def test_nothing_may_be_added_to_a_private_loss(tmp_path: Path) -> None:
    words = ["dataset=synthetic", "dataset.n_users=40", "dataset.n_items=30", "device=cpu", f"data_dir='{tmp_path}'"]
    model = ["model=mf", "model.dim=4", "model.l2=0", "epochs=1"]
    (tmp_path / "teacher").mkdir()
    train.run(composing.typed(compose("train", *words, *model), "train"), tmp_path / "teacher")
    more = [f"teacher='{tmp_path / 'teacher'}'", "defense=dp_sgd", "defense.noise=0"]
    with pytest.raises(RrecError, match="nothing may be added"):
        distill.run(composing.typed(compose("distill", *words, *model, *more), "distill"), tmp_path)


def test_a_start_whose_training_epsilon_would_not_count_is_refused(tmp_path: Path) -> None:
    words = ["dataset=synthetic", "dataset.n_users=40", "dataset.n_items=30", "device=cpu", f"data_dir='{tmp_path}'"]
    words += ["model=mf", "model.dim=4", "model.l2=0", "epochs=1"]
    (tmp_path / "first").mkdir()
    train.run(composing.typed(compose("train", *words), "train"), tmp_path / "first")
    more = [f"start='{tmp_path / 'first'}'", "defense=dp_sgd", "defense.noise=0"]
    with pytest.raises(RrecError, match="start=.*no epsilon would count") as error:
        train.run(composing.typed(compose("train", *words, *more), "train"), tmp_path)
    assert "\n" not in str(error.value)


def test_what_goes_on_with_a_private_run_says_that_its_epsilon_ends(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    words = ["dataset=synthetic", "dataset.n_users=40", "dataset.n_items=30", "device=cpu", f"data_dir='{tmp_path}'"]
    model = ["model=mf", "model.dim=4", "model.l2=0", "epochs=1"]
    private, plain, tuned = (tmp_path / each for each in ("private", "plain", "tuned"))
    for each in (private, plain, tuned):
        each.mkdir()
    train.run(composing.typed(compose("train", *words, *model, "defense=dp_sgd"), "train"), private)
    assert not caplog.records
    told = "was trained with defense=dp_sgd: its epsilon says nothing of what is learnt from here on"
    train.run(composing.typed(compose("train", *words, *model, f"start='{private}'"), "train"), plain)
    assert caplog.messages == [f"start={private} {told}"]
    caplog.clear()
    more = ["epochs=1", "alphas=2", "device=cpu", f"data_dir='{tmp_path}'"]
    finetune.run(composing.typed(compose("finetune", f"ckpt='{private}'", *more), "finetune"), tuned)
    assert caplog.messages == [f"ckpt={private} {told}"]
