"""rrec recommend: lists of known users, of everybody and of new users, for people and for programs."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from conftest import DATA, Fixed, build, make_data
from torch import Tensor

from robustbench_rec import launch
from robustbench_rec.batch import Batch, History
from robustbench_rec.data import Interactions
from robustbench_rec.errors import RrecError
from robustbench_rec.models._gaussians import Gaussian, distance_deviation
from robustbench_rec.naming import Names
from robustbench_rec.recommendation import FoldIn, Recommender
from robustbench_rec.shifted import Shifted, surface

K = 6


def asked(name: str, **options: Any) -> Recommender:
    model = build(name).eval().requires_grad_(False)
    return Recommender(Shifted(model), options.pop("data", DATA), **options)


def had(user: int, *parts: str) -> set[int]:
    return {int(i) for p in parts for u, i in zip(DATA.part(p).users, DATA.part(p).items, strict=True) if u == user}


@pytest.mark.parametrize(
    ("part", "known"), [(None, ["train", "valid", "test"]), ("test", ["train", "valid"]), ("valid", ["train"])]
)
def test_a_list_is_the_best_of_what_the_user_has_not_had(part: str | None, known: list[str]) -> None:
    scores = torch.rand(DATA.n_users, DATA.n_items, generator=torch.Generator().manual_seed(0))
    found = Recommender(Shifted(Fixed(scores)), DATA, part=part).of(torch.arange(DATA.n_users), K)
    for user in range(DATA.n_users):
        left = [item for item in range(DATA.n_items) if item not in had(user, *known)]
        best = sorted(left, key=lambda item: -scores[user, item])[:K]
        assert found.items[user].tolist() == best
        torch.testing.assert_close(found.scores[user], scores[user, best])


def test_what_was_rated_below_the_threshold_is_not_recommended_and_changes_no_list_that_is_judged() -> None:
    scores = torch.rand(DATA.n_users, DATA.n_items, generator=torch.Generator().manual_seed(0))
    new = next(
        item for item in scores[3].argsort(descending=True).tolist() if item not in had(3, "train", "valid", "test")
    )
    cut = Interactions(torch.tensor([3]), torch.tensor([new]), torch.tensor([1.0]))
    data, user = replace(DATA, disliked=cut), torch.tensor([3])
    at = Shifted(Fixed(scores))
    assert int(Recommender(at, DATA).of(user, K).items[0, 0]) == new
    assert new not in Recommender(at, data).of(user, K).items[0]
    assert new in Recommender(at, data, seen=True).of(user, DATA.n_items).items[0, :K]
    for part in ("valid", "test"):
        assert torch.equal(
            Recommender(at, data, part=part).of(user, K).items, Recommender(at, DATA, part=part).of(user, K).items
        )


def test_seen_items_come_back_if_they_are_asked_for_and_a_long_list_ends() -> None:
    scores = torch.rand(DATA.n_users, DATA.n_items)
    at = Shifted(Fixed(scores))
    every = Recommender(at, DATA, seen=True).of(torch.tensor([3]), 100)
    assert every.items[0].tolist() == scores[3].argsort(descending=True).tolist()
    left = Recommender(at, DATA).of(torch.tensor([3]), 100)
    assert int(left.scores.isfinite().sum()) == DATA.n_items - len(had(3, "train", "valid", "test"))


@pytest.mark.parametrize("name", ["mf", "sasrec", "itemknn", "kgat"])
def test_everybodys_lists_are_those_of_each(name: str) -> None:
    recommender = asked(name)
    found = torch.cat([lists.items for _, lists in recommender.everyone(K)])
    assert len(found) == DATA.n_genuine
    for user in range(0, DATA.n_users, 5):
        assert found[user].tolist() == recommender.of(torch.tensor([user]), K).items[0].tolist()


def test_a_score_that_is_no_number_is_refused() -> None:
    with pytest.raises(RrecError, match="NaN or infinite"):
        Recommender(Shifted(Fixed(torch.full((DATA.n_users, DATA.n_items), torch.nan))), DATA).of(torch.tensor([0]), 2)


class TestNewUsers:
    def test_a_model_of_sequences_reads_the_list_as_a_history(self) -> None:
        recommender, liked = asked("sasrec"), torch.tensor([4, 9, 2])
        found, _ = recommender.new(liked, K)
        history = History(liked[None], torch.tensor([3]))
        scores = recommender.at(Batch.unlabelled(torch.tensor([7]), history=history)).scores[0]
        scores[liked] = -torch.inf
        assert found.items[0].tolist() == scores.topk(K).indices.tolist()

    @pytest.mark.parametrize("name", ["itemknn", "ease"])
    def test_an_item_that_is_told_again_counts_once(self, name: str) -> None:
        recommender = asked(name)
        once, again = (recommender.new(torch.tensor(each), K)[0] for each in ([4, 9], [9, 4, 9, 9]))
        assert torch.equal(once.items, again.items)
        assert torch.equal(once.scores, again.scores)

    @pytest.mark.parametrize("name", ["itemknn", "ease", "deepcf_mlp"])
    def test_a_model_of_rows_gives_somebody_with_the_same_items_the_same_list(self, name: str) -> None:
        recommender, user = asked(name, part="valid"), 5
        found, _ = recommender.new(torch.tensor(sorted(had(user, "train"))), K)
        torch.testing.assert_close(found.scores, recommender.of(torch.tensor([user]), K).scores)

    @pytest.mark.parametrize("name", ["mf", "lightgcn", "kgat", "structure_aware_kgat", "kgcn", "neumf", "biased_mf"])
    def test_rows_that_are_no_numbers_are_told(self, name: str) -> None:
        recommender = asked(name)
        for each in recommender.model.parameters():
            each.data.fill_(torch.nan)
        recommender.model.refresh()
        with pytest.raises(RrecError, match="NaN or infinite"):
            recommender.new(torch.tensor([4, 9]), K)

    @pytest.mark.parametrize("name", ["mf", "lightgcn", "kgat", "structure_aware_kgat", "kgcn", "neumf", "biased_mf"])
    def test_a_learnt_row_likes_what_is_liked_and_changes_nothing_else(self, name: str) -> None:
        recommender, liked = asked(name), torch.tensor([4, 9])
        for table in surface(recommender.model, "embedding"):
            recommender.model.get_parameter(table).mul_(10)  # as far apart as trained ones
        recommender.model.refresh()
        before = {key: each.clone() for key, each in recommender.model.state_dict().items()}
        marks = torch.zeros(1, DATA.n_items, dtype=torch.bool).index_fill(1, liked, True)
        point, users = FoldIn(recommender.at, DATA)(marks)
        scores = point(Batch.unlabelled(users)).scores[0]
        others = [each for each in range(DATA.n_items) if each not in liked]
        average, _ = FoldIn(recommender.at, DATA)(torch.zeros_like(marks))  # somebody who likes nothing
        mean = average(Batch.unlabelled(users)).scores[0]
        assert scores[liked].mean() - scores[others].mean() > mean[liked].mean() - mean[others].mean()
        for key, each in recommender.model.state_dict().items():
            assert torch.equal(each, before[key])

    def test_a_row_is_the_minimum_of_what_is_said(self) -> None:
        recommender = asked("mf")
        fold = FoldIn(recommender.at, DATA)
        marks = torch.zeros(2, DATA.n_items, dtype=torch.bool)
        marks[0, [1, 5]], marks[1, [7]] = True, True
        point, users = fold(marks)
        items: Tensor = recommender.model.item.weight  # type: ignore[union-attr,assignment]
        vectors = point.activations(["dots.user.shift"], Batch.unlabelled(users))["dots.user.shift"]
        trained = recommender.model.user.weight  # type: ignore[union-attr]
        for vector, row in zip(vectors, marks, strict=True):
            x = vector.clone().requires_grad_()
            scores = items @ x
            margins = scores[row][:, None] - scores[~row]
            value = 20 * torch.nn.functional.softplus(-margins).mean(1).sum()
            value = value + 0.5 * ((x - trained.mean(0)).square() / trained.var(0)).sum()  # type: ignore[operator]
            (slope,) = torch.autograd.grad(value, x)
            assert slope.abs().max() < 0.05

    def test_a_model_that_cannot_says_so_in_a_line(self) -> None:
        with pytest.raises(RrecError, match="model 'deepfm' cannot take a new user"):
            asked("deepfm").new(torch.tensor([1]), K)


def test_the_deviation_of_a_distance_is_that_of_draws() -> None:
    generator = torch.Generator().manual_seed(0)
    users, items = (
        Gaussian(torch.randn(n, 4, generator=generator), torch.rand(n, 4, generator=generator)) for n in (2, 3)
    )
    found = distance_deviation(users, items, torch.tensor([[0, 2], [1, 1]]))
    for row, user in enumerate(range(2)):
        for column, item in enumerate([[0, 2], [1, 1]][row]):
            one, other = (
                each.mean[at] + each.covariance[at].sqrt() * torch.randn(200_000, 4, generator=generator)
                for each, at in ((users, user), (items, item))
            )
            drawn = (one - other).square().sum(1).std()
            assert found[row, column] == pytest.approx(drawn.item(), rel=0.02)


@pytest.mark.parametrize("name", ["stosa", "multi_intent_gaussian"])
def test_models_of_gaussians_say_how_far_each_score_is_in_doubt(name: str) -> None:
    recommender = asked(name)
    found = recommender.of(torch.tensor([0, 1]), K)
    assert found.deviation is not None
    assert found.deviation.shape == (2, K)
    assert bool((found.deviation > 0).all())
    assert asked("mf").of(torch.tensor([0]), K).deviation is None


class TestNames:
    def test_ids_and_unique_titles_are_understood(self) -> None:
        table = DATA.item_table
        assert table is not None
        titles = [f"Film {each}" if each else "The Unique" for each in range(DATA.n_items)]
        names = Names(replace(DATA, item_table=table.assign(title=titles)))
        assert names.items(["i3", "the unique", "FILM 7"]).tolist() == [3, 0, 7]
        assert names.users("u2").tolist() == [2]
        assert names.item(0) == "The Unique [i0]"

    @pytest.mark.parametrize(
        ("columns", "named"),
        [
            (["brand_name", "title"], "title"),
            (["brand_name", "movie_title"], "brand_name"),
            (["words", "movieTitle"], "movieTitle"),
            (["words", "Book-Title"], "Book-Title"),
            (["words", "movie title"], "movie title"),
            (["username", "subtitle"], None),
        ],
    )
    def test_titles_are_in_the_column_that_says_so(self, columns: list[str], named: str | None) -> None:
        table = pd.DataFrame({name: [f"{name} {each}" for each in range(DATA.n_items)] for name in columns})
        titles = Names(replace(DATA, item_table=table)).titles
        assert titles == (None if named is None else table[named].tolist())

    def test_what_is_not_there_is_named_with_its_near_misses(self) -> None:
        names = Names(DATA)
        with pytest.raises(RrecError, match=r"dataset 'tiny' has no user 'u111'; near: 'u11', .*\(of 12 users\)"):
            names.users("u111")
        with pytest.raises(RrecError, match="has no item 'The red rad'; near: 'The red red'"):
            names.items("The red rad")

    def test_a_title_of_several_items_asks_for_an_id(self) -> None:
        table = DATA.item_table
        assert table is not None
        names = Names(replace(DATA, item_table=table.assign(title="Same")))
        with pytest.raises(RrecError, match=r"20 items have the title 'same': name one by its id \(i0, i1"):
            names.items("same")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("recommend")
    small = ["dataset=synthetic", "dataset.n_users=80", "dataset.n_items=60", "epochs=2", f"data_dir={folder}/cache"]
    for name in ("mf", "multi_intent_gaussian"):
        assert launch.launch("train", [*small, f"model={name}", f"hydra.run.dir={folder}/{name}"]) == 0
    return folder


def recommend(runs: Path, name: str, *words: str) -> int:
    return launch.launch("recommend", [f"ckpt={runs / name}", f"data_dir={runs}/cache", *words])


class TestCommand:
    def test_json_is_all_that_stands_on_standard_output(self, runs: Path, capfd: pytest.CaptureFixture[str]) -> None:
        capfd.readouterr()
        assert recommend(runs, "multi_intent_gaussian", "user=[u1,u3]", "k=4", "format=json") == 0
        told = json.loads(capfd.readouterr().out)
        assert [each["user"] for each in told["lists"]] == ["u1", "u3"]
        for each in told["lists"]:
            assert [item["rank"] for item in each["items"]] == [1, 2, 3, 4]
            assert all({"item", "title", "score", "uncertainty"} <= item.keys() for item in each["items"])
            assert not {item["item"] for item in each["items"]} & {item["item"] for item in each["history"]}

    def test_a_table_shows_the_history_above_the_list(self, runs: Path, capfd: pytest.CaptureFixture[str]) -> None:
        capfd.readouterr()
        assert recommend(runs, "mf", "user=u1", "k=2") == 0
        out = capfd.readouterr().out
        assert out.index("latest of user u1") < out.index("recommended for user u1")

    def test_nothing_is_called_latest_where_the_data_have_no_order(
        self, tmp_path: Path, capfd: pytest.CaptureFixture[str]
    ) -> None:
        rows = [f"u{user},i{(user * 7 + step) % 40}" for user in range(30) for step in range(12)]
        (tmp_path / "likes.csv").write_text("\n".join(["user,item", *rows]))
        columns = ["user=user", "item=item", "rating=null", "time=null", f"path={tmp_path}/likes.csv"]
        words = ["dataset=table", *(f"dataset.{each}" for each in columns), "epochs=1", f"data_dir={tmp_path}/cache"]
        assert launch.launch("train", [*words, f"hydra.run.dir={tmp_path}/mf"]) == 0
        capfd.readouterr()
        assert launch.launch("recommend", [f"ckpt={tmp_path}/mf", f"data_dir={tmp_path}/cache", "user=u1", "k=2"]) == 0
        out = capfd.readouterr().out
        assert "some of user u1" in out
        assert "latest" not in out

    @pytest.mark.parametrize("suffix", ["csv", "parquet"])
    def test_everybodys_lists_go_to_a_file(self, runs: Path, tmp_path: Path, suffix: str) -> None:
        path = tmp_path / f"lists.{suffix}"
        assert recommend(runs, "mf", "all=true", "k=3", f"out={path}") == 0
        frame = pd.read_csv(path) if suffix == "csv" else pd.read_parquet(path)
        assert frame.columns.tolist() == ["user", "rank", "item", "title", "score"]
        assert len(frame) == 3 * frame["user"].nunique() == 3 * 80
        assert [each.name for each in tmp_path.iterdir()] == [path.name]

    def test_a_new_user_and_a_csv(self, runs: Path, capfd: pytest.CaptureFixture[str]) -> None:
        capfd.readouterr()
        assert recommend(runs, "mf", "liked=[i1,i2]", "k=3", "format=csv") == 0
        lines = capfd.readouterr().out.splitlines()
        assert len(lines) == 4
        assert lines[0] == "user,rank,item,title,score"

    @pytest.mark.parametrize(
        ("words", "told"),
        [
            ([], "needs one of user="),
            (["user=u1", "liked=[i1]"], "user and liked given"),
            (["user=u1", "k=0"], "k is at least 1"),
            (["user=[]"], "user=[]: name at least one user"),
            (["user=[]", "format=csv"], "user=[]: name at least one user"),
            (["user=u1", "format=xml"], "unknown format 'xml'"),
            (["all=true"], "all=true writes a file"),
            (["all=true", "out=lists.txt"], "ends with .csv or .parquet"),
            (["user=nobody"], "has no user 'nobody'"),
            (["user=u1", "part=train"], "unknown part 'train'"),
        ],
    )
    def test_a_mistake_is_one_line(
        self, runs: Path, capfd: pytest.CaptureFixture[str], words: list[str], told: str
    ) -> None:
        assert recommend(runs, "mf", *words) == 1
        out, err = capfd.readouterr()
        assert told in err
        assert err.count("\n") == 1
        assert not out

    def test_it_leaves_no_run_directory_and_no_sweep(
        self, runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.chdir(tmp_path)
        assert recommend(runs, "mf", "user=u1") == 0
        assert not list(tmp_path.iterdir())
        assert launch.launch("recommend", ["ckpt=x", "user=1"], multirun=True) == 2
        assert "drop -m" in capfd.readouterr().err


def test_a_folded_user_agrees_with_the_trained_one_more_than_with_others() -> None:
    data = make_data(n_users=60, n_items=40, train=12)
    model = build("mf", data, dim=8)
    optimiser = torch.optim.Adam(model.parameters(), lr=0.05)
    marks = torch.zeros(60, 40, dtype=torch.bool)
    marks[data.train.users, data.train.items] = True
    for _ in range(60):
        scores = model(Batch.unlabelled(torch.arange(60)), None).scores
        loss = -(scores.log_softmax(1)[marks]).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    recommender = Recommender(Shifted(model.eval().requires_grad_(False)), data, part="valid")
    own = recommender.of(torch.arange(60), 5).items
    point, users = FoldIn(recommender.at, data)(marks)
    folded = point(Batch.unlabelled(users)).scores.masked_fill(marks, -torch.inf).topk(5).indices

    def overlap(one: Tensor, two: Tensor) -> float:
        return (one[:, :, None] == two[:, None]).any(2).double().mean().item()

    assert overlap(folded, own) > 2 * overlap(folded, own.roll(1, 0))
