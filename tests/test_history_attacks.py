"""Attacks on histories: what each edit does, the budget, and that a flip finds what trying everything finds."""

from dataclasses import replace
from functools import cache
from itertools import product
from typing import Any

import pytest
import torch
from conftest import (
    DATA,
    against,
    assert_gradients,
    batch_for,
    build,
    compose,
    configured,
    gradients,
    interactions,
    make_data,
    usual,
)
from torch import Tensor

from robustbench_rec.attack import Attack
from robustbench_rec.attacks import attacks
from robustbench_rec.attacks.history import ITEMS, OPS, PLACES
from robustbench_rec.batch import Batch, History
from robustbench_rec.config import Judge
from robustbench_rec.data import Data
from robustbench_rec.edits import GAMMA, Draws, _mixed, distance, jaccard, known, read
from robustbench_rec.errors import RrecError
from robustbench_rec.evaluation import base as module
from robustbench_rec.evaluation import evaluator
from robustbench_rec.evaluation.worst import members
from robustbench_rec.goals import goals
from robustbench_rec.losses import loss
from robustbench_rec.model import RecModel
from robustbench_rec.objective import Scalar
from robustbench_rec.shifted import Shifted

READERS = ["comirec", "gru4rec", "multi_intent_gaussian", "sasrec", "stosa"]
LONG = make_data(n_items=40, train=12)
WINDOW = 8


@cache
def small(name: str = "gru4rec") -> RecModel:
    return build(name, LONG, dim=8, window=WINDOW).eval().requires_grad_(False)


def histories(rows: list[list[int]], data: Data = LONG) -> History:
    width = max(map(len, rows))
    items = torch.tensor([row + [data.n_items] * (width - len(row)) for row in rows])
    return History(items, torch.tensor(list(map(len, rows))))


def labelled(rows: list[list[int]], data: Data = LONG) -> Batch:
    labels = torch.zeros(len(rows), data.n_items)
    labels[torch.arange(len(rows)), torch.arange(len(rows)) % data.n_items] = 1
    return Batch(torch.arange(len(rows)) % data.n_users, None, labels, history=histories(rows))


def attack(name: str, model: RecModel, data: Data = LONG, **changes: Any) -> Attack:
    return attacks.build(configured("attack", name, **changes)).prepared(model, data)


def softmax(at: Shifted, batch: Batch) -> Tensor:
    return loss("softmax")(at(batch), batch)


def edited(rows: list[list[int]], **changes: Any) -> list[list[int]]:
    model = small()
    batch = labelled(rows)
    at, changed = attack("history", model, **changes)(Shifted(model), batch, softmax)
    assert not at.delta
    assert_well_formed(known(changed))
    return lists(known(changed))


def lists(history: History) -> list[list[int]]:
    return [row[:length] for row, length in zip(history.items.tolist(), history.lengths.tolist(), strict=True)]


def assert_well_formed(history: History, data: Data = LONG) -> None:
    assert (history.lengths >= 1).all()
    assert (history.lengths <= WINDOW).all()
    assert history.items.shape[1] <= WINDOW
    assert (history.items[~history.real] == data.n_items).all()
    assert ((history.items >= 0) & (history.items < data.n_items))[history.real].all()


ROWS = [[1, 2, 3, 4, 5, 6], [7, 8, 9], [10], [11, 12, 13, 14, 15, 16, 17, 18]]


class TestEdits:
    @pytest.mark.parametrize(
        ("op", "where", "expected"),
        [
            ("delete", "start", [[3, 4, 5, 6], [8, 9], [10], [14, 15, 16, 17, 18]]),
            ("delete", "end", [[1, 2, 3, 4], [7, 8], [10], [11, 12, 13, 14, 15]]),
            ("delete", "middle", [[1, 2, 5, 6], [7, 9], [10], [11, 12, 16, 17, 18]]),
            ("crop", "middle", [[2, 3, 4, 5], [7, 8], [10], [12, 13, 14, 15, 16]]),
            ("reverse", "end", [[1, 2, 3, 4, 6, 5], [7, 9, 8], [10], [11, 12, 13, 14, 15, 18, 17, 16]]),
            ("swap", "start", [[2, 1, 3, 4, 5, 6], [8, 7, 9], [10], None]),
            ("duplicate", "end", [[1, 2, 3, 4, 5, 5, 6, 6], [7, 8, 9, 9], [10, 10], [14, 15, 16, 16, 17, 17, 18, 18]]),
        ],
    )
    def test_the_events_at_a_place_are_edited(self, op: str, where: str, expected: list[Any]) -> None:
        found = edited(ROWS, op=op, where=where, share=0.34)
        for row, wanted in zip(found, expected, strict=True):
            assert wanted is None or row == wanted

    @pytest.mark.parametrize(("op", "where", "items"), list(product(OPS, PLACES, ITEMS)))
    def test_histories_stay_well_formed_and_the_seed_decides(self, op: str, where: str, items: str) -> None:
        for share in (0.0, 0.1, 0.5, 1.0):
            one = edited(ROWS, op=op, where=where, items=items, share=share)
            assert one == edited(ROWS, op=op, where=where, items=items, share=share)
            if not share:
                assert one == ROWS

    def test_another_seed_edits_other_events(self) -> None:
        assert edited(ROWS, op="replace", seed=0) != edited(ROWS, op="replace", seed=1)

    @pytest.mark.parametrize("op", ["delete", "crop"])
    def test_one_event_is_left_whatever_the_share(self, op: str) -> None:
        assert [len(row) for row in edited(ROWS, op=op, share=1.0)] == [1, 1, 1, 1]

    @pytest.mark.parametrize("op", ["swap", "reverse"])
    def test_a_change_of_order_keeps_the_events(self, op: str) -> None:
        found = edited(ROWS, op=op, share=0.5)
        assert list(map(sorted, found)) == list(map(sorted, ROWS))
        assert [row != old for row, old in zip(found, ROWS, strict=True)] == [True, True, False, True]

    def test_every_event_that_is_swapped_leaves_its_place(self) -> None:
        for row, old in zip(edited(ROWS, op="swap", share=1.0), ROWS, strict=True):
            assert len(old) == 1 or all(a != b for a, b in zip(row, old, strict=True))

    @pytest.mark.parametrize("items", ITEMS)
    def test_as_many_events_as_the_share_says_are_replaced_by_others(self, items: str) -> None:
        for row, old in zip(edited(ROWS, op="replace", share=0.5, items=items), ROWS, strict=True):
            changed = sum(a != b for a, b in zip(row, old, strict=True))
            assert changed == max(1, round(0.5 * len(old)))

    @pytest.mark.parametrize(("where", "kept"), [("start", slice(3, 6)), ("end", slice(0, 3))])
    def test_insertions_leave_the_events_in_order(self, where: str, kept: slice) -> None:
        (row,) = edited([[1, 2, 3]], op="insert", share=1.0, where=where)
        assert len(row) == 6
        assert row[kept] == [1, 2, 3]

    def test_of_a_history_longer_than_the_window_the_oldest_events_go(self) -> None:
        (row,) = edited([ROWS[3]], op="insert", share=0.25, where="end")
        assert row[:6] == ROWS[3][2:]

    def test_popular_items_are_put_in_by_their_share_of_the_training_events(self) -> None:
        popular = interactions([0] * 9 + [1] * 3, [5] * 9 + [6] * 3)
        data = replace(LONG, train=popular)
        model, batch = small(), replace(labelled([[1, 2, 3, 4]] * 300), users=torch.arange(300))
        shares = {}
        for items in ("popular", "unpopular", "uniform"):
            built = attack("history", model, data, op="replace", share=1.0, items=items)
            history = known(built(Shifted(model), batch, softmax)[1])
            shares[items] = torch.bincount(history.items.flatten(), minlength=data.n_items) / history.items.numel()
        assert shares["popular"][5] == pytest.approx(0.75, abs=0.05)
        assert shares["popular"][6] == pytest.approx(0.25, abs=0.05)
        assert shares["unpopular"][5] < shares["uniform"][5] < shares["popular"][5]

    def test_similar_items_are_the_nearest_by_the_vectors_of_the_model(self) -> None:
        model = small("sasrec")
        table = torch.nn.functional.normalize(model.item.weight, dim=1)  # type: ignore[union-attr]
        near = (table @ table.T).fill_diagonal_(-2).argmax(1)
        built = attack("history", model, op="replace", share=1.0, items="similar")
        changed = built(Shifted(model), labelled([[3, 9, 27]]), softmax)[1]
        assert lists(known(changed)) == [near[[3, 9, 27]].tolist()]
        assert built.declared.knowledge == "white-box"


class TestFlip:
    @pytest.mark.parametrize("name", READERS)
    @pytest.mark.parametrize("op", ["replace", "insert"])
    def test_no_edit_lowers_the_objective_of_a_row_and_more_edits_raise_it(self, name: str, op: str) -> None:
        model, batch = small(name), labelled(ROWS)
        at = Shifted(model)
        last = softmax(at, batch)
        for edits in (0, 1, 3):
            built = attack("history_flip", model, op=op, edits=edits, candidates=10)
            same, changed = built(at, batch, softmax)
            assert_well_formed(known(changed))
            value = softmax(same, changed)
            assert (value >= last - 1e-5).all()
            assert edits != 1 or (value > last + 1e-5).any()
            assert op == "insert" or (distance(known(batch), known(changed)) <= edits).all()
            last = value

    @pytest.mark.parametrize("name", READERS)
    def test_with_all_candidates_one_flip_is_the_best_there_is(self, name: str) -> None:
        model, rows = small(name), [[1, 2, 3], [7, 8]]
        at, batch = Shifted(model), labelled(rows)
        built = attack("history_flip", model, edits=1, candidates=3 * LONG.n_items)
        found = softmax(*built(at, batch, softmax))
        for number, row in enumerate(rows):
            tried = [[*row[:i], item, *row[i + 1 :]] for i in range(len(row)) for item in range(LONG.n_items)]
            every = labelled(tried)
            labels = batch.labels[[number]].expand(len(tried), -1)
            best = softmax(at, replace(every, users=batch.users[[number]].expand(len(tried)), labels=labels)).max()
            assert found[number].item() == pytest.approx(best.item(), abs=1e-5)

    @pytest.mark.parametrize("name", READERS)
    def test_the_gradient_ranks_flips_better_than_chance(self, name: str) -> None:
        model, batch = small(name), labelled(ROWS * 8)
        at = Shifted(model)
        guided = attack("history_flip", model, edits=2, candidates=3)
        blind = attack("history", model, op="replace", share=0.3)
        gains = [(softmax(*each(at, batch, softmax)) - softmax(at, batch)).mean() for each in (guided, blind)]
        assert gains[0] > 2 * abs(gains[1])

    def test_a_row_is_attacked_as_if_it_were_alone(self) -> None:
        model, batch = small("sasrec"), labelled(ROWS)
        built = attack("history_flip", model, edits=2, candidates=5)
        together = lists(known(built(Shifted(model), batch, softmax)[1]))
        for row in range(len(ROWS)):
            alone = built(Shifted(model), batch.rows(torch.tensor([row])), softmax)[1]
            assert lists(known(alone)) == [together[row]]

    def test_what_the_model_reads_is_a_leaf_for_a_while_and_then_no_more(self) -> None:
        model, batch = small("stosa"), labelled(ROWS)
        with read(model) as seen:
            softmax(Shifted(model), batch).sum().backward()
        assert len(seen) == 2
        assert all(each.rows.grad is not None for each in seen)
        assert not softmax(Shifted(model), batch).requires_grad


class TestAims:
    """An item in the history is not recommended again, so putting it there is no promotion."""

    @pytest.mark.parametrize("op", ["replace", "insert"])
    @pytest.mark.parametrize(
        ("name", "changes"), [("history_flip", {}), *(("history", {"items": items, "share": 1.0}) for items in ITEMS)]
    )
    def test_what_the_goal_is_about_is_never_put_in(self, name: str, changes: dict[str, Any], op: str) -> None:
        model, old = small("sasrec"), {item for row in ROWS for item in row}
        batch = replace(labelled(ROWS * 20), users=torch.arange(20 * len(ROWS)))
        built = attack(name, model, op=op, **changes)

        def put_in(batch: Batch) -> set[int]:
            return {item for row in lists(known(built(Shifted(model), batch, softmax)[1])) for item in row} - old

        aims = torch.tensor(sorted(put_in(batch))[:3])
        assert len(aims)
        found = put_in(replace(batch, aims=aims.expand(len(batch), -1)))
        assert found
        assert not found & set(aims.tolist())


class TestDraws:
    def test_they_are_uniform_and_independent(self) -> None:
        draws = Draws(torch.arange(400), 0)
        one, two = draws(300), draws(300)
        assert 0 <= one.min() < one.max() < 1
        for each in (one, two):
            assert each.mean().item() == pytest.approx(0.5, abs=0.005)
            assert each.std().item() == pytest.approx(12**-0.5, abs=0.005)
            assert torch.histc(each, 20, 0, 1).sub(6000).abs().max() < 400  # 5 standard deviations
        columns = torch.stack([one[:, 0], one[:, 1], two[:, 0], Draws(torch.arange(400), 1)(1)[:, 0], one[:, 2]])
        assert torch.corrcoef(columns).fill_diagonal_(0).abs().max() < 0.25
        assert torch.corrcoef(one[:20]).fill_diagonal_(0).abs().max() < 0.3

    def test_it_is_splitmix64(self) -> None:
        """The first outputs of the generator seeded with 1234567, as published with it."""
        state, outputs = torch.tensor(1234567), []
        for _ in range(3):
            outputs.append(int(_mixed(state)) % 2**64)
            state = state + GAMMA
        assert outputs == [6457827717110365317, 3203168211198807973, 9817491932198370423]


class TestDistance:
    @pytest.mark.parametrize(
        ("old", "new", "edits", "alike"),
        [
            ([1, 2, 3], [1, 2, 3], 0, 1.0),
            ([1, 2, 3], [2, 3], 1, 2 / 3),
            ([1, 2, 3], [2, 3, 4], 2, 0.5),
            ([1, 2, 3], [3, 2, 1], 2, 1.0),
            ([1], [5, 6, 7, 8], 4, 0.0),
            ([1, 1, 2], [1, 2], 1, 1.0),
        ],
    )
    def test_by_hand(self, old: list[int], new: list[int], edits: int, alike: float) -> None:
        rows = histories([old, [4] * 6]), histories([new, [4] * 6])
        assert distance(*rows).tolist() == [edits, 0]
        assert jaccard(*rows).tolist() == pytest.approx([alike, 1.0])

    def test_it_is_that_of_the_textbook_recursion(self) -> None:
        generator = torch.Generator().manual_seed(0)
        drawn = [torch.randint(4, (int(n),), generator=generator).tolist() for n in torch.randint(1, 9, (60,))]
        pairs = list(zip(drawn[:30], drawn[30:], strict=True))
        found = distance(histories([a for a, _ in pairs]), histories([b for _, b in pairs]))
        assert found.tolist() == [levenshtein(a, b) for a, b in pairs]


def levenshtein(a: list[int], b: list[int]) -> int:
    row = list(range(len(b) + 1))
    for x in a:
        following = [row[0] + 1]
        for place, y in enumerate(b):
            following.append(min(row[place] + (x != y), row[place + 1] + 1, following[-1] + 1))
        row = following
    return row[-1]


class TestJudged:
    JUDGE = Judge(protocol="full", seen=False, n_negatives=None, metrics=["ndcg"], top_k=[5], per_user=False)

    @pytest.mark.parametrize("name", ["history", "history_flip"])
    def test_the_evaluator_attacks_exactly_the_histories_that_are_judged(self, name: str) -> None:
        model = small("sasrec")
        judging = evaluator(LONG, self.JUDGE)
        at, built = Shifted(model), attack(name, model)
        climbed: Scalar = judging.climbed("softmax")  # type: ignore[assignment]
        moved, budget = judging.attack(at, built, "test", climbed)  # type: ignore[arg-type]
        assert budget["max_edits"] > 0
        assert {"mean_edits", "mean_share", "mean_jaccard_distance"} <= budget.keys()
        for (point, batch), clean in zip(moved, judging.inputs(model, "test"), strict=True):
            assert not point.delta
            assert torch.equal(batch.users, clean.users)
            assert known(batch).items.tolist() != known(clean).items.tolist()
        assert judging.evaluate(moved, "test").metrics != judging.evaluate(at, "test").metrics

    @pytest.mark.parametrize("changes", [{"op": op} for op in OPS])
    def test_edits_do_not_depend_on_the_portions(
        self, changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        model, found = small(), []
        for cells in (module.CELLS, LONG.n_items * 5):
            monkeypatch.setattr(module, "CELLS", cells)
            built = attack("history", model, **changes)
            moved, spent = evaluator(LONG, self.JUDGE).attack(Shifted(model), built, "test", loss("softmax"))
            found.append(([row for _, batch in moved for row in lists(known(batch))], spent))
        assert found[0][0] == found[1][0]
        assert found[0][1] == pytest.approx(found[1][1])

    @pytest.mark.parametrize("name", ["history", "history_flip"])
    def test_the_announced_passes_are_made(self, name: str) -> None:
        model, passes = small(), iter(range(1000))
        built = attack(name, model)
        judging = evaluator(LONG, self.JUDGE)
        judging.attack(Shifted(model), built, "test", loss("softmax"), on_pass=passes.__next__)
        assert next(passes) == built.passes

    @pytest.mark.parametrize(("name", "told"), [("history", True), ("history_flip", False)])
    def test_a_loss_that_nothing_climbs_is_told(self, name: str, told: bool, caplog: pytest.LogCaptureFixture) -> None:
        goal = goals.build(configured("goal", "untargeted"), LONG)
        members(evaluator(LONG, self.JUDGE), attack(name, small()), goal, "softmax")
        assert ("loss=softmax says nothing here" in caplog.text) == told

    def test_a_budget_of_nothing_leaves_every_score(self) -> None:
        model, batch = small(), labelled(ROWS)
        for name, nothing in (("history", {"share": 0.0}), ("history_flip", {"edits": 0})):
            changed = attack(name, model, **nothing)(Shifted(model), batch, softmax)[1]
            assert torch.equal(Shifted(model)(changed).scores, Shifted(model)(batch).scores)


class TestRefused:
    @pytest.mark.parametrize("name", ["history", "history_flip"])
    def test_a_model_without_histories(self, name: str) -> None:
        with pytest.raises(RrecError, match="model 'mf' reads no history"):
            attack(name, build("mf"), DATA)

    @pytest.mark.parametrize(
        ("name", "changes", "message"),
        [
            ("history", {"op": "shuffle"}, "unknown op of attack 'history' 'shuffle'"),
            ("history", {"where": "top"}, "unknown place of attack 'history' 'top'"),
            ("history", {"items": "rare"}, "unknown kind of items"),
            ("history", {"share": 1.5}, "attack.share=1.5: a share between 0 and 1"),
            ("history_flip", {"op": "delete"}, "unknown op of attack 'history_flip' 'delete'"),
            ("history_flip", {"candidates": 0}, "candidates >= 1"),
        ],
    )
    def test_a_config_that_makes_no_sense(self, name: str, changes: dict[str, Any], message: str) -> None:
        with pytest.raises(RrecError, match=message):
            attacks.build(configured("attack", name, **changes))

    @pytest.mark.parametrize("model", ["comirec", "sasrec"])
    def test_a_training_against_flips(self, model: str) -> None:
        with pytest.raises(RrecError, match="history_flip .* a training has one loss for a batch; take .*=history, or"):
            against("history_flip", small(model), LONG)

    @pytest.mark.parametrize("model", [each for each in READERS if each != "comirec"])
    @pytest.mark.parametrize("op", sorted(set(OPS) - {"replace"}))
    def test_a_training_in_which_events_would_leave_their_places(self, model: str, op: str) -> None:
        with pytest.raises(
            RrecError, match=f"op={op}: model '{model}' learns .* take defense.attack.op=replace"
        ) as error:
            against("history", small(model), LONG, op=op)
        assert "\n" not in str(error.value)

    def test_a_training_without_histories(self) -> None:
        for name in ("history", "history_flip"):
            with pytest.raises(RrecError, match="model 'mf' reads no history"):
                against(name, build("mf"))

    def test_the_command_line_composes_every_op(self) -> None:
        for op in OPS:
            assert compose("attack", "ckpt=x", "attack=history", f"attack.op={op}").attack.op == op


TRAINED = [*(("comirec", op) for op in OPS), *((name, "replace") for name in READERS if name != "comirec")]


class TestTraining:
    @pytest.mark.parametrize(("name", "op"), TRAINED)
    @pytest.mark.parametrize("items", ["uniform", "similar"])
    def test_half_of_it_is_on_edited_histories(self, name: str, op: str, items: str) -> None:
        model = build(name, LONG, dim=8, window=WINDOW).eval()
        batch = batch_for(model, LONG)
        objective, same = (against("history", model, LONG, op=op, share=0.5, items=items) for _ in range(2))
        _, changed = same.attack(Shifted(model), batch, usual(model))
        assert batch.history is not None
        assert changed.history is not None
        assert lists(changed.history) != lists(batch.history)
        assert_well_formed(changed.history)
        reference = (usual(model)(Shifted(model), batch) + usual(model)(Shifted(model), changed)) / 2
        assert_gradients(gradients(model, objective(Shifted(model), batch)), gradients(model, reference))

    @pytest.mark.parametrize("name", READERS)
    def test_every_row_of_every_batch_has_edits_of_its_own(self, name: str) -> None:
        model = build(name, LONG, dim=8, window=WINDOW).eval()
        batch = batch_for(model, LONG, size=48)
        assert batch.history is not None
        alike = replace(batch.history, items=batch.history.items[:1].expand_as(batch.history.items))
        alike = replace(alike, lengths=alike.lengths[:1].expand_as(alike.lengths))
        batch = replace(batch, history=alike, users=torch.zeros_like(batch.users))
        objective = against("history", model, LONG, share=0.5)
        one, two = (objective.attack(Shifted(model), batch, usual(model))[1].history for _ in range(2))
        assert one is not None
        assert two is not None
        assert lists(one) != lists(two)
        assert len(set(map(tuple, lists(one)))) > 1

    @pytest.mark.parametrize("name", [each for each in READERS if each != "comirec"])
    def test_all_steps_of_a_history_are_still_learnt(self, name: str) -> None:
        model = build(name, LONG, dim=8, window=WINDOW).eval()
        batch = batch_for(model, LONG)
        _, changed = against("history", model, LONG, share=1.0).attack(Shifted(model), batch, usual(model))
        assert batch.history is not None
        assert batch.history.steps is not None
        assert changed.history is not None
        assert changed.history.steps is batch.history.steps
        assert torch.equal(changed.history.lengths, batch.history.lengths)
        assert (changed.history.items != batch.history.items)[batch.history.real].all()
