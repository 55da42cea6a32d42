"""The laws of every component, over the registries: a new one is tested the moment its file exists."""

from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import (
    DATA,
    RECIPE,
    SHIFTING,
    batch_for,
    build,
    buildable,
    configured,
    gradients,
    make_data,
    question,
    surfaces,
)
from torch import Tensor

from robustbench_rec import checkpoint
from robustbench_rec.adaptations import adaptations
from robustbench_rec.ascent import Ascent, Perturbation
from robustbench_rec.attacks import attacks
from robustbench_rec.batch import Batch
from robustbench_rec.certificates import certificates
from robustbench_rec.cleans import cleans
from robustbench_rec.data import Data
from robustbench_rec.defenses import defenses
from robustbench_rec.defenses.dp_sgd import entangled
from robustbench_rec.denoising import Denoiser
from robustbench_rec.distillation import Lesson
from robustbench_rec.distills import distilled, distills
from robustbench_rec.dropout import Dropout
from robustbench_rec.errors import RrecError
from robustbench_rec.hardware import autocast
from robustbench_rec.losses import POINTWISE, loss
from robustbench_rec.meeting import Meeting
from robustbench_rec.minimal import Minimal
from robustbench_rec.model import RecModel
from robustbench_rec.models import models
from robustbench_rec.noises import noises
from robustbench_rec.norms import NORMS, SCALES, UNITS, Ball
from robustbench_rec.objective import Objective, Plain, start_epoch
from robustbench_rec.poisons import poisons
from robustbench_rec.registry import Registry
from robustbench_rec.sampling import epoch_generator, sampler
from robustbench_rec.shifted import Shifted, surface
from robustbench_rec.teacher import Taught

REGISTRIES: dict[str, Registry[Any]] = {
    "model": models,
    "attack": attacks,
    "defense": defenses,
    "distill": distills,
    "adaptation": adaptations,
    "noise": noises,
    "poison": poisons,
    "certify": certificates,
    "clean": cleans,
}
MODELS = [name for name in models if buildable(name)]
LEARNERS = [name for name in MODELS if build(name).trainable]
ON = [(name, kind) for name in MODELS for kind in surfaces(build(name))]
WIDE = make_data(n_items=80)  # lists of a teacher's best items find room here
LATE = 50  # an epoch in which every defence has begun
NEFTUNED = (  # embed tokens or events; text_tower with LoRA
    *("comirec", "gru4rec", "llm_prompt", "lstm_text", "multi_intent_gaussian", "sasrec", "stosa"),
)
PAIRED = ("pamacf", "vat_user")  # perturb the vectors of a user's own candidates
PENALTIES = {"l2", "kg_l2", "pvn", "kl", "free_bits", "diversity"}
USERS = torch.arange(DATA.n_users)


def scores(model: RecModel, items: Tensor | None = None, users: Tensor = USERS) -> Tensor:
    with torch.no_grad():
        return Shifted(model.eval())(question(model, users, items)).scores


def state(model: RecModel) -> dict[str, Tensor]:
    return {name: each.detach().clone() for name, each in (*model.named_parameters(), *model.named_buffers())}


def assert_same(before: dict[str, Tensor], after: dict[str, Tensor]) -> None:
    assert before.keys() == after.keys()
    for name, each in before.items():
        assert torch.equal(each, after[name]), name


def plain(model: RecModel) -> Objective:
    return Plain(loss(model.loss))


def defended(name: str, model: RecModel, **changes: Any) -> Objective:
    if name == "dp_sgd":
        changes = {"noise": 0.0, **changes}
        for each in (model, getattr(model, "config", None)):  # without a penalty
            if hasattr(each, "l2"):
                each.l2 = 0.0
        if type(model) is models["lstm_text"] or entangled(model):
            pytest.skip("dp_sgd refuses it")
    built = defenses.build(configured("defense", name, **changes), plain(model), model)
    start_epoch(built, LATE, torch.Generator().manual_seed(0))
    return built


def batch_under(defense: str, model: RecModel, data: Data = DATA, *, seed: int = 0) -> Batch:
    """A training batch; for a defence of single candidates beside sampled negatives, whatever the model's own way."""
    batch = batch_for(model, data, seed=seed)
    if batch.items is not None or defense not in PAIRED:
        return batch
    built = sampler(data, model, loss="bpr", batch_size=16, negatives=1)
    return next(iter(built.epoch(torch.Generator().manual_seed(seed))))


@cache
def seen(name: str) -> RecModel:
    """A model to look at, and no more than that."""
    return build(name)


def refused(name: str, defense: str) -> bool:
    """Whether a model has nothing that a defence could move, or a loss that it cannot take apart."""
    model, cls = seen(name), defenses[defense]
    if issubclass(cls, Denoiser):
        return model.loss not in cls.supported
    has = {
        "amr": "feature" in surfaces(model),
        "pamacf": meets(model),
        "vat_user": meets(model),
        "gaussian": "embedding" in surfaces(model),
        "neftune": name in NEFTUNED,
        "rdrop": any(isinstance(each, Dropout) and each.p for each in model.modules()),
    }
    return not has.get(defense, True)


def meets(model: RecModel) -> bool:
    return any(isinstance(each, Meeting) for each in model.modules())


FAMILIES = ("mf", "neumf", "kgat", "sasrec", "deepfm", "text_tower")  # with every defence, in `make check` too
USUAL = ("none", "at", "apr", "rawp")  # with every model
DEFENDED = [
    pytest.param(name, defense, marks=[] if name in FAMILIES or defense in USUAL else pytest.mark.slow)
    for name in LEARNERS
    for defense in defenses
    if not refused(name, defense)
]
REFUSED = [(name, defense) for name in LEARNERS for defense in defenses if refused(name, defense)]
BALLED = [
    each for each in SHIFTING if issubclass(attacks[each], Perturbation) and not issubclass(attacks[each], Minimal)
]
FEW: dict[str, dict[str, Any]] = {"apgd": {"steps": 6}, "square": {"queries": 6}, "simba": {"queries": 6}}


def attack_on(name: str, kind: str, **changes: Any) -> Perturbation:
    built = attacks.build(configured("attack", name, surface=kind, **(FEW.get(name, {}) | changes)))
    assert isinstance(built, Perturbation)
    return built


@pytest.mark.parametrize(("group", "name"), [(group, name) for group, found in REGISTRIES.items() for name in found])
class TestComponent:
    def test_its_yaml_fills_its_config_and_nothing_else(self, group: str, name: str) -> None:
        written = configured(group, name)
        assert written.pop("name") == name
        typed = REGISTRIES[group].config({"name": name, **written})
        assert asdict(typed) == written

    def test_its_docstring_begins_with_a_sentence(self, group: str, name: str) -> None:
        assert len(REGISTRIES[group].describe(name)) > 20


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        *((name, {"dim": 1}) for name in ("sasrec", "stosa", "multi_intent_gaussian", "structure_aware_kgat")),
        ("kgat", {"layers": []}),
    ],
)
def test_settings_that_leave_a_model_nothing_to_say_are_refused(name: str, settings: dict[str, Any]) -> None:
    with pytest.raises(RrecError, match="dim=1: .* dim=1|dim at least 2|one layer is needed"):
        build(name, **settings)


@pytest.mark.parametrize("name", MODELS)
class TestModel:
    def test_scores_are_finite_and_of_the_shape_of_the_candidates(self, name: str) -> None:
        model, items = build(name), torch.randint(DATA.n_items, (DATA.n_users, 7))
        assert scores(model).shape == (DATA.n_users, DATA.n_items)
        assert scores(model, items).shape == (DATA.n_users, 7)
        assert scores(model).isfinite().all()

    def test_no_candidates_means_the_whole_catalogue(self, name: str) -> None:
        model = build(name)
        catalogue = torch.arange(DATA.n_items).expand(DATA.n_users, -1)
        torch.testing.assert_close(scores(model), scores(model, catalogue))

    def test_a_score_depends_neither_on_other_candidates_nor_on_other_users(self, name: str) -> None:
        model, items = build(name), torch.randint(DATA.n_items, (DATA.n_users, 6))
        together = scores(model, items)
        torch.testing.assert_close(together[:, [4]], scores(model, items[:, [4]]))
        torch.testing.assert_close(together.flip(1), scores(model, items.flip(1)))
        torch.testing.assert_close(together[[3]], scores(model, items[[3]], USERS[[3]]))

    def test_rows_of_training_events_say_what_the_users_who_have_them_are_told(self, name: str) -> None:
        model = build(name).eval()
        if model.training_rows is not None:
            with torch.no_grad():
                found = model.of_rows(model.training_rows.rows(USERS), model.encode())
            torch.testing.assert_close(found, scores(model))
        assert not model.row_alone or model.training_rows is not None

    def test_a_model_that_is_not_personal_ranks_alike_for_everyone(self, name: str) -> None:
        found = scores(build(name))
        assert torch.equal(found, found[[0]].expand_as(found)) is not build(name).personal

    def test_the_weight_of_a_penalty_is_not_negative(self, name: str) -> None:
        settings = configured("model", name)
        for key in PENALTIES & settings.keys():
            with pytest.raises(RrecError, match=rf"model\.{key}=-0\.1"):
                build(name, **{key: -0.1})

    def test_computing_no_more_than_a_batch_needs_changes_nothing(self, name: str) -> None:
        model, users = build(name).eval(), torch.tensor([4, 1, 4])
        items = torch.tensor([[5, 0, 5], [0, 2, 7], [1, 1, 3]])
        names = surface(model, "embedding") if "embedding" in surfaces(model) else []
        delta = {each: 0.1 * torch.randn_like(tensor) for each, tensor in Shifted(model).tensors(names).items()}
        for batch in (question(model, users, items), question(model, users)):
            whole = Shifted(model, delta)(batch).scores
            outer = torch.randn_like(whole)
            for point in (Shifted(model, delta, sparing=True), Shifted(model, sparing=True).shift(delta)):
                assert (point.encoded is None) == (model.piecewise or Shifted(model).encoded is None)
                found = point(batch).scores
                torch.testing.assert_close(found, whole)
                if found.requires_grad:
                    ours = gradients(model, (found * outer).sum())
                    asked = gradients(model, (Shifted(model, delta)(batch).scores * outer).sum())
                    for key, each in asked.items():
                        torch.testing.assert_close(ours[key], each, rtol=1e-4, atol=1e-5)

    @pytest.mark.parametrize("training", [True, False])
    def test_a_forward_keeps_no_state(self, name: str, training: bool) -> None:
        model = build(name).train(training)
        before, attributes = state(model), set(vars(model))
        Shifted(model)(batch_for(model))
        assert_same(before, state(model))
        assert set(vars(model)) == attributes

    @pytest.mark.parametrize("whole", [True, False])
    def test_scores_may_be_written_over_by_their_reader(self, name: str, whole: bool) -> None:
        model, before = build(name), state(build(name))
        items = None if whole else torch.zeros(DATA.n_users, 1, dtype=torch.long)
        scores(model, items).fill_(-torch.inf)
        assert_same(before, state(model))

    def test_dropout_is_the_only_randomness(self, name: str) -> None:
        model = build(name)
        batch = batch_for(model)
        assert torch.equal(scores(model), scores(model))
        values = []
        for _ in range(2):
            torch.manual_seed(5)
            values.append(plain(model)(Shifted(model.train()), batch))
        assert torch.equal(*values)

    def test_the_same_seed_builds_the_same_model(self, name: str) -> None:
        one, two, other = build(name, seed=1), build(name, seed=1), build(name, seed=2)
        assert_same(state(one), state(two))
        if one.trainable:
            assert not torch.equal(scores(one), scores(other))

    def test_refresh_is_a_pure_function_of_the_parameters(self, name: str) -> None:
        model = build(name)
        before = state(model)
        model.refresh()
        model.refresh()
        assert_same(before, state(model))

    def test_a_checkpoint_gives_back_the_same_scores(
        self, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(checkpoint, "load_data", lambda recipe, data_dir: DATA)
        model, config = build(name, seed=3), configured("model", name)
        if model.trainable:  # away from the initial values, which the same seed would give again
            torch.optim.SGD(model.parameters(), lr=0.1).step(lambda: sum_of_losses(model))
            model.refresh()
        checkpoint.save(tmp_path, model, config, RECIPE, DATA)
        loaded = checkpoint.load(str(tmp_path), data_dir=None, device=torch.device("cpu"))
        assert loaded.config == config
        assert torch.equal(scores(loaded.model), scores(model))

    def test_only_what_is_learnt_or_fitted_is_stored(self, name: str) -> None:
        model = build(name)
        before = state(checkpoint.build(configured("model", name), DATA))
        graph = {key for key, each in model.named_buffers() if not each.is_floating_point() and each.ndim}
        fitted = {key for key in graph if not torch.equal(before[key], model.get_buffer(key))}
        assert not (graph - fitted) & model.state_dict().keys()


def sum_of_losses(model: RecModel) -> Tensor:
    model.zero_grad()
    value: Tensor = plain(model)(Shifted(model), batch_for(model))
    value.backward()
    for each in model.auxiliary(torch.Generator().manual_seed(0)):
        each.backward()
    return value


@pytest.mark.parametrize("name", LEARNERS)
class TestLearner:
    def test_every_parameter_receives_a_gradient(self, name: str) -> None:
        model = build(name)
        sum_of_losses(model)
        for key, each in model.named_parameters():
            assert each.grad is not None, key
            assert each.grad.isfinite().all(), key
            assert each.grad.abs().sum() > 0, key

    def test_it_overfits_a_handful_of_events(self, name: str) -> None:
        model = build(name)
        batch = batch_for(model)
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        objective = plain(model)
        model.train()
        first = objective(Shifted(model), batch).item()
        for _ in range(150):
            optimizer.zero_grad()
            objective(Shifted(model), batch).backward()
            optimizer.step()
        assert objective(Shifted(model.eval()), batch).item() < 0.25 * first

    def test_batches_of_an_epoch_do_not_depend_on_the_model(self, name: str) -> None:
        model = build(name)
        list(model.auxiliary(epoch_generator(0, 0, "auxiliary")))
        one = torch.rand(3)
        torch.manual_seed(0)
        build(name)
        list(model.auxiliary(epoch_generator(0, 0, "auxiliary")))
        assert torch.equal(one, torch.rand(3))  # no global randomness is used up


@pytest.mark.parametrize(("name", "defense"), DEFENDED)
class TestDefended:
    def test_a_step_under_every_defense_is_finite_and_trains(self, name: str, defense: str) -> None:
        model = build(name)
        batch = batch_under(defense, model)
        objective = defended(defense, model)
        before = state(model)
        value = objective(Shifted(model.train()), batch)
        assert value.isfinite()
        assert value.ndim == 0
        found = gradients(model, value)
        assert_same(before, state(model))
        reached = gradients(model, plain(model)(Shifted(model.train()), batch))
        for key, each in found.items():
            assert each.isfinite().all(), key
            assert bool(each.any()) == bool(reached[key].any()), key

    def test_every_defense_leaves_frozen_parameters_alone(self, name: str, defense: str) -> None:
        model = build(name)
        frozen, *_ = [key for key, _ in model.named_parameters()]
        model.get_parameter(frozen).requires_grad_(False)
        defended(defense, model)(Shifted(model), batch_under(defense, model)).backward()
        assert model.get_parameter(frozen).grad is None

    def test_a_learning_rate_of_zero_leaves_every_bit(self, name: str, defense: str) -> None:
        model = build(name)
        before = state(model)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0, momentum=0.9)
        objective = defended(defense, model)
        for seed in range(3):
            optimizer.zero_grad()
            objective(Shifted(model.train()), batch_under(defense, model, seed=seed)).backward()
            optimizer.step()
        assert_same(before, state(model))

    def test_distillation_composes_with_every_defense(self, name: str, defense: str) -> None:
        student, teacher = build(name, WIDE), Taught.of(build(name, WIDE, seed=9), WIDE)
        lesson = Lesson(teacher, student, WIDE, 5, loss(student.loss))
        objective = distilled(configured("distill", "listwise"), defended(defense, student), lesson)
        start_epoch(objective, 0, torch.Generator().manual_seed(0))
        before = state(teacher.at.model)
        value = objective(Shifted(student.train()), batch_under(defense, student, WIDE))
        found = gradients(student, value)
        assert value.isfinite()
        assert all(each.isfinite().all() for each in found.values())
        assert any(each.any() for each in found.values())
        assert_same(before, state(teacher.at.model))

    def test_a_step_in_reduced_precision_is_finite(self, name: str, defense: str) -> None:
        model = build(name)
        objective = defended(defense, model)
        with autocast("bf16", torch.device("cpu")):
            value = objective(Shifted(model.train()), batch_under(defense, model))
        assert all(each.isfinite().all() for each in gradients(model, value).values())

    def test_its_epochs_can_be_drawn_again(self, name: str, defense: str) -> None:
        """What a defence remembers beyond an epoch is in its buffers, so that a killed run goes on as it was."""
        model = build(name).eval()
        objective = defended(defense, model)
        objective(Shifted(model), batch_under(defense, model))
        again = defended(defense, model)
        again.load_state_dict(objective.state_dict())
        values = []
        for each in (objective, again):
            start_epoch(each, LATE + 1, torch.Generator().manual_seed(1))
            values.append(each(Shifted(model), batch_under(defense, model, seed=1)))
        assert torch.equal(*values)


@pytest.mark.parametrize(("name", "defense"), REFUSED)
def test_a_defense_refuses_a_model_in_one_line_that_says_what_it_has(name: str, defense: str) -> None:
    wanted = f"^model '{name}' has no .*(it has|its surfaces): .*weight"
    if issubclass(defenses[defense], Denoiser):
        wanted = f"^defense '{defense}' works with loss=.*; the loss here is {build(name).loss}"
    elif defense in ("neftune", "rdrop"):
        wanted = f"^model '{name}' has no (embedded tokens or events|dropout here), which {defense}"
    with pytest.raises(RrecError, match=wanted) as caught:
        defended(defense, build(name))
    assert "\n" not in str(caught.value)


def lifted(model: RecModel) -> Objective:
    """What attacks climb here."""
    if not model.negatives and model.loss in POINTWISE:  # one candidate an event: no list to be first in
        return plain(model)
    return Plain(loss("softmax" if model.trainable or model.loss == "softmax" else "bce"))


BALLS = [  # units are those of the ball, whatever the model: with all of them for six families in `make check` too
    pytest.param(name, kind, per, relative, marks=[] if per == "row" or name in FAMILIES else pytest.mark.slow)
    for name, kind in ON
    for per, relative in zip(UNITS, (*SCALES, "own"), strict=True)
    if (kind, per) != ("activation", "layer")  # refused
]


@pytest.mark.parametrize("attack", BALLED)
@pytest.mark.parametrize(("name", "kind", "per", "relative"), BALLS)
def test_every_attack_stays_in_its_ball(name: str, kind: str, attack: str, per: str, relative: str) -> None:
    model = build(name).eval()
    batch = batch_for(model)
    objective, at = lifted(model), Shifted(model)
    before = state(model)
    for norm in [each for each in NORMS if (attack, each) != ("fgsm", "l2")]:
        built = attack_on(attack, kind, eps=1e-3, per=per, relative=relative, norm=norm)
        built.check(model)
        worse, _ = built(at, batch, objective)
        for key, base in built.base(at, batch).items():
            over = built.ball.size(worse.delta[key]) - built.ball.radius(base) * (1 + 1e-5)
            assert (over <= 1e-9).all(), (norm, key)
        spent = built.summary(built.spent(at, worse, batch, batch, objective))
        assert spent["mean_norm"] <= spent["max_norm"] * (1 + 1e-5)
        assert spent["max_norm"] > 0 or attack in ("square", "simba")  # which move only where they find better
        if attack != "noise":
            rounding = 1e-5 if name in ("stosa", "multi_intent_gaussian") else 1e-6  # distances of Gaussians
            assert objective(worse, batch) >= objective(at, batch) - rounding, norm
    assert_same(before, state(model))
    assert all(each.grad is None for each in model.parameters())


@pytest.mark.parametrize(("name", "kind"), ON)
class TestSurface:
    def test_a_small_step_uphill_raises_the_loss(self, name: str, kind: str) -> None:
        model = build(name).eval()
        batch = batch_for(model)
        objective, at = lifted(model), Shifted(model)
        ball = Ball(eps=0.01, norm="l2", per="row", relative="median")
        worse, same = Ascent(surface=kind, ball=ball, steps=1)(at, batch, objective)
        assert same is batch
        assert objective(worse, batch) > objective(at, batch)

    def test_no_budget_changes_nothing_at_all(self, name: str, kind: str) -> None:
        model = build(name).eval()
        batch = batch_for(model)
        at = Shifted(model)
        for attack in BALLED:
            worse, _ = attack_on(attack, kind, eps=0.0)(at, batch, lifted(model))
            assert torch.equal(worse(batch).scores, at(batch).scores), attack
            assert all(not each.any() for each in worse.delta.values()), attack

    def test_attacks_are_repeatable_and_the_seed_is_their_own(self, name: str, kind: str) -> None:
        model = build(name).eval()
        batch = batch_for(model)
        at, objective = Shifted(model), lifted(model)
        for attack in BALLED:
            built = attack_on(attack, kind)
            torch.manual_seed(1)
            one, _ = built(at, batch, objective)
            torch.manual_seed(2)
            two, _ = built(at, batch, objective)
            assert_same(dict(one.delta), dict(two.delta))

    def test_a_frozen_model_can_be_attacked_and_stays_frozen(self, name: str, kind: str) -> None:
        model = build(name).eval().requires_grad_(False)
        batch = batch_for(model)
        worse, _ = attack_on("fgm", kind)(Shifted(model), batch, lifted(model))
        assert not any(each.requires_grad for each in (*worse.delta.values(), *model.parameters()))

    def test_a_random_start_keeps_the_worst_of_several(self, name: str, kind: str) -> None:
        model = build(name).eval()
        batch = batch_for(model)
        at, objective = Shifted(model), lifted(model)
        values = []
        for restarts in (1, 3, 5):
            again = attack_on("pgd", kind, random_start=True, steps=2, eps=0.05, restarts=restarts)
            values.append(objective(again(at, batch, objective)[0], batch).item())
        assert values == sorted(values)

    def test_named_modules_alone_are_perturbed(self, name: str, kind: str) -> None:
        from robustbench_rec.shifted import label, surface

        model = build(name).eval()
        batch = batch_for(model)
        for tensor in surface(model, kind):
            built = attack_on("noise", kind, modules=[label(tensor)])
            worse, _ = built(Shifted(model), batch, lifted(model))
            assert list(worse.delta) == [tensor]


def test_at_least_one_model_trains_and_one_has_every_kind_of_surface_that_models_have() -> None:
    assert {"mf", "kgat"} <= set(LEARNERS)
    assert {kind for _, kind in ON} >= {"embedding", "weight", "activation"}
