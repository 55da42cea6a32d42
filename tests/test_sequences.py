"""Models of histories: what a step may know, and layers that compute what other people's code computes."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from conftest import DATA, batch_for, build, interactions, make_data
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from robustbench_rec.batch import Batch, History
from robustbench_rec.errors import RrecError
from robustbench_rec.model import RecModel
from robustbench_rec.models.comirec import ComiRec
from robustbench_rec.models.gru4rec import GRU, GRU4Rec
from robustbench_rec.models.sasrec import Block, SASRec
from robustbench_rec.shifted import Shifted

CAUSAL = ["gru4rec", "multi_intent_gaussian", "sasrec", "stosa"]
MODELS = ["comirec", *CAUSAL]
LONG = make_data(n_items=40, train=20)  # histories longer than the windows of `small`
RAGGED = replace(LONG, train=interactions([0] * 9 + [1] * 2 + [2] + [4] * 5, [*range(9), 3, 4, 7, *range(20, 25)]))


def small(name: str, **changes: Any) -> RecModel:
    return build(name, LONG, **{"dim": 8, "window": 6, **changes}).eval()


def asked(rows: list[list[int]], steps: list[int] | None = None, *, width: int = 0) -> Batch:
    """Histories written by hand, padded to at least `width`."""
    width = max(width, 1, *map(len, rows))
    items = torch.tensor([row + [LONG.n_items] * (width - len(row)) for row in rows])
    lengths = torch.tensor([len(row) for row in rows])
    history = History(items, lengths, None if steps is None else torch.tensor(steps))
    return Batch.unlabelled(torch.arange(len(rows)), history=history)


def scores(model: RecModel, batch: Batch) -> Tensor:
    with torch.no_grad():
        return Shifted(model)(batch).scores


def disturb(model: RecModel) -> None:
    """Away from initial values, which hide what a part does."""
    with torch.no_grad():
        for each in model.parameters():
            each.normal_(std=0.5)


def assert_same(model: RecModel, found: Tensor, expected: Tensor) -> None:
    """In value and gradient."""
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    weights, outer = list(model.parameters()), torch.randn_like(expected)
    ours, theirs = (torch.autograd.grad(each, weights, outer) for each in (found, expected))
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)
    assert all(each.any() for each in theirs)


@pytest.mark.parametrize("name", MODELS)
class TestHistory:
    def test_padding_never_matters(self, name: str) -> None:
        model, rows = small(name), [[3, 1, 4, 1], [5], [9, 2]]
        tight = scores(model, asked(rows))
        torch.testing.assert_close(scores(model, asked(rows, width=6)), tight)
        torch.testing.assert_close(scores(model, asked(rows[:1])), tight[:1])  # no neighbour makes the rows longer
        torch.testing.assert_close(scores(model, asked([*rows, [7] * 6]))[:3], tight)

    def test_a_user_without_events_has_scores_that_no_event_decides(self, name: str) -> None:
        model = small(name)
        alone, beside = scores(model, asked([[]])), scores(model, asked([[], [1, 2, 3]]))[:1]
        assert alone.isfinite().all()
        torch.testing.assert_close(alone, beside)

    def test_the_order_of_events_matters(self, name: str) -> None:
        model = small(name)
        disturb(model)
        assert (scores(model, asked([[1, 2, 3]])) - scores(model, asked([[2, 1, 3]]))).abs().max() > 1e-3

    def test_every_event_of_the_window_reaches_the_scores(self, name: str) -> None:
        model, events = small(name), [1, 2, 3, 4, 5, 6]
        before = scores(model, asked([events]))
        for place in range(6):
            other = [*events[:place], 30, *events[place + 1 :]]
            assert not torch.equal(scores(model, asked([other])), before), place

    def test_settings_that_make_no_sense_are_refused(self, name: str) -> None:
        for changes in ({"dim": 0}, {"window": 0}, {"dropout": 1.0}):
            with pytest.raises(RrecError, match=f"{name} with .*{next(iter(changes))}="):
                small(name, **changes)

    def test_bf16_gives_about_the_same_scores(self, name: str) -> None:
        model = small(name)
        before = scores(model, asked([[1, 2, 3], [4]]))
        with torch.autocast("cpu", torch.bfloat16):
            after = scores(model, asked([[1, 2, 3], [4]]))
        assert (after.float() - before).abs().max() < 0.1 * before.abs().max()

    def test_a_dataset_without_order_is_refused(self, name: str) -> None:
        with pytest.raises(RrecError, match=f"model '{name}' needs order"):
            build(name, replace(DATA, ordered=False))

    def test_it_learns_who_follows_whom(self, name: str) -> None:
        """Items in a circle; the next one is known from the last alone."""
        count, length = 30, 8
        starts = torch.arange(count)
        circle = (starts[:, None] + torch.arange(length)) % count
        data = replace(
            make_data(n_users=count, n_items=count),
            train=interactions(starts.repeat_interleave(length), circle.reshape(-1)),
        )
        model = build(name, data, dim=16, dropout=0.0)
        batch = batch_for(model, data, size=10_000)
        optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
        for _ in range(80):
            optimizer.zero_grad()
            F.cross_entropy(Shifted(model)(batch).scores, batch.targets).backward()
            optimizer.step()
        history = History(circle, torch.full((count,), length))
        found = scores(model.eval(), Batch.unlabelled(starts, history=history))
        found.scatter_(1, circle, -math.inf)
        assert (found.argmax(1) == (starts + length) % count).float().mean() > 0.7  # by chance 1 in 22


@pytest.mark.parametrize("name", CAUSAL)
class TestCausal:
    ROW = (3, 1, 4, 1, 5, 9)

    def test_a_later_event_changes_no_earlier_step(self, name: str) -> None:
        model, steps = small(name), list(range(6))
        before = scores(model, asked([list(self.ROW)], steps))
        for place in range(6):
            other = list(self.ROW)
            other[place] = 30
            after = scores(model, asked([other], steps))
            assert torch.equal(after[:place], before[:place])
            assert all(not torch.equal(after[step], before[step]) for step in range(place, 6))

    def test_all_steps_at_once_are_each_prefix_by_itself(self, name: str) -> None:
        model = small(name)
        with torch.no_grad():  # positions count from the end of a row, so that a prefix has others
            for key, each in model.named_parameters():
                if "position" in key or "place" in key:
                    each.copy_(each[-1:].expand_as(each))
        together = scores(model, asked([list(self.ROW)], list(range(6))))
        apart = scores(model, asked([list(self.ROW[: step + 1]) for step in range(6)]))
        torch.testing.assert_close(together, apart)

    def test_the_last_step_of_a_row_is_the_row(self, name: str) -> None:
        model, rows = small(name), [[3, 1, 4], [1, 5, 9, 2, 6]]
        torch.testing.assert_close(scores(model, asked(rows, [2, 9])), scores(model, asked(rows)))

    def test_it_is_trained_at_every_step_and_by_any_loss(self, name: str) -> None:
        model = small(name).train()
        assert (model.causal, model.negatives, model.loss) == (True, 0, "softmax")
        batch = batch_for(model, RAGGED, size=100)
        assert batch.history is not None
        assert batch.history.steps is not None
        assert batch.targets is not None
        assert len(batch) == len(batch.targets) == (9 - 1) + (2 - 1) + (5 - 1)
        assert Shifted(model)(batch).scores.shape == (13, LONG.n_items)


class TestSASRec:
    def test_scores_and_gradients_are_those_of_the_formulas(self) -> None:
        model, rows, users = small("sasrec", heads=2, layers=2), [[3, 1, 4, 1, 5], [9], [2, 6]], []
        assert isinstance(model, SASRec)
        disturb(model)
        for row in rows:
            x = math.sqrt(8) * model.item.weight[row] + model.position.weight[-len(row) :]  # [L, D]
            for block in model.blocks:
                assert isinstance(block, Block)
                heads = []
                for part in torch.arange(8).chunk(2):
                    q, k, v = (each[:, part] for each in block.qkv(block.attention_norm(x)).chunk(3, 1))
                    logits = q @ k.T / math.sqrt(4)
                    behind = torch.ones_like(logits).tril().bool()
                    heads.append(logits.masked_fill(~behind, -math.inf).softmax(1) @ v)
                x = x + torch.cat(heads, 1)
                x = x + block.last(F.relu(block.first(block.feed_norm(x))))
            users.append(model.norm(x[-1]))
        assert_same(model, Shifted(model)(asked(rows)).scores, torch.stack(users) @ model.item.weight.T)

    def test_a_block_is_attention_and_feed_forward_of_torch(self) -> None:
        block = Block(8, 2, 0.0).eval()
        x = torch.randn(3, 5, 8)
        judge = nn.MultiheadAttention(8, 2, bias=False, batch_first=True)
        with torch.no_grad():
            judge.in_proj_weight.copy_(block.qkv.weight)
            judge.out_proj.weight.copy_(torch.eye(8))
        behind = nn.Transformer.generate_square_subsequent_mask(5)
        normed = block.attention_norm(x)
        y = x + judge(normed, normed, normed, attn_mask=behind, need_weights=False)[0]
        y = y + block.last(F.relu(block.first(block.feed_norm(y))))
        torch.testing.assert_close(block(x), y)

    def test_the_last_event_always_has_the_last_position(self) -> None:
        model = small("sasrec")
        assert isinstance(model, SASRec)
        before = scores(model, asked([[1, 2], [3, 4, 5, 6]]))
        with torch.no_grad():
            model.position.weight[:4] += 1.0  # all but the last two
        after = scores(model, asked([[1, 2], [3, 4, 5, 6]]))
        assert torch.equal(before[0], after[0])
        assert not torch.equal(before[1], after[1])

    def test_heads_that_do_not_divide_the_dimension_are_refused(self) -> None:
        for name in ("sasrec", "stosa", "multi_intent_gaussian"):
            with pytest.raises(RrecError, match=r"model.heads=3: must divide model.dim=8"):
                small(name, heads=3)


class TestGRU4Rec:
    def pair(self) -> tuple[GRU, nn.GRU]:
        ours, theirs = GRU(4, 7), nn.GRU(4, 7, bias=False, batch_first=True)
        with torch.no_grad():
            theirs.weight_ih_l0.copy_(ours.input)
            theirs.weight_hh_l0.copy_(ours.recurrent)
        return ours, theirs

    def test_a_layer_is_that_of_torch(self) -> None:
        ours, theirs = self.pair()
        x = torch.randn(3, 5, 4)
        torch.testing.assert_close(ours(x), theirs(x)[0])

    def test_shifted_weights_reach_every_use(self) -> None:
        ours, theirs = self.pair()
        x = torch.randn(3, 5, 4)
        with torch.no_grad():
            theirs.weight_ih_l0.add_(0.3)
            theirs.weight_hh_l0.sub_(0.2)
        found = functional_call(ours, {"input": ours.input + 0.3, "recurrent": ours.recurrent - 0.2}, (x,))
        torch.testing.assert_close(found, theirs(x)[0])

    def test_several_layers_stand_on_one_another(self) -> None:
        model = small("gru4rec", layers=2, hidden=5)
        assert isinstance(model, GRU4Rec)
        batch = asked([[1, 2, 3]])
        theirs = nn.GRU(8, 5, num_layers=2, bias=False, batch_first=True)
        with torch.no_grad():
            for number, layer in enumerate(model.layers):
                getattr(theirs, f"weight_ih_l{number}").copy_(layer.input)
                getattr(theirs, f"weight_hh_l{number}").copy_(layer.recurrent)
            states = theirs(model.item(torch.tensor([[1, 2, 3]])))[0]
            expected = model.dense(states[:, -1]) @ model.item.weight.T
        torch.testing.assert_close(scores(model, batch), expected)


class TestComiRec:
    def model(self, **changes: Any) -> ComiRec:
        model = small("comirec", **changes)
        assert isinstance(model, ComiRec)
        return model

    def test_scores_and_gradients_are_those_of_the_formulas(self) -> None:
        model, rows, expected = self.model(), [[3, 1, 4, 1, 5], [9], [2, 6]], []
        disturb(model)
        for row in rows:
            events = model.item.weight[row]  # [L, D]
            placed = events + model.position.weight[-len(row) :]
            shares = model.last(torch.tanh(model.first(placed))).softmax(0)  # [L, K]
            expected.append((shares.T @ events @ model.item.weight.T).amax(0))
        assert_same(model, Shifted(model)(asked(rows)).scores, torch.stack(expected))

    def test_attention_sums_to_one_and_is_nothing_on_padding(self) -> None:
        model, batch = self.model(), asked([[1, 2, 3], [4]])
        assert batch.history is not None
        shares = model.attention(batch, model.item(batch.history.items.clamp_max(LONG.n_items - 1)))
        torch.testing.assert_close(shares.sum(2), torch.ones(2, 4))
        assert not shares[1, :, 1:].any()

    def test_interests_are_made_of_events_without_their_positions(self) -> None:
        model = self.model()
        with torch.no_grad():
            model.position.weight.mul_(100)  # decides the shares and nothing else
        interests = Shifted(model)(asked([[1, 2], [3]])).hidden["interests"]
        events = model.item.weight[torch.tensor([1, 2])]
        shares = torch.linalg.lstsq(events.T, interests[0].T).solution.T  # [K, 2]
        torch.testing.assert_close(shares @ events, interests[0], rtol=1e-3, atol=1e-5)
        torch.testing.assert_close(shares.sum(1), torch.ones(4), rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(interests[1], model.item.weight[3].expand(4, -1))

    def test_a_score_is_the_best_over_the_interests(self) -> None:
        model, batch = self.model(), asked([[1, 2, 3], [4, 5]])
        output = Shifted(model)(batch)
        every = output.hidden["interests"] @ model.item.weight.T  # [B, K, n_items]
        torch.testing.assert_close(output.scores, every.max(1).values)
        weights, outer = list(model.parameters()), torch.randn_like(output.scores)
        found, expected = (
            torch.autograd.grad(each, weights, outer, retain_graph=True) for each in (output.scores, every.amax(1))
        )
        torch.testing.assert_close(found, expected)
        one = self.model(interests=1)
        torch.testing.assert_close(
            scores(one, batch), Shifted(one)(batch).hidden["interests"][:, 0] @ one.item.weight.T
        )

    def test_it_is_trained_on_the_history_before_each_event(self) -> None:
        batch = batch_for(self.model(), RAGGED, size=100)
        assert batch.history is not None
        assert batch.history.steps is None
        assert len(batch) == 13
