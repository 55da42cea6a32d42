"""Several defences around one another: on the command line, in configs, in checkpoints."""

import json
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Toy, batch_of, build, compose, configured, gradients, usual

from robustbench_rec import composing, launch
from robustbench_rec.composing.completion import complete
from robustbench_rec.composing.words import chosen, nested
from robustbench_rec.config import Attack, Train
from robustbench_rec.defenses import defended, defenses
from robustbench_rec.denoising import Denoiser
from robustbench_rec.errors import RrecError
from robustbench_rec.objective import start_batch, start_epoch
from robustbench_rec.shifted import Shifted
from robustbench_rec.tasks import attack, train

SMALL = (
    "dataset=synthetic",
    "dataset.n_users=40",
    "dataset.n_items=30",
    "dataset.events_per_user=9",
    "device=cpu",
    "top_k=[5]",
    "monitor=ndcg@5",
    "epochs=3",
    "batch_size=128",
    "model=mf",
    "model.dim=8",
)


def typed(*words: str) -> Train:
    found = composing.typed(compose("train", *nested(words)), "train")
    assert isinstance(found, Train)
    return found


def names(config: dict[str, Any]) -> list[str]:
    return [config["name"], *(names(config["inner"]) if "inner" in config else [])]


class TestCommandLine:
    def test_the_first_of_a_list_is_outermost_and_each_has_its_keys(self) -> None:
        found = typed("defense=[rawp, apr,at]", "defense.gamma=0.5", "defense.inner.eps=0.7").defense
        assert names(found) == ["rawp", "apr", "at"]
        assert (found["gamma"], found["inner"]["eps"]) == (0.5, 0.7)
        assert found["inner"]["inner"]["attack"]["name"] == "pgd"
        swapped = typed("defense=[awp,at]", "attack@defense.inner.attack=fgm").defense
        assert swapped["inner"]["attack"]["name"] == "fgm"

    def test_steps_of_cleaning_are_listed_in_the_same_way(self) -> None:
        found = typed("clean=[rules,degree_sad]", "clean.rate=7", "clean.inner.share=0.2").clean
        assert names(found) == ["rules", "degree_sad"]
        assert (found["rate"], found["inner"]["share"]) == (7, 0.2)

    def test_one_in_a_list_is_that_one(self) -> None:
        assert typed("defense=[apr]").defense == typed("defense=apr").defense

    def test_other_words_stay_as_they_are(self) -> None:
        words = ["defense=apr", "defense.modules=[a,b]", "top_k=[5,10]", "+x=[1]", "-m"]
        assert nested(words) == words

    @pytest.mark.parametrize("word", ["defense=[]", "defense=[apr,]", "defense=none,[rawp,apr]", "defense=[a,[b]]"])
    def test_what_cannot_be_read_is_one_line(self, word: str) -> None:
        with pytest.raises(RrecError, match=r"defense=\[first,…\]") as caught:
            nested([word])
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize(
        ("verb", "words", "place"),
        [
            ("train", ["defense=at", "defense.attack=fgm"], "attack@defense.attack=fgm"),
            ("train", ["defense=[awp,at]", "defense.inner.attack=fgm"], "attack@defense.inner.attack=fgm"),
            ("train", ["defense=at", "defense.attack=fgm, bim"], "attack@defense.attack=fgm, bim"),
            ("eval", ["ckpt=x", "certify=pore", "certify.poison=covisit"], "poison@certify.poison=covisit"),
            ("distill", ["teacher=x", "distill=robust", "distill.by=vat"], "defense@distill.by=vat"),
        ],
    )
    def test_a_choice_inside_of_another_is_written_as_a_key(self, verb: str, words: list[str], place: str) -> None:
        found = chosen(verb, words)
        assert place in found
        assert words[-1] not in found

    @pytest.mark.parametrize(
        "words",
        [
            ["defense=apr", "defense.attack=pgd"],
            ["model=mf", "model.encoder=mf"],
            ["defense=at", "defense.robust_loss=bce"],
        ],
    )
    def test_other_keys_are_no_choices(self, words: list[str]) -> None:
        assert chosen("train", words) == words

    def test_an_unknown_choice_inside_of_another_is_told_with_its_place(self) -> None:
        with pytest.raises(RrecError, match="unknown defense.attack 'pdg'; did you mean 'pgd'"):
            chosen("train", ["defense=at", "defense.attack=fgm,pdg"])

    def test_an_attack_without_eps_does_not_get_that_of_its_defence(self) -> None:
        def inner(*words: str) -> dict[str, Any]:
            found: dict[str, Any] = typed(*chosen("train", ["defense=[awp,at]", *words])).defense["inner"]
            return found["attack"]

        assert "eps" not in inner("attack@defense.inner.attack=history")
        assert inner("attack@defense.inner.attack=fgm")["eps"] == 0.1
        assert inner("attack@defense.inner.attack=edges", "defense.inner.attack.eps=0.3")["eps"] == 0.3

    def test_an_attack_without_a_surface_does_not_get_that_of_a_fine_tuning(self) -> None:
        def measured(*words: str) -> dict[str, Any]:
            found: dict[str, Any] = composing.typed(
                compose("finetune", *chosen("finetune", ["ckpt=x", *words])), "finetune"
            ).attack
            return found

        assert not {"eps", "surface"} & measured("attack=history").keys()
        assert measured("attack=fgm")["surface"] == "weight"
        assert (
            measured("attack=history", "attack.surface=embedding")["surface"] == "embedding"
        )  # refused where it is built

    @pytest.mark.parametrize(
        ("verb", "words"),
        [
            ("train", ["defense=at", "attack@defense.attack=history"]),
            ("train", ["defense=at", "defense.attack=history", "defense.attack.op=insert"]),
            ("finetune", ["ckpt=x", "attack=history"]),
        ],
    )
    def test_words_that_were_kept_of_a_run_mean_the_same_again(self, verb: str, words: list[str]) -> None:
        once = chosen(verb, words)
        assert sorted(chosen(verb, once)) == sorted(once)

    def test_an_unknown_key_of_an_inner_defence_is_told_with_its_place(
        self, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert launch.launch("train", ["defense=[rawp,apr]", "defense.inner.epss=1"]) == 2
        assert "unknown key 'defense.inner.epss'; did you mean 'defense.inner.eps'?" in capsys.readouterr().err
        assert launch.launch("train", ["defense=[rawp,aprr]"]) == 2
        assert "unknown defense 'aprr'; did you mean 'apr'?" in capsys.readouterr().err

    def test_keys_of_an_inner_defence_are_completed(self) -> None:
        assert complete("train", ["defense=[rawp,apr]"], "defense.inner.ep") == ["defense.inner.eps=0.2"]


NESTING = [each for each in defenses if each not in ("dp_sgd", "neftune", "rdrop")]  # the models here have no events
AROUND = [each for each in NESTING if not issubclass(defenses[each], Denoiser)]


class TestObjective:
    def test_it_is_the_one_built_around_the_other(self) -> None:
        model, batch = Toy(), batch_of()
        config = {**configured("defense", "awp", gamma=0.05), "inner": configured("defense", "apr", eps=0.3)}
        inner = defenses.build(configured("defense", "apr", eps=0.3), usual(model), model)
        outer = defenses.build(configured("defense", "awp", gamma=0.05), inner, model)
        found = gradients(model, defended(config, usual(model), model)(Shifted(model), batch))
        expected = gradients(model, outer(Shifted(model), batch))
        assert all(torch.equal(found[key], expected[key]) for key in found)

    @pytest.mark.parametrize(("outer", "inner"), list(product(AROUND, NESTING)))
    def test_every_defence_goes_around_every_other(self, outer: str, inner: str) -> None:
        dots = bool({"pamacf", "vat_user"} & {outer, inner})
        if dots and "amr" in (outer, inner):
            pytest.skip("no model at hand has both a dot product and features")
        model = build("mf") if dots else Toy(dtype=torch.float32)
        config = {**configured("defense", outer), "inner": configured("defense", inner)}
        objective = defended(config, usual(model), model)
        start_epoch(objective, 9, torch.Generator().manual_seed(0))
        value = objective(Shifted(model), batch_of())
        assert value.isfinite()
        found = gradients(model, value)
        assert all(each.isfinite().all() for each in found.values())
        assert any(each.any() for each in found.values())

    @pytest.mark.parametrize("outer", ["awp", "sam"])  # both ask first where nothing is moved yet
    @pytest.mark.parametrize(
        ("name", "changes"),
        [
            ("rat", {"stale": True, "p": 1.0}),
            ("rawp", {"proxy": "adam", "p": 1.0}),
            ("rawp", {"resample": "batch"}),
            ("rwp", {"variant": "fisher", "clean_weight": 1.0}),
        ],
        ids=str,
    )
    def test_what_goes_from_batch_to_batch_does_so_however_often_it_is_asked(
        self, outer: str, name: str, changes: dict[str, Any]
    ) -> None:
        model = Toy(dtype=torch.float32)

        def after_two(around: bool) -> dict[str, Any]:
            objective = defenses.build(configured("defense", name, **changes), usual(model), model)
            whole = defenses.build(configured("defense", outer), objective, model) if around else objective
            start_epoch(whole, 0, torch.Generator().manual_seed(0))
            for seed in range(2):
                start_batch(whole)
                gradients(model, whole(Shifted(model), batch_of(seed=seed)))
            found = dict(objective.named_buffers()) | (objective.previous.now if name == "rat" else {})
            return {key: each.clone() for key, each in found.items()} | {
                "mask": (objective.attack.names, objective.attack.ball) if name == "rawp" else None
            }

        alone, nested = after_two(around=False), after_two(around=True)
        assert alone.pop("mask") == nested.pop("mask")
        assert alone.keys() == nested.keys()
        assert all(torch.equal(each, nested[key]) for key, each in alone.items())

    @pytest.mark.parametrize("outer", sorted(set(NESTING) - set(AROUND)))
    def test_a_denoiser_is_innermost(self, outer: str) -> None:
        config = {**configured("defense", outer), "inner": configured("defense", "apr")}
        with pytest.raises(RrecError, match="it is innermost, not around 'apr'"):
            defended(config, usual(Toy()), Toy())

    @pytest.mark.parametrize("other", ["none", "awp", "sam"])
    def test_private_training_is_the_only_defence(self, other: str) -> None:
        private = configured("defense", "dp_sgd", noise=0.0)
        for outer, inner in ((private, configured("defense", other)), (configured("defense", other), private)):
            with pytest.raises(RrecError, match=r"dp_sgd needs the loss of single events|no other defence may be"):
                defended({**outer, "inner": inner}, usual(Toy()), build("mf", l2=0.0))

    def test_an_inner_defence_is_a_config(self) -> None:
        with pytest.raises(RrecError, match=r"defense.inner=apr: .*defense=\[rawp,…\]"):
            defended({**configured("defense", "rawp"), "inner": "apr"}, usual(Toy()), Toy())


AGAINST = [
    ("model=comirec", "defense.attack=history", "defense.attack.op=insert"),
    ("model=lightgcn", "defense.attack=edges", "defense.attack.op=add", "defense.attack.steps=1"),
    ("model=lstm_text", "defense.attack=text_noise", "defense.attack.edits=4"),
]


@pytest.mark.parametrize("words", AGAINST, ids=lambda words: words[0])
def test_what_edits_the_data_can_be_trained_against(words: tuple[str, ...], tmp_path: Path) -> None:
    found = {}
    for name, weight in (("robust", 0.5), ("clean", 1.0)):
        (tmp_path / name).mkdir()
        shown = chosen("train", [*SMALL, "defense=at", f"defense.clean_weight={weight}", "epochs=1", *words])
        train.run(typed(*(each for each in shown if each not in ("model=mf", "model.dim=8"))), tmp_path / name)
        found[name] = (tmp_path / name / "model.safetensors").read_bytes()
    assert found["robust"] != found["clean"]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("model=comirec", "defense.attack=history_flip"), "take defense.attack=history"),
        (("model=sasrec", "defense.attack=history", "defense.attack.op=swap"), "take defense.attack.op=replace"),
        (
            ("model=kgcn", "defense.attack=edges", "defense.attack.op=add"),
            "no graph to which edges can be added",
        ),
        (("model=lstm_text", "defense.attack=hotflip"), "take defense.attack=text_noise"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_trained(
    words: tuple[str, ...], told: str, tmp_path: Path
) -> None:
    shown = chosen("train", [*SMALL, "defense=at", *words])
    with pytest.raises(RrecError, match=told) as error:
        train.run(typed(*(each for each in shown if each not in ("model=mf", "model.dim=8"))), tmp_path)
    assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())


def test_a_run_with_several_is_trained_and_trained_again_on_poison(tmp_path: Path) -> None:
    out, again = tmp_path / "run", tmp_path / "again"
    out.mkdir()
    again.mkdir()
    train.run(typed(*SMALL, "defense=[rawp,apr]", "defense.inner.eps=0.3", "defense.proxy=adam"), out)
    stored = json.loads((out / "model.json").read_text())["training"]["defense"]
    assert names(stored) == ["rawp", "apr"]
    assert stored["inner"]["eps"] == 0.3
    cfg = composing.typed(compose("attack", f"ckpt='{out}'", "poison=random", "device=cpu", "top_k=[5]"), "attack")
    assert isinstance(cfg, Attack)
    assert attack.run(cfg, again)
    assert json.loads((again / "model.json").read_text())["training"]["defense"] == stored
