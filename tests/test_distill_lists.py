"""Terms of a distillation over lists, against brute force."""

import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from conftest import DATA, Fixed, batch_of, build, gradients, make_data
from lessons import (
    BPR,
    LISTS,
    distil,
    fixed,
    heavy,
    listed,
    lists_of,
    teacher_of,
    value_of,
)

from robustbench_rec import distillation
from robustbench_rec.batch import Batch
from robustbench_rec.data import Interactions
from robustbench_rec.distillation import Lesson
from robustbench_rec.distills._lists import by_rank
from robustbench_rec.distills.rrd import plackett_luce
from robustbench_rec.errors import RrecError
from robustbench_rec.losses import loss
from robustbench_rec.objective import Plain, start_epoch
from robustbench_rec.shifted import Shifted


class TestLists:
    def test_listwise_is_the_naive_loop_over_the_users_of_the_batch(self) -> None:
        student, teacher, batch = build("mf"), teacher_of(), batch_of()
        for standardise in (True, False):
            built = distil(teacher=teacher, temperature=1.7, standardise=standardise)
            total = []
            for user in sorted(set(batch.users.tolist())):
                items = listed(built, user)[None]
                both = []
                for model in (student, teacher.at.model):
                    s = Shifted(model)(Batch.unlabelled(torch.tensor([user]), items)).scores[0]
                    both.append(((s - s.mean()) / s.std() if standardise else s) / 1.7)
                q, p = (each.log_softmax(0) for each in both)
                total.append((p.exp() * (p - q)).sum())
            expected = 1.7**2 * torch.stack(total).mean()
            torch.testing.assert_close(value_of(built, student, batch), expected, rtol=1e-4, atol=1e-6)

    def test_pointwise_is_the_divergence_of_coins(self) -> None:
        student, teacher, batch = build("mf"), teacher_of(), batch_of()
        built = distil("pointwise", teacher=teacher, temperature=1.5, standardise=False)
        found = []
        for user in torch.unique(batch.users).tolist():
            asked = Batch.unlabelled(torch.tensor([user]), listed(built, user)[None])
            p, q = (
                torch.distributions.Bernoulli(logits=Shifted(m)(asked).scores / 1.5)
                for m in (teacher.at.model, student)
            )
            found.append(torch.distributions.kl_divergence(p, q)[0])
        expected = 1.5**2 * torch.cat(found).mean()
        torch.testing.assert_close(value_of(built, student, batch), expected, rtol=1e-4, atol=1e-6)

    @pytest.mark.parametrize(
        ("teacher", "own", "raw"), [("neumf", "bce", True), ("neumf", "bpr", False), ("mf", "bce", False)]
    )
    def test_coins_are_raw_where_both_scores_are_logits(self, teacher: str, own: str, raw: bool) -> None:
        pupil, inner, batch = build("mf"), Plain(loss(own)), batch_of()
        found, plain = (
            value_of(distil("pointwise", inner, teacher_of(teacher), pupil, **each), pupil, batch)
            for each in ({}, {"standardise": not raw})
        )
        assert torch.equal(found, plain)

    def test_ratings_are_apart_by_the_square_of_their_difference(self) -> None:
        student, batch, own = build("biased_mf"), batch_of(), Plain(loss("mse"))
        teacher = teacher_of("biased_mf")
        with torch.no_grad():
            teacher.at.model.get_parameter("user_bias").add_(2.0)
        built = distil("pointwise", own, teacher, student, temperature=1.5)
        found = []
        for user in torch.unique(batch.users).tolist():
            asked = Batch.unlabelled(torch.tensor([user]), listed(built, user)[None])
            found.append((Shifted(teacher.at.model)(asked).scores - Shifted(student)(asked).scores)[0].square())
        torch.testing.assert_close(value_of(built, student, batch), torch.cat(found).mean())
        assert value_of(built, student, batch).item() == pytest.approx(4, rel=0.01)

    def test_a_student_of_ratings_learns_nothing_of_the_scale_of_other_scores(self) -> None:
        student, own, scores = build("biased_mf"), Plain(loss("mse")), 500 * torch.rand(DATA.n_users, DATA.n_items)
        one, two = (distil("pointwise", own, fixed(each), student) for each in (scores, scores / 100 - 7))
        values = [value_of(each, student, batch_of()) for each in (one, two)]
        torch.testing.assert_close(*values, rtol=1e-4, atol=1e-6)

    @pytest.mark.parametrize("standardise", [False, True])
    def test_cd_is_the_cross_entropy_with_soft_labels(self, standardise: bool) -> None:
        student, teacher, batch = build("mf"), teacher_of(), batch_of()
        built = distil("cd", teacher=teacher, temperature=1.5, standardise=standardise)
        total = []
        for user in torch.unique(batch.users).tolist():
            asked = Batch.unlabelled(torch.tensor([user]), listed(built, user)[None])
            s, t = (Shifted(each)(asked).scores[0] for each in (student, teacher.at.model))
            if standardise:
                s, t = ((each - each.mean()) / each.std() for each in (s, t))
            p, q = s.sigmoid(), (t / 1.5).sigmoid()
            total.append(-(q * p.log() + (1 - q) * (1 - p).log()))
        torch.testing.assert_close(value_of(built, student, batch), torch.cat(total).mean(), rtol=1e-4, atol=1e-6)

    @pytest.mark.parametrize(
        ("teacher", "student", "own", "raw"),
        [
            ("deepfm", "mf", "bpr", True),
            ("kgcn", "mf", "bce", True),
            ("deepfm", "biased_mf", "mse", False),
            ("pop", "mf", "bpr", False),
            ("stosa", "mf", "bpr", False),
        ],
    )
    def test_labels_of_cd_are_raw_where_scores_are_logits(
        self, teacher: str, student: str, own: str, raw: bool
    ) -> None:
        pupil, inner, batch = build(student), Plain(loss(own)), batch_of()
        found, plain = (
            value_of(distil("cd", inner, teacher_of(teacher), pupil, **each), pupil, batch)
            for each in ({}, {"standardise": not raw})
        )
        assert torch.equal(found, plain)

    @pytest.mark.parametrize("standardise", [True, False])
    def test_boundary_is_the_naive_loop_over_the_users_of_the_batch(self, standardise: bool) -> None:
        scores, batch = 2 * torch.randn(2, DATA.n_users, DATA.n_items), batch_of()
        student, teacher = Fixed(scores[0]), fixed(scores[1])
        changes = {"k": 4, "size": 8, "temperature": 1.7, "standardise": standardise}
        built = distil("boundary", teacher=teacher, student=student, **changes)
        total, lengths = [], set()
        for user in sorted(set(batch.users.tolist())):
            both = scores[:, user, listed(built, user)]
            lengths.add(both.shape[1])
            if standardise and both.shape[1] > 1:
                both = (both - both.mean(1, keepdim=True)) / both.std(1, keepdim=True)
            q, p = (both / 1.7).log_softmax(1)
            total.append((p.exp() * (p - q)).sum())
        assert len(lengths) > 2
        expected = 1.7**2 * torch.stack(total).mean()
        torch.testing.assert_close(value_of(built, student, batch), expected, rtol=1e-4, atol=1e-6)

    @pytest.mark.parametrize("top", [3, 100])
    @pytest.mark.parametrize("owned", [5, DATA.n_items - 5, DATA.n_items - 1])
    def test_finest_is_the_hinge_of_neighbours_and_of_what_stands_k_behind(self, owned: int, top: int) -> None:
        data = heavy(owned)
        student, teacher = build("mf", data), teacher_of(data=data)
        built = distil("finest", teacher=teacher, data=data, top=top, margin=0.05)
        batch = batch_of(data)
        order, above = [], []
        for user in sorted(set(batch.users.tolist())):
            best = Shifted(teacher.at.model)(Batch.unlabelled(torch.tensor([user]))).scores[0].argsort(descending=True)
            had = data.train.items[data.train.users == user]
            best = best[~torch.isin(best, had)][: 2 * top].tolist()
            s = Shifted(student)(Batch.unlabelled(torch.tensor([user]))).scores[0]
            order += [(0.05 - (s[i] - s[j])).clamp_min(0) for i, j in pairwise(best[:top])]
            above += [(0.05 - (s[i] - s[j])).clamp_min(0) for i, j in zip(best, best[top:], strict=False)]
        means = [torch.stack(each).mean() if each else torch.zeros(()) for each in (order, above)]
        torch.testing.assert_close(value_of(built, student, batch), sum(means), rtol=1e-4, atol=1e-6)

    def test_a_student_that_keeps_every_order_by_the_margin_has_nothing_to_learn(self) -> None:
        scores = torch.rand(DATA.n_users, DATA.n_items).argsort(1).argsort(1).float()
        student = Fixed(scores)
        for margin, least in ((1.0, 0.0), (1.5, 0.5)):
            value = value_of(
                distil("finest", teacher=fixed(5 * scores), student=student, margin=margin, top=1), student, batch_of()
            )
            assert (value.item() > 0) == (least > 0)

    @pytest.mark.parametrize("name", ["listwise", "pointwise", "boundary"])
    def test_a_student_that_agrees_with_its_teacher_has_nothing_to_learn(self, name: str) -> None:
        student, batch = build("mf", seed=9), batch_of()
        value = value_of(distil(name), student, batch)
        assert value.item() == pytest.approx(0, abs=1e-6)
        assert max(each.abs().max().item() for each in gradients(student, value).values()) < 1e-5

    @pytest.mark.parametrize("name", ["listwise", "boundary", "pointwise", "cd"])
    def test_standardised_lists_do_not_care_for_the_scale_of_a_teacher(self, name: str) -> None:
        student, batch = build("mf"), batch_of()
        scores = torch.randn(DATA.n_users, DATA.n_items)
        one, two = (value_of(distil(name, teacher=fixed(each)), student, batch) for each in (scores, 5 * scores + 3))
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-6)

    @pytest.mark.parametrize("name", ["listwise", "pointwise", "boundary", "cd", "rrd"])
    def test_scores_of_a_thousand_are_survived(self, name: str) -> None:
        scores = 1e3 * torch.randn(DATA.n_users, DATA.n_items).sign()
        student = Fixed(-scores)
        value = value_of(distil(name, teacher=fixed(scores), student=student), student, batch_of())
        assert value.isfinite()
        assert all(each.isfinite().all() for each in gradients(student, value).values())

    def test_they_begin_with_the_teachers_best_items_that_are_no_training_items(self) -> None:
        teacher = teacher_of()
        built = lists_of(distil(teacher=teacher))
        scores = teacher.scores(torch.arange(DATA.n_users), None).clone()
        scores[DATA.train.users, DATA.train.items] = -torch.inf
        assert torch.equal(built.lists[:, :6], scores.topk(6, 1).indices)
        assert built.lists.shape == (DATA.n_users, 10)

    @pytest.mark.parametrize("name", LISTS)
    def test_training_items_are_candidates_where_they_are_recommended_again(self, name: str) -> None:
        hidden = Interactions(torch.tensor([0, 3]), torch.tensor([4, 7]), torch.ones(2))
        data, teacher = replace(DATA, hidden=hidden), teacher_of()
        few = {"boundary": {"k": 6, "size": 20, "delta": 9.0}, "cd": {"count": 8}, "rrd": {"sampled": False}}
        few["finest"] = {"top": 4}
        changes = {"top": 8, "uniform": 60} if name in ("listwise", "pointwise") else few[name]
        built = distil(name, teacher=teacher, data=data, seen=True, **changes)
        scores = teacher.scores(torch.arange(DATA.n_users), None).clone()
        scores[hidden.users, hidden.items] = -torch.inf
        for user in range(DATA.n_users):
            own = set(listed(built, user).tolist())
            gone = set(hidden.items[hidden.users == user].tolist())
            assert not own & gone
            if name in ("boundary", "listwise", "pointwise"):
                assert len(own) > 0.8 * DATA.n_items
            if name != "boundary":
                first = 4 if name == "rrd" else 8
                best = scores[user].topk(first).indices
                assert torch.equal(lists_of(built).lists[user, :first], best)

    @pytest.mark.parametrize("top", [0, 6])
    def test_the_rest_are_other_items_each_once_and_no_training_items(self, top: int) -> None:
        built = lists_of(distil(top=top, uniform=30))
        assert built.there is not None
        for user in range(DATA.n_users):
            known = set(DATA.train.items[DATA.train.users == user].tolist())
            for place, item in enumerate(built.lists[user].tolist()):
                counts = item not in known
                assert bool(built.there[user, place]) == counts
                known.add(item)
        drawn = built.there[:, top:].sum(1)
        assert bool((drawn > 0.6 * (DATA.n_items - 5 - top)).all())

    def test_the_rest_is_drawn_anew_every_epoch_and_the_best_stay(self) -> None:
        built, lists = distil(), []
        for epoch in (0, 1, 0):
            start_epoch(built, epoch, torch.Generator().manual_seed(epoch))
            lists.append(lists_of(built).lists)
        assert torch.equal(lists[0], lists[2])
        assert torch.equal(lists[0][:, :6], lists[1][:, :6])
        assert not torch.equal(lists[0], lists[1])

    def test_portions_do_not_change_them(self, monkeypatch: pytest.MonkeyPatch) -> None:
        teacher, whole = teacher_of(), lists_of(distil())
        monkeypatch.setattr(distillation, "CELLS", DATA.n_items * 5)
        parts = lists_of(distil(teacher=teacher))
        assert torch.equal(whole.lists, parts.lists)
        torch.testing.assert_close(whole.taught, parts.taught)

    def test_the_boundary_is_what_the_teacher_scores_like_its_kth_item(self) -> None:
        teacher = teacher_of()
        term = lists_of(distil("boundary", teacher=teacher, k=4, delta=0.6, size=15))
        there = term.there
        assert there is not None
        for user in range(DATA.n_users):
            scores = teacher.scores(torch.tensor([user]), None)[0]
            seen = set(DATA.train.items[DATA.train.users == user].tolist())
            own = {item: scores[item].item() for item in range(DATA.n_items) if item not in seen}
            bar, spread = sorted(own.values())[-4], np.std(list(own.values()))
            expected = {item for item, score in own.items() if abs(score - bar) <= 0.6 * spread}
            assert set(term.lists[user][there[user]].tolist()) == expected

    def test_ranks_are_drawn_in_order_without_repeats_and_early_ones_more_often(self) -> None:
        places = by_rank(torch.ones(4000, 30, dtype=torch.bool), 5, 10.0, torch.Generator().manual_seed(0))
        assert bool((places.diff(dim=1) > 0).all())
        counts = torch.bincount(places.flatten(), minlength=30)
        assert counts[0] > 1.5 * counts[8] > 2 * counts[20]

    def test_a_user_who_has_nearly_all_items_shortens_no_list_but_the_own(self) -> None:
        data = heavy(DATA.n_items - 2)
        train = data.train
        lesson = Lesson(teacher_of(data=DATA), build("mf", DATA), data, 10, BPR.loss)
        found, there = lesson.best(8)
        assert found.shape == (DATA.n_users, 8)
        scores = lesson.teacher.scores(torch.arange(DATA.n_users), None)
        for user, row in enumerate(found.tolist()):
            taken = set(train.items[train.users == user].tolist())
            order = sorted(range(DATA.n_items), key=lambda item: (item in taken, -scores[user, item].item()))
            assert row == order[:8]
            assert there[user].tolist() == [item not in taken for item in row]

    @pytest.mark.parametrize("owned", [DATA.n_items - 2, DATA.n_items])
    def test_a_user_with_fewer_candidates_than_k_has_a_boundary_behind_the_last_of_them(self, owned: int) -> None:
        teacher, student = teacher_of(), build("mf")
        built = distil("boundary", teacher=teacher, student=student, data=heavy(owned), k=4, delta=9.0, size=15)
        term = lists_of(built)
        assert sorted(listed(built, 0).tolist()) == list(range(owned, DATA.n_items))
        whole = lists_of(distil("boundary", teacher=teacher, student=student, k=4, delta=9.0, size=15))
        assert term.there is not None
        assert torch.equal(term.lists[1:], whole.lists[1:])
        value = value_of(built, student, batch_of())
        assert all(each.isfinite().all() for each in (value, *gradients(student, value).values()))

    def test_a_boundary_behind_all_candidates_of_everybody_is_refused(self) -> None:
        with pytest.raises(RrecError, match="1 <= k <= 15 candidates"):
            distil("boundary", k=16)

    def test_one_score_alone_is_not_standardised(self) -> None:
        with pytest.raises(RrecError, match="count=1 and standardised scores: .* count >= 2 or standardise=false"):
            distil("cd", count=1)
        built = distil("cd", student=(student := build("mf")), count=1, standardise=False)
        value = value_of(built, student, batch_of())
        assert value.isfinite()
        assert any(each.any() for each in gradients(student, value).values())

    @pytest.mark.parametrize("name", LISTS)
    def test_what_training_took_teaches_nothing_where_a_user_has_few_candidates(self, name: str) -> None:
        data = make_data(n_users=6, n_items=10, train=7)
        lists = {
            "boundary": {"k": 3, "size": 6, "delta": 9.0},
            "cd": {"count": 4, "top": 6},
            "finest": {"top": 3},
            "rrd": {"interesting": 6, "top": 6, "uninteresting": 0, "sampled": False},
        }
        changes = lists.get(name, {"top": 6, "uniform": 0})
        student = build("mf", data)
        built = distil(name, teacher=teacher_of(data=data), student=student, data=data, task=0.0, **changes)
        term = lists_of(built)
        taken = torch.zeros(data.n_users, data.n_items, dtype=torch.bool)
        taken[data.train.users, data.train.items] = True
        there = ~taken.gather(1, term.lists)
        assert term.there is not None
        assert torch.equal(term.there, there)
        assert not bool(there.all())
        scores = torch.randn(term.lists.shape, requires_grad=True)
        term.compare(scores, term.taught, term.there).backward()
        assert scores.grad is not None
        assert bool((scores.grad[~there] == 0).all())
        assert bool((scores.grad[there] != 0).any())

    def test_uninteresting_items_are_neither_ranked_nor_seen(self) -> None:
        data = make_data(n_items=40)
        term = lists_of(
            distil("rrd", teacher=teacher_of(data=data), student=build("mf", data), data=data, uninteresting=9)
        )
        keys = torch.arange(data.n_users)[:, None] * data.n_items
        barred = {*term.lesson.taken.tolist(), *(keys + term.lesson.best(8)[0]).flatten().tolist()}
        assert not barred & set((keys + term.lists[:, 4:]).flatten().tolist())
        assert term.there is None

    def test_nobody_with_an_uninteresting_item_is_told(self, caplog: pytest.LogCaptureFixture) -> None:
        lists_of(distil("rrd", top=DATA.n_items, uninteresting=4))
        assert "nobody has an uninteresting item" in caplog.text

    def test_interesting_items_stand_in_the_order_of_the_teacher(self) -> None:
        for sampled in (True, False):
            term = lists_of(distil("rrd", sampled=sampled))
            assert bool((term.taught[:, :4].diff(dim=1) <= 0).all())


class TestPlackettLuce:
    """Conformance 9: RRD against the brute force of its definition."""

    def test_it_is_the_brute_force(self) -> None:
        ordered, tail = torch.randn(5, 4, dtype=torch.double), torch.randn(5, 3, dtype=torch.double)
        for row in range(5):
            total = 0.0
            for k in range(4):
                rest = sum(math.exp(s) for s in (*ordered[row, k:].tolist(), *tail[row].tolist()))
                total -= math.log(math.exp(ordered[row, k]) / rest)
            assert plackett_luce(ordered, tail)[row].item() == pytest.approx(total, rel=1e-9)

    def test_orders_of_all_items_have_probabilities_that_sum_to_one(self) -> None:
        from itertools import permutations

        scores, none = torch.randn(4, dtype=torch.double), torch.empty(1, 0)
        total = sum(
            plackett_luce(scores[list(order)][None], none).neg().exp().item() for order in permutations(range(4))
        )
        assert total == pytest.approx(1)

    def test_a_constant_added_to_all_scores_changes_nothing(self) -> None:
        ordered, tail = torch.randn(5, 4, dtype=torch.double), torch.randn(5, 3, dtype=torch.double)
        torch.testing.assert_close(plackett_luce(ordered, tail), plackett_luce(ordered + 7, tail + 7))

    def test_it_is_stable_for_scores_of_a_thousand(self) -> None:
        ordered = torch.tensor([[1e3, -1e3, 1e3], [-1e3, -1e3, 1e3]], requires_grad=True)
        tail = torch.tensor([[1e3, -1e3], [-1e3, 1e3]], requires_grad=True)
        value = plackett_luce(ordered, tail)
        value.sum().backward()
        assert value.isfinite().all()
        assert ordered.grad is not None
        assert tail.grad is not None
        assert ordered.grad.isfinite().all()
        assert tail.grad.isfinite().all()
        assert value[0].item() == pytest.approx(math.log(3) + 2e3 + math.log(2) + math.log(2), rel=1e-5)
