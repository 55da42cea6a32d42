"""Edited texts reach the models; searches raise what they climb, keep to their limits and leave other items alone."""

import csv
import json
from dataclasses import replace
from functools import cache
from pathlib import Path
from shutil import copytree
from typing import Any

import pandas as pd
import pytest
import torch
from conftest import (
    DATA,
    WORDS,
    against,
    assert_gradients,
    batch_for,
    build,
    buildable,
    compose,
    configured,
    gradients,
    judge,
    question,
    usual,
)
from torch import Tensor

from robustbench_rec import checkpoint, composing
from robustbench_rec.attacks import attacks
from robustbench_rec.batch import Batch
from robustbench_rec.clean import cleaned
from robustbench_rec.cleans import cleans
from robustbench_rec.data import Data
from robustbench_rec.errors import RrecError
from robustbench_rec.evaluation import Full
from robustbench_rec.goals import goals
from robustbench_rec.model import RecModel
from robustbench_rec.rewording import Column, Probe, Reworded, Rewording
from robustbench_rec.shifted import Shifted
from robustbench_rec.spliced import Spliced
from robustbench_rec.tasks import attack as attack_task
from robustbench_rec.tasks import eval as eval_task
from robustbench_rec.tasks import gate, train
from robustbench_rec.text.distances import levenshtein
from robustbench_rec.text.recipes import RECIPES
from robustbench_rec.text.words import Pieces

USERS = torch.arange(DATA.n_users)
LORA = {"rank": 4, "alpha": 8.0, "dropout": 0.0}
TOWER: dict[str, Any] = {"dim": 8, "hidden": [12], "dropout": 0.0}
WORDY: dict[str, Any] = {"token_dim": 6, "state_dim": 5, "field_dim": 4, "dropout": 0.0, "min_count": 1}
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "lstm_text": ("lstm_text", WORDY),
    "text_tower": ("text_tower", TOWER),
    "text_tower of histories": ("text_tower", {**TOWER, "user": "history"}),
    "text_tower with lora": ("text_tower", {**TOWER, "lora": LORA}),
    "llm_prompt": ("llm_prompt", {"template": "The {history} Will like {item} :", "window": 2, "title_tokens": 6}),
}
VARIANTS = {name: each for name, each in VARIANTS.items() if buildable(each[0])}
TOWERS = [name for name in VARIANTS if name != "llm_prompt"]


def model_of(variant: str, data: Data = DATA, **changes: Any) -> RecModel:
    name, settings = VARIANTS[variant]
    model = build(name, data, **(settings | changes)).eval()
    if variant == "lstm_text":
        with torch.no_grad():  # words that matter
            model.get_parameter("token.weight").mul_(5)
    return model


def scores(at: Shifted) -> Tensor:
    with torch.no_grad():
        return at(question(at.model, USERS)).scores


def attack_of(name: str, model: RecModel, data: Data = DATA, **changes: Any) -> Rewording:
    found = attacks.build(configured("attack", name, **changes)).prepared(model, data)
    assert isinstance(found, Rewording)
    return found


class Judged:
    """An attack on three items, judged by full ranking."""

    def __init__(
        self,
        model: RecModel,
        attack: Rewording,
        *,
        goal: str = "promote",
        items: tuple[str, ...] = ("i3", "i7", "i11"),
        data: Data = DATA,
    ) -> None:
        self.judging = Full(data, judge(top_k=[5]))
        values = {"name": goal, "k": 5, "items": list(items), "stratum": "random", "count": 1, "seed": 0}
        self.goal = goals.build(values, data)
        self.climbed = self.judging.climbed(None, self.goal)
        self.model, self.at, self.passes = model, Shifted(model), 0
        self.before = self.value(self.at)
        worse, self.spent = self.judging.attack(
            self.at, attack, "test", self.climbed, mark=self.goal.mark, on_pass=self._count
        )
        self.moved = worse
        assert isinstance(worse[0][0], Reworded)
        self.worse = worse[0][0]

    def _count(self) -> None:
        self.passes += 1

    @torch.no_grad()
    def value(self, at: Shifted) -> float:
        batches = [self.goal.mark(each) for each in self.judging.batches(self.model, "test")]
        return torch.cat([self.climbed(at(each), each) for each in batches]).mean().item()

    @property
    def first(self) -> Batch:
        return self.goal.mark(next(iter(self.judging.batches(self.model, "test"))))

    def exposed(self, name: str) -> tuple[float, float]:
        found = [self.goal.measure(self.judging, each, "test", None) for each in (self.at, self.moved)]  # type: ignore[arg-type]
        return tuple(each.metrics[name] for each in found if each is not None)  # type: ignore[return-value]


@pytest.mark.parametrize("variant", VARIANTS)
class TestReader:
    def test_the_item_table_is_read_as_it_was(self, variant: str) -> None:
        model = model_of(variant)
        assert DATA.item_table is not None
        found = model.text_reader(DATA).read(DATA.item_table)
        assert found
        for name, each in found.items():
            torch.testing.assert_close(each.to(model.get_buffer(name)), model.get_buffer(name), rtol=1e-4, atol=1e-5)

    def test_an_item_with_the_text_of_another_is_scored_like_it(self, variant: str) -> None:
        columns = {"text_columns": ["title"], "item_columns": []} if variant == "lstm_text" else {"columns": ["title"]}
        model = model_of(variant, **columns)
        column = Column.of(DATA, "title", model)
        at = Shifted(model)
        worse = at.shift(column.delta(at, [4, 9], [column.texts[1], column.texts[2]]))
        before, after = scores(at), scores(worse)
        new = [column.texts[1], column.texts[2]]
        assert new != [column.texts[4], column.texts[9]]
        torch.testing.assert_close(after[:, [4, 9]], after[:, [1, 2]], rtol=1e-4, atol=1e-5)
        if model.window:  # histories have the items in them
            return
        others = [each for each in range(DATA.n_items) if each not in (4, 9)]
        assert torch.equal(after[:, others], before[:, others])
        assert not torch.allclose(after[:, 4], before[:, 4])

    def test_other_rows_of_the_tensors_are_untouched(self, variant: str) -> None:
        model = model_of(variant)
        column, at = Column.of(DATA, "title", model), Shifted(model)
        delta = column.delta(at, [4], ["winter song of the sea night winter winter"])
        assert any(each[4].any() for each in delta.values())
        for name, each in delta.items():
            each[4] = 0
            assert not each.any(), name
            assert each.dtype == model.get_buffer(name).dtype

    def test_a_batch_with_items_is_scored_without_the_catalogue(self, variant: str) -> None:
        model, items = model_of(variant), torch.tensor([[3, 8]]).repeat(DATA.n_users, 1)
        asked = question(model, USERS, items)
        with torch.no_grad():
            torch.testing.assert_close(Shifted(model).holding(None)(asked).scores, Shifted(model)(asked).scores)

    def test_one_changed_column_is_spliced_in(self, variant: str) -> None:
        model = model_of(variant)
        column, plain = Column.of(DATA, None, model), Shifted(model)
        assert column.name == "title"
        spliced = Spliced.of(plain, 5)
        for title in ("sea", "winter winter song"):
            delta = column.delta(plain, [5], [title])
            torch.testing.assert_close(scores(spliced.shift(delta)), scores(plain.shift(delta)))
        with torch.autocast("cpu", torch.bfloat16):
            assert scores(spliced.shift(delta)).isfinite().all()

    def test_who_reads_the_item_is_scored_anew_where_another_target_counts(self, variant: str) -> None:
        model, item = model_of(variant), int(DATA.train.items[0])
        column, plain = Column.of(DATA, None, model), Shifted(model)
        counted = torch.ones(DATA.n_users, DATA.n_items, dtype=torch.bool)
        counted[DATA.train.users, DATA.train.items] = False
        other = int(counted[DATA.train.users[0]].nonzero()[0])
        batch = replace(
            question(model, USERS), aims=torch.tensor([[item, other]]).repeat(DATA.n_users, 1), mask=counted
        )
        delta = column.delta(plain, [item], ["winter winter song"])
        with torch.no_grad():
            exact, found = plain.shift(delta)(batch).scores, Spliced.of(plain, item).shift(delta)(batch).scores
        asked = counted[:, [item, other]].any(1)
        assert (asked & ~counted[:, item]).any()
        torch.testing.assert_close(found[asked], exact[asked])

    def test_what_was_said_is_remembered_for_the_same_users(self, variant: str) -> None:
        model = model_of(variant)
        spliced = Spliced.of(Shifted(model), 5)
        for _ in range(2):
            for piece in (slice(0, 4), slice(4, DATA.n_users)):
                with torch.no_grad():
                    spliced(question(model, USERS).rows(piece))
        assert len(spliced.others.scores) == 2


@pytest.mark.skipif("llm_prompt" not in VARIANTS, reason="needs the extra `text`")
def test_a_title_that_does_not_fit_into_the_prompts_of_a_model_is_refused() -> None:
    model = model_of("llm_prompt", window=10, title_tokens=40)
    column = Column.of(DATA, "title", model)
    with pytest.raises(RrecError, match="come to .* tokens"):
        column.delta(Shifted(model), [4], ["sea " * 40])


@pytest.mark.parametrize("variant", TOWERS)
class TestNoise:
    @pytest.mark.parametrize("kind", ["typo", "homoglyph", "zero_width", "stuffing", "shuffle"])
    def test_budgets_hold_and_only_the_targets_change(self, variant: str, kind: str) -> None:
        model = model_of(variant)
        attack = attack_of("text_noise", model, kind=kind, edits=3)
        found = Judged(model, attack)
        assert found.worse.items == (3, 7, 11)
        unit = "words" if kind in ("stuffing", "shuffle") else "characters"
        assert (levenshtein(found.worse.old, found.worse.new, unit) <= 3).all()
        assert found.passes == 0
        assert found.spent[f"max_{unit}"] == levenshtein(found.worse.old, found.worse.new, unit).max()
        for name, each in found.worse.delta.items():
            assert set(each.nonzero()[:, 0].tolist()) <= {3, 7, 11}, name

    def test_natural_noise_is_on_a_share_of_all_items(self, variant: str) -> None:
        model = model_of(variant)
        for share, number in ((0.0, 0), (0.5, 10), (1.0, 20)):
            attack = attack_of("text_noise", model, share=share)
            worse, _ = attack(Shifted(model), question(model, USERS), lambda at, batch: torch.zeros(()))
            assert isinstance(worse, Reworded)
            assert len(worse.items) == number
            assert all(a != b for a, b in zip(worse.old, worse.new, strict=True))
            assert torch.equal(scores(worse), scores(Shifted(model))) == (number == 0)

    def test_the_seed_decides(self, variant: str) -> None:
        model = model_of(variant)
        found = [Judged(model, attack_of("text_noise", model, edits=4, seed=seed)).worse.new for seed in (0, 0, 1)]
        assert found[0] == found[1] != found[2]


LOOSE: dict[str, Any] = {"similarity": 0.0, "words": 1.0, "cosine": -1.0, "same_part": False}


@pytest.mark.parametrize("variant", TOWERS)
class TestSearch:
    @pytest.mark.parametrize("recipe", RECIPES)
    def test_it_raises_what_it_climbs_and_counts_what_it_asks(self, variant: str, recipe: str) -> None:
        model = model_of(variant)
        found = Judged(model, attack_of("text_search", model, recipe=recipe, queries=120, **LOOSE))
        assert found.passes == sum(found.worse.queries) <= 120
        assert found.spent["mean_queries"] == pytest.approx(found.passes / 3)
        assert found.value(found.worse) >= found.before - 1e-6
        if recipe in ("textfooler", "stuffing"):  # words that the model knows
            assert found.value(found.worse) > found.before + 1e-3
            before, after = found.exposed("t_rank")
            assert after < before

    def test_demotion_goes_the_other_way(self, variant: str) -> None:
        model = model_of(variant)
        attack = attack_of("text_search", model, recipe="textfooler", queries=90, **LOOSE)
        before, after = Judged(model, attack, goal="demote").exposed("t_score")
        assert after < before

    def test_limits_hold(self, variant: str) -> None:
        model = model_of(variant)
        tight = attack_of("text_search", model, recipe="textfooler", queries=90, **(LOOSE | {"words": 0.2}))
        assert (levenshtein(*texts_of(Judged(model, tight)), "words") <= 1).all()
        few = attack_of("text_search", model, recipe="deepwordbug", characters=1, queries=90)
        assert (levenshtein(*texts_of(Judged(model, few))) <= 1).all()
        alike = Judged(model, attack_of("text_search", model, recipe="textbugger", queries=90, similarity=0.7))
        assert all(value >= 0.7 for value in similarities(alike))
        short = Judged(model, attack_of("text_search", model, recipe="stuffing", queries=90, added=1))
        assert (levenshtein(*texts_of(short), "words") <= 1).all()
        same = Judged(model, attack_of("text_search", model, recipe="textfooler", queries=90, similarity=1.01))
        assert same.worse.old == same.worse.new
        assert not any(each.any() for each in same.worse.delta.values())

    def test_stop_words_stay(self, variant: str) -> None:
        model = model_of(variant)
        found = Judged(model, attack_of("text_search", model, recipe="textfooler", queries=120, **LOOSE))
        assert all(each.startswith("The ") for each in found.worse.new)

    def test_one_query_is_nothing_to_go_by(self, variant: str) -> None:
        model = model_of(variant)
        found = Judged(model, attack_of("text_search", model, recipe="stuffing", queries=3))
        assert found.worse.old == found.worse.new
        assert found.passes == 3

    def test_a_text_of_more_words_than_queries_is_edited_too(self, variant: str) -> None:
        assert DATA.item_table is not None
        long = DATA.item_table.assign(title=[f"{each} {' '.join(WORDS * 5)}" for each in DATA.item_table["title"]])
        data = replace(DATA, item_table=long)
        model = model_of(variant, data)
        attack = attack_of("text_search", model, data, recipe="textfooler", queries=90, **LOOSE)
        found = Judged(model, attack, data=data)
        assert all(len(Pieces.of(each).editable) > 30 for each in found.worse.old)
        assert any(old != new for old, new in zip(found.worse.old, found.worse.new, strict=True))
        assert found.passes <= 90

    def test_the_seed_decides(self, variant: str) -> None:
        model = model_of(variant)
        found = []
        for _ in range(2):
            torch.rand(3)
            found.append(Judged(model, attack_of("text_search", model, recipe="textbugger", queries=60)).worse.new)
        assert found[0] == found[1]


@cache
def sanitised(**changes: Any) -> Data:
    """The data as `clean=sanitise` leaves them."""
    found, _ = cleaned(DATA, [cleans.build(configured("clean", "sanitise", **changes))])
    return found


def behind(variant: str, name: str, data: Data, changes: dict[str, Any], **how: Any) -> Judged:
    """An attack on a model that learnt from cleaned data."""
    model = model_of(variant, data)
    return Judged(model, attack_of(name, model, data, **changes), data=data, **how)


@pytest.mark.parametrize("variant", TOWERS)
class TestBehindASanitiser:
    @pytest.mark.parametrize("kind", ["homoglyph", "zero_width"])
    def test_disguises_do_not_reach_the_model(self, variant: str, kind: str) -> None:
        found = behind(variant, "text_noise", sanitised(), {"kind": kind, "edits": 3})
        assert found.spent["mean_characters"] > 0
        assert not any(each.any() for each in found.worse.delta.values())
        assert found.worse.frame["read"].tolist() == list(found.worse.old) != list(found.worse.new)

    def test_without_one_they_do_and_nothing_is_told_of_what_is_read(self, variant: str) -> None:
        data = replace(sanitised(), cleaning=None)
        found = behind(variant, "text_noise", data, {"kind": "homoglyph", "edits": 3})
        assert any(each.any() for each in found.worse.delta.values())
        assert "read" not in found.worse.frame

    def test_a_column_without_rules_is_read_as_it_is_written(self, variant: str) -> None:
        changes = {"kind": "homoglyph", "edits": 3, "column": "title"}
        found = behind(variant, "text_noise", sanitised(columns=("genres",)), changes)
        assert any(each.any() for each in found.worse.delta.values())

    def test_what_is_read_is_what_the_rules_leave(self, variant: str) -> None:
        model, items = model_of(variant, sanitised()), [3, 7, 11]
        at, column = Shifted(model), Column.of(sanitised(), "title", model)
        plain = Column.of(replace(sanitised(), cleaning=None), "title", model)
        written, read = ["<b>winter</b> song", "song song", "http://x.example sea"], ["winter song", "song", "sea"]
        for name, each in plain.delta(at, items, read).items():
            assert torch.equal(column.delta(at, items, written)[name], each)
            assert each[items].any()
        for found, expected in zip(column.deltas(at, 3, written), plain.deltas(at, 3, read), strict=True):
            assert all(torch.equal(found[name], each) for name, each in expected.items())

    def test_a_search_sees_the_defended_model(self, variant: str) -> None:
        settings = {"recipe": "stuffing", "queries": 120, **LOOSE}
        free = behind(variant, "text_search", sanitised(), settings)
        held = behind(variant, "text_search", sanitised(words=3), settings)
        assert any(len(each.split()) > 3 for each in free.worse.new)
        assert held.passes > 3
        full = [len(each.split()) == 3 for each in held.worse.old]
        assert any(full)
        for whole, old, new in zip(full, *texts_of(held), strict=True):  # nothing behind the third word helps
            assert not whole or old == new

    def test_flips_are_those_of_the_defended_model(self, variant: str) -> None:
        found = behind(variant, "hotflip", sanitised(words=2), {"words": 1.0, "similarity": None, "queries": 200})
        plain = Column.of(replace(sanitised(words=2), cleaning=None), None, found.model)
        read = found.worse.column.passed(found.worse.items, found.worse.new)
        there = found.at.shift(plain.delta(found.at, found.worse.items, read))
        assert found.value(found.worse) == pytest.approx(found.value(there))
        assert found.value(found.worse) > found.before

    def test_a_word_that_is_taken_out_has_no_gradient(self, variant: str) -> None:
        found = behind(variant, "hotflip", sanitised(words=2), {"queries": 3}, items=("i3",))
        objective = lambda at, batch: found.climbed(at(batch), batch).mean()  # noqa: E731
        column, reader = found.worse.column, found.worse.column.reader
        slopes = Probe(column, found.at, 3, found.first, objective, queries=5).slopes("The song night")
        read, cut = (slopes[reader.codes[reader.words.index(each)]] for each in ("song", "night"))
        assert read.any()
        assert not cut.any()


@pytest.mark.parametrize("variant", VARIANTS)
class TestTraining:
    def test_half_of_it_is_on_edited_texts(self, variant: str) -> None:
        model = model_of(variant)
        batch = batch_for(model)
        objective, same = (against("text_noise", model, kind="delete", edits=2) for _ in range(2))
        worse, changed = same.attack(Shifted(model), batch, usual(model))
        assert isinstance(worse, Reworded)
        assert changed is batch
        assert all(0 < each <= 2 for each in levenshtein(worse.old, worse.new))
        here, there = usual(model)(Shifted(model), batch), usual(model)(worse, batch)
        assert here != there
        value = objective(Shifted(model), batch)
        torch.testing.assert_close(value, (here + there) / 2)
        found, expected = (
            gradients(model, value),
            gradients(model, (usual(model)(Shifted(model), batch) + usual(model)(worse, batch)) / 2),
        )
        assert_gradients(found, expected, rtol=1e-4, atol=1e-6)

    def test_every_batch_has_edits_of_its_own_which_the_epoch_decides(self, variant: str) -> None:
        model = model_of(variant)

        def edits() -> list[Any]:
            objective = against("text_noise", model, share=0.5)
            points = (objective.attack(Shifted(model), batch_for(model), usual(model))[0] for _ in range(2))
            return [(each.items, each.new) for each in points if isinstance(each, Reworded)]

        assert edits() == edits()
        one, two = edits()
        assert one[0] != two[0]

    def test_a_sanitiser_stands_before_the_model_there_too(self, variant: str) -> None:
        model = model_of(variant, sanitised())
        batch = batch_for(model, sanitised())
        plain = usual(model)(Shifted(model), batch)
        for data, same in ((sanitised(), True), (replace(sanitised(), cleaning=None), False)):
            value = against("text_noise", model, data, kind="homoglyph", edits=4)(Shifted(model), batch)
            assert torch.equal(value, plain) == same


def texts_of(found: Judged) -> tuple[tuple[str, ...], tuple[str, ...]]:
    return found.worse.old, found.worse.new


def similarities(found: Judged) -> list[float]:
    column = found.worse.column
    return [
        column.similarity(*column.joined(item, [old, new]))
        for item, old, new in zip(found.worse.items, *texts_of(found), strict=True)
    ]


@pytest.mark.parametrize("variant", TOWERS)
class TestHotFlip:
    def test_with_every_flip_tried_it_is_the_best_of_all_words(self, variant: str) -> None:
        model = model_of(variant)
        attack = attack_of("hotflip", model, words=0.2, flips=10**6, queries=10**6)
        found = Judged(model, attack, items=("i3",))
        reader, texts = found.worse.column.reader, [found.worse.old[0]]
        first, second = texts[0].split()[1:]
        for word in reader.words:
            texts += [f"The {word} {second}", f"The {first} {word}"]
        deltas = found.worse.column.deltas(found.at, 3, texts)
        best = max(found.value(found.at.shift(each)) for each in deltas)
        assert found.value(found.worse) == pytest.approx(best, abs=1e-5)
        assert best > found.before

    def test_a_flip_is_the_word_towards_which_the_loss_rises_fastest(self, variant: str) -> None:
        model = model_of(variant)
        found = Judged(model, attack_of("hotflip", model, queries=1), items=("i3",))
        objective = lambda at, batch: found.climbed(at(batch), batch).mean()  # noqa: E731
        attack = attack_of("hotflip", model, flips=1)
        probe, reader = Probe(attack.ready, found.at, 3, found.first, objective, queries=1000), attack.ready.reader
        old = Pieces.of(probe.old)
        (flip,) = attack._flips(probe, old)  # type: ignore[attr-defined]
        (place,) = (each for each in old.editable if flip.parts[each] != old.parts[each])
        tokens = {each.lower(): code for each, code in zip(reader.words, reader.codes.tolist(), strict=True)}

        def rise(at: int, word: str) -> float:
            """Of the loss, where the word's vector goes a little of the way to another's."""
            token, values = tokens[old.parts[at].lower()], []
            for sign in (1, -1):
                added = torch.zeros_like(reader.vectors)
                added[token] = sign * 0.01 * (reader.vectors[tokens[word]] - reader.vectors[token])
                delta = attack.ready.delta(probe.at, [3], [probe.old], added)
                more = {} if reader.embedding is None else {reader.embedding: added}
                values.append(objective(probe.at.shift({**delta, **more}), found.first).item())
            return values[0] - values[1]

        rises = {(at, word): rise(at, word) for at in old.editable for word in reader.words}
        chosen = rises[place, flip.parts[place].lower()]
        assert chosen > 0
        assert chosen >= 0.95 * max(rises.values())

    def test_only_the_words_of_the_item_have_a_gradient(self, variant: str) -> None:
        model = model_of(variant)
        attack = attack_of("hotflip", model)
        found = Judged(model, attack_of("hotflip", model, queries=1), items=("i3",))
        objective = lambda at, batch: found.climbed(at(batch), batch).mean()  # noqa: E731
        probe, reader = Probe(attack.ready, found.at, 3, found.first, objective, queries=5), attack.ready.reader
        slopes = probe.slopes(probe.old)
        (read,) = attack.ready.joined(3, [probe.old])
        word = probe.old.split()[1]
        (token,) = reader.begins(read, [attack.ready.start(3, probe.old) + probe.old.index(word)])
        assert token == reader.codes[reader.words.index(word)]
        assert slopes[token].any()
        assert not slopes.any(1).all()

    def test_queries_are_counted_and_limits_hold(self, variant: str) -> None:
        model = model_of(variant)
        found = Judged(model, attack_of("hotflip", model, queries=45))
        assert found.passes == sum(found.worse.queries) <= 45
        assert (levenshtein(*texts_of(found), "words") <= 1).all()
        again = Judged(model, attack_of("hotflip", model, queries=45))
        assert again.worse.new == found.worse.new


class TestRefusals:
    def test_models_without_texts(self) -> None:
        for name in ("text_noise", "text_search", "hotflip"):
            with pytest.raises(RrecError, match="model 'mf' does not read texts"):
                attacks.build(configured("attack", name)).prepared(build("mf"), DATA)

    def test_columns_that_are_not_there_or_not_read(self) -> None:
        with pytest.raises(RrecError, match="'titel'; did you mean 'title'"):
            attack_of("text_noise", model_of("lstm_text"), column="titel")
        with pytest.raises(RrecError, match=r"column=genres: the model does not read it \(it reads: title\)"):
            attack_of("text_noise", model_of("lstm_text", text_columns=["title"]), column="genres")

    @pytest.mark.parametrize("name", ["text_search", "hotflip"])
    def test_no_training_is_about_items_to_edit(self, name: str) -> None:
        with pytest.raises(RrecError, match=f"{name} edits .*, and a training is about none; take .*=text_noise, or"):
            against(name, model_of("lstm_text"))
        with pytest.raises(RrecError, match="model 'mf' does not read texts"):
            against(name, build("mf"))

    def test_goals_about_no_items(self) -> None:
        model = model_of("lstm_text")
        for name in ("text_search", "hotflip"):
            attack = attack_of(name, model)
            with pytest.raises(RrecError, match=f"{name} edits the texts of given items: goal=promote"):
                attack(Shifted(model), question(model, USERS), lambda at, batch: torch.zeros(()))

    @pytest.mark.parametrize("name", ["text_search", "hotflip"])
    def test_fewer_queries_than_items(self, name: str) -> None:
        model = model_of("lstm_text")
        with pytest.raises(RrecError, match=f"{name} with queries=2: there are 3 target items") as error:
            Judged(model, attack_of(name, model, queries=2))
        assert "\n" not in str(error.value)

    @pytest.mark.skipif("llm_prompt" not in VARIANTS, reason="needs the extra `text`")
    def test_a_model_without_vectors_of_words(self) -> None:
        with pytest.raises(RrecError, match="hotflip: model 'llm_prompt' has no vectors of words"):
            attack_of("hotflip", model_of("llm_prompt"))

    @pytest.mark.parametrize(
        ("name", "changes", "message"),
        [
            ("text_noise", {"kind": "tipo"}, "unknown kind of text_noise 'tipo'; did you mean 'typo'"),
            ("text_noise", {"share": 1.1}, "share=1.1"),
            ("text_noise", {"edits": -1}, "edits=-1"),
            ("text_noise", {"kind": "swap", "edits": 1}, "kind=swap, edits=1: .* at least 2 characters"),
            ("text_noise", {"kind": "shuffle", "edits": 1}, "kind=shuffle, edits=1: .* at least 2 words"),
            ("text_noise", {"kind": "sentence", "edits": 5}, "kind=sentence, edits=5: .* at least 6 words"),
            ("text_search", {"recipe": "bugger"}, "unknown recipe of text_search 'bugger'; did you mean 'textbugger'"),
            ("text_search", {"queries": 0}, "queries=0"),
            ("text_search", {"added": -1}, "added=-1"),
            ("text_search", {"vectors": "glove"}, "unknown vectors of text_search 'glove'"),
            ("hotflip", {"beam": 0}, "beam=0"),
        ],
        ids=str,
    )
    def test_settings_that_make_no_sense(self, name: str, changes: dict[str, Any], message: str) -> None:
        with pytest.raises(RrecError, match=message):
            attacks.build(configured("attack", name, **changes))


def test_what_a_search_knows_is_declared() -> None:
    def knows(**changes: Any) -> str:
        return attacks.build(configured("attack", "text_search", **changes)).declared.knowledge

    assert knows(recipe="textfooler") == "white-box"
    assert knows(recipe="textfooler", vectors="titles") == "score"
    assert knows(recipe="stuffing") == "score"


def test_words_are_near_by_shared_titles_where_asked() -> None:
    model = model_of("lstm_text")
    found = attack_of("text_search", model, recipe="textfooler", vectors="titles", queries=60, **LOOSE)
    assert Judged(model, found).passes <= 60


def test_missing_texts_are_edited_as_empty_ones() -> None:
    table = DATA.item_table
    assert table is not None
    data = replace(DATA, item_table=table.assign(title=table["title"].where(table.index != 3)))
    model = model_of("lstm_text", data)
    worse, _ = attack_of("text_noise", model, data, kind="positive", edits=1)(
        Shifted(model), question(model, USERS), lambda at, batch: torch.zeros(())
    )
    assert isinstance(worse, Reworded)
    assert (worse.old[3], worse.new[3]) == ("", "good")


def test_pgd_on_embedded_words_leaves_padding_alone() -> None:
    model = model_of("lstm_text")
    found = Judged(model, attack_of("text_noise", model, edits=0))
    objective = lambda at, batch: found.climbed(at(batch), batch).mean()  # noqa: E731
    built = attacks.build(configured("attack", "pgd", surface="activation", modules=["embedded"], eps=0.5))
    worse, _ = built(found.at, found.first, objective)
    delta, lengths = worse.delta["embedded.shift"], model.get_buffer("lengths")
    padding = torch.arange(delta.shape[1]) >= lengths[:, None]
    assert padding.any()
    assert not delta[padding].any()
    assert objective(worse, found.first) > objective(found.at, found.first)


SMALL = (
    *("dataset=synthetic", "dataset.n_users=60", "dataset.n_items=40", "dataset.events_per_user=12"),
    *("model=lstm_text", "epochs=2", "device=cpu", "lr=0.01", "batch_size=128"),
)
SANITISED = ("clean=sanitise", "clean.columns=[title]")
DISGUISED = ("attack=text_noise", "attack.kind=homoglyph", "attack.edits=4", "attack.column=title")
NOISE = ("noise=text_noise", "noise.kind=homoglyph", "noise.level=0.9", "noise.column=title")
Runs = dict[str, tuple[Path, dict[str, float]]]
TASKS: dict[str, Any] = {"train": train, "attack": attack_task, "eval": eval_task, "gate": gate}


def run(verb: str, out: Path, *words: str) -> dict[str, float]:
    out.mkdir()
    found: dict[str, float] = TASKS[verb].run(composing.typed(compose(verb, *words), verb), out)
    return found


def test_the_command_writes_texts_and_numbers(tmp_path: Path) -> None:
    small = ("dataset=synthetic", "dataset.n_users=60", "dataset.n_items=40", "dataset.events_per_user=12")
    run("train", tmp_path / "run", *small, "model=lstm_text", "epochs=2", "device=cpu", "lr=0.01")
    ckpt = f"ckpt='{tmp_path / 'run'}'"
    words = ("attack=text_search", "attack.recipe=stuffing", "attack.queries=100", "goal=promote", "goal.count=2")
    found = run("attack", tmp_path / "attack", ckpt, *words, "device=cpu")
    assert found["rise/t_rank"] < 0
    assert 0 < found["budget/max_words"] <= 3
    assert found["budget/max_queries"] <= 50
    with open(tmp_path / "attack" / "texts.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2
    assert all(row["after"].startswith(row["before"]) and row["after"] != row["before"] for row in rows)
    noisy = run("attack", tmp_path / "noise", ckpt, "attack=text_noise", "attack.share=0.5", "device=cpu")
    assert noisy["budget/max_characters"] <= 2
    assert len(pd.read_csv(tmp_path / "noise" / "texts.csv")) == 20


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """Of honest titles, in which a sanitiser finds nothing, without one and with it; what they tell."""
    folder = tmp_path_factory.mktemp("runs")
    told = {
        name: run("train", folder / name, *SMALL, *words, *DISGUISED)
        for name, words in (("plain", ()), ("clean", SANITISED))
    }
    return {name: (folder / name, each) for name, each in told.items()}


class TestRunsBehindASanitiser:
    def test_what_was_learnt_is_the_same(self, runs: Runs) -> None:
        plain, clean = (json.loads((runs[each][0] / "model.json").read_text()) for each in ("plain", "clean"))
        assert (plain["fingerprint"], plain["sha256"]) == (clean["fingerprint"], clean["sha256"])
        assert "cleaning" in clean
        assert "cleaning" not in plain

    def test_a_training_that_ends_with_an_attack_tells_it_apart(self, runs: Runs) -> None:
        plain, clean = runs["plain"][1], runs["clean"][1]
        assert clean["attacked/ndcg@10"] == clean["test/ndcg@10"] == plain["test/ndcg@10"] != plain["attacked/ndcg@10"]

    def test_so_does_an_attack_on_the_run(self, runs: Runs, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        plain = run("attack", tmp_path / "plain", f"ckpt='{runs['plain'][0]}'", *DISGUISED, "device=cpu")
        assert "read behind" not in capsys.readouterr().out
        clean = run("attack", tmp_path / "clean", f"ckpt='{runs['clean'][0]}'", *DISGUISED, "device=cpu")
        assert "read behind clean=sanitise" in " ".join(capsys.readouterr().out.split())
        assert plain["clean/ndcg@10"] == clean["clean/ndcg@10"] == clean["attacked/ndcg@10"]
        assert plain["attacked/ndcg@10"] != clean["attacked/ndcg@10"]
        told = [json.loads((tmp_path / each / "run.json").read_text()) for each in ("plain", "clean")]
        assert all(told[0][key] == told[1][key] for key in ("threat", "fingerprint"))  # so that they can be compared
        assert plain["budget/mean_characters"] == clean["budget/mean_characters"] > 0
        texts = pd.read_csv(tmp_path / "clean/texts.csv")
        assert (texts["read"] == texts["before"]).all()
        assert (texts["after"] != texts["before"]).all()
        assert "read" not in pd.read_csv(tmp_path / "plain/texts.csv")

    def test_so_does_noise_after_the_training(self, runs: Runs, tmp_path: Path) -> None:
        clean, plain, noisy = (
            run("eval", tmp_path / name, f"ckpt='{runs[ckpt][0]}'", "device=cpu", *noise)["test/ndcg@10"]
            for name, ckpt, noise in (("a", "clean", NOISE), ("b", "plain", ()), ("c", "plain", NOISE))
        )
        assert clean == plain != noisy

    def test_a_gate_attacks_each_model_behind_its_own(self, runs: Runs, tmp_path: Path) -> None:
        limits = ("max_drop={auc:1.0}", "max_harm={auc:1.0}", "device=cpu", *DISGUISED)
        for ckpt, other in (("plain", "clean"), ("clean", "plain")):
            words = (f"ckpt='{runs[ckpt][0]}'", f"baseline='{runs[other][0]}'", *limits)
            found = run("gate", tmp_path / ckpt, *words)
            sides = {ckpt: "ckpt", other: "baseline"}
            assert found[f"{sides['clean']}/attacked/auc"] == found[f"{sides['clean']}/clean/auc"]
            assert found[f"{sides['plain']}/attacked/auc"] != found[f"{sides['plain']}/clean/auc"]

    def test_noise_in_training_passes_it_too(self, tmp_path: Path) -> None:
        run("train", tmp_path / "run", *SMALL, *SANITISED, *NOISE)
        loaded = checkpoint.load(str(tmp_path / "run"), data_dir=None, device=torch.device("cpu"))
        noisy, clean = loaded.uncleaned.item_table, loaded.data.item_table
        assert noisy is not None
        assert clean is not None
        assert not all(map(str.isascii, noisy["title"]))
        assert all(map(str.isascii, clean["title"]))

    def test_rules_that_were_changed_in_their_file_are_refused(self, runs: Runs, tmp_path: Path) -> None:
        changed = copytree(runs["clean"][0], tmp_path / "run")
        card = json.loads((changed / "cleaning.json").read_text())
        (changed / "cleaning.json").write_text(json.dumps({**card, "rules": {}}))
        with pytest.raises(RrecError, match=r"cleaning.json was changed"):
            checkpoint.load(str(changed), data_dir=None, device=torch.device("cpu"))
