"""Teachers, and how far a student agrees with one."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import DATA, batch_of, build, compose, gradients
from lessons import VECTORS, distil, fixed, lists_of, teacher_of, value_of
from torch import Tensor

from robustbench_rec import composing
from robustbench_rec.errors import RrecError
from robustbench_rec.metrics.agreement import kendall, overlap
from robustbench_rec.objective import start_epoch
from robustbench_rec.shifted import Shifted
from robustbench_rec.tasks import distill as task
from robustbench_rec.teacher import Average, Ensemble, Kept, Matrix, Taught, Teacher


class Silent(Teacher):
    """A teacher that says no more than what one number of everyone is worth: the size of its vectors."""

    def __init__(self, asked: Teacher) -> None:
        self.of = asked

    def scores(self, users: Tensor, items: Tensor | None) -> Tensor:
        raise AssertionError("the scores are kept")

    def users(self, users: Tensor) -> Tensor:
        assert len(users) == 1, "the vectors are kept"
        return self.of.users(users)

    def items(self, items: Tensor) -> Tensor:
        assert len(items) == 1, "the vectors are kept"
        return self.of.items(items)


class TestTeachers:
    def test_an_ensemble_is_the_mean_of_scores_that_are_standardised_over_the_catalogue(self) -> None:
        members = [teacher_of(), teacher_of("lightgcn")]
        users, items = torch.arange(DATA.n_users), torch.randint(DATA.n_items, (DATA.n_users, 4))
        whole = torch.stack(
            [(s - s.mean(1, keepdim=True)) / s.std(1, keepdim=True) for s in (m.scores(users, None) for m in members)]
        ).mean(0)
        ensemble = Ensemble(members, DATA)
        torch.testing.assert_close(ensemble.scores(users, None), whole)
        torch.testing.assert_close(ensemble.scores(users, items), whole.gather(1, items))

    def test_ratings_of_an_ensemble_are_averaged_as_they_are(self) -> None:
        members, users = [teacher_of("biased_mf"), teacher_of("biased_mf")], torch.arange(DATA.n_users)
        with torch.no_grad():
            members[1].at.model.get_parameter("user_bias").add_(1.0)
        ensemble = Ensemble(members, DATA)
        assert ensemble.loss == "mse"
        torch.testing.assert_close(ensemble.scores(users, None), members[0].scores(users, None) + 0.5)
        assert Ensemble([members[0], teacher_of()], DATA).loss is None

    @pytest.mark.parametrize("name", VECTORS)
    def test_vectors_of_an_ensemble_are_those_of_its_members_side_by_side(self, name: str) -> None:
        members = [teacher_of(), teacher_of("stosa")]
        ensemble, index = Ensemble(members, DATA), torch.tensor([3, 1])
        for method in ("users", "items"):
            one, two = (getattr(each, method)(index) for each in members)
            both = getattr(ensemble, method)(index)
            torch.testing.assert_close(both[:, : one.shape[1]], one / one.norm(dim=1, keepdim=True))
            torch.testing.assert_close(both[:, one.shape[1] :], two / two.norm(dim=1, keepdim=True))
        student = build("mf")
        found = gradients(student, value_of(distil(name, teacher=ensemble, student=student), student, batch_of()))
        assert any(each.any() for each in found.values())

    def test_an_ensemble_with_a_member_that_has_no_vectors_names_it(self) -> None:
        with pytest.raises(RrecError, match="'pop' has no vectors"):
            distil("contrastive", teacher=Ensemble([teacher_of(), teacher_of("pop")], DATA))

    def test_vectors_of_fields_are_what_a_factorisation_machine_takes_products_of(self) -> None:
        model = build("deepfm").eval()
        with torch.no_grad():
            model.get_parameter("out.weight").zero_()
        teacher = Taught.of(model, DATA)
        users, items = torch.arange(DATA.n_users), torch.arange(DATA.n_items)
        scores, products = teacher.scores(users, None), teacher.users(users) @ teacher.items(items).T
        left = scores - products
        torch.testing.assert_close(left, left[:, :1] + left[:1] - left[0, 0], rtol=1e-4, atol=1e-5)

    def test_the_average_follows_the_student_and_speaks_for_an_epoch(self) -> None:
        student, batch = build("mf"), batch_of()
        teacher = Average(student, DATA, 0.9, student.loss)
        built = distil(teacher=teacher, student=student)
        start = student.get_parameter("user.weight").detach().clone()
        with torch.no_grad():
            student.get_parameter("user.weight").add_(1.0)
        before = lists_of(built).taught
        built(Shifted(student), batch)
        torch.testing.assert_close(teacher.model.get_parameter("user.weight"), start + 0.1)
        assert torch.equal(teacher.at.model.get_parameter("user.weight"), start)
        assert torch.equal(before, lists_of(built).taught)
        start_epoch(built, 1, torch.Generator().manual_seed(0))
        torch.testing.assert_close(teacher.at.model.get_parameter("user.weight"), start + 0.1)
        assert not torch.equal(before[:, :6], lists_of(built).taught[:, :6])
        assert any(key.startswith("average.") for key in built.state_dict())
        assert not any(each.requires_grad for each in built.parameters())

    @pytest.mark.parametrize(
        ("words", "said"), [((), "bpr"), (("loss=mse", "negatives=0"), "mse"), (("loss=bce",), "bce")]
    )
    def test_the_average_learnt_by_the_loss_of_the_student(self, words: tuple[str, ...], said: str) -> None:
        cfg = composing.typed(compose("distill", "dataset=synthetic", "model=mf", "teacher=ema", *words), "distill")
        assert task.teacher_of(cfg, build("mf"), DATA).loss == said

    def test_the_average_knows_what_the_student_is_fitted_to(self) -> None:
        student = build("biased_mf")
        teacher = Average(student, DATA, 0.9, student.loss)
        student.fit(DATA)
        assert student.get_buffer("mean") != 0
        assert torch.equal(teacher.at.model.get_buffer("mean"), student.get_buffer("mean"))

    def matrix(self, folder: Path, scores: Tensor, users: list[str], items: list[str], end: str = "\n") -> Path:
        np.save(folder / "scores.npy", scores.numpy())
        (folder / "scores.users.txt").write_text("\n".join(users) + end)
        (folder / "scores.items.txt").write_text("\n".join(items) + end)
        return folder / "scores.npy"

    @pytest.mark.parametrize("end", ["\n", ""])
    def test_a_matrix_is_read_by_ids_whatever_their_order(self, tmp_path: Path, end: str) -> None:
        scores = torch.randn(DATA.n_users, DATA.n_items)
        rows, columns = torch.randperm(DATA.n_users), torch.randperm(DATA.n_items)
        path = self.matrix(
            tmp_path,
            scores[rows][:, columns],
            [DATA.user_ids[each] for each in rows],
            [DATA.item_ids[each] for each in columns],
            end,
        )
        teacher, users = Matrix.read(path, DATA), torch.arange(DATA.n_users)
        assert isinstance(teacher.matrix, np.memmap)
        assert torch.equal(teacher.scores(users, None), scores)
        assert torch.equal(teacher.scores(users[[2]], torch.tensor([[4, 1]])), scores[[2]][:, [4, 1]])

    def test_a_matrix_that_lacks_somebody_or_is_a_pickle_is_refused(self, tmp_path: Path) -> None:
        path = self.matrix(tmp_path, torch.randn(DATA.n_users - 1, DATA.n_items), DATA.user_ids[1:], DATA.item_ids)
        with pytest.raises(RrecError, match="no scores for 1 of 12 users, e.g. 'u0'"):
            Matrix.read(path, DATA)
        np.save(path, np.array([{"a": 1}, None], dtype=object), allow_pickle=True)
        with pytest.raises(RrecError, match="cannot be read as an array of numbers"):
            Matrix.read(path, DATA)
        np.save(path, np.zeros((3, 3), dtype=np.int64))
        with pytest.raises(RrecError, match="a matrix of floating point scores"):
            Matrix.read(path, DATA)

    @pytest.mark.parametrize("model", ["mf", "sasrec"])
    def test_scores_and_vectors_are_computed_once_and_mapped(self, model: str, tmp_path: Path) -> None:
        data, teacher, users = replace(DATA, place=tmp_path), teacher_of(model), torch.arange(DATA.n_users)
        found, picked, folder = Kept(teacher, data, "key"), torch.tensor([3, 0]), tmp_path / "teachers"
        assert torch.equal(found.scores(users, None), teacher.scores(users, None))
        assert [each.name for each in folder.iterdir()] == ["key.npy"]
        torch.testing.assert_close(found.users(picked), teacher.users(picked))
        torch.testing.assert_close(found.items(picked), teacher.items(picked))
        assert {each.name for each in folder.iterdir()} == {"key.npy", "key.users.npy", "key.items.npy"}
        again = Kept(Silent(teacher), data, "key")
        assert torch.equal(again.scores(users, None), teacher.scores(users, None))
        assert torch.equal(again.users(users), teacher.users(users))
        assert torch.equal(again.items(picked), found.items(picked))

    @pytest.mark.parametrize("name", VECTORS)
    def test_a_kept_teacher_teaches_vectors_as_the_one_itself(self, name: str, tmp_path: Path) -> None:
        data, teacher, student = replace(DATA, place=tmp_path), teacher_of(), build("mf", seed=1)
        found = []
        for each in (teacher, Kept(teacher, data, "key"), Kept(Silent(teacher), data, "key")):
            torch.manual_seed(0)
            found.append(value_of(distil(name, teacher=each, student=student), student, batch_of()).item())
        assert found[0] == found[1] == found[2]

    def test_what_has_no_vectors_keeps_none(self, tmp_path: Path) -> None:
        kept = Kept(fixed(torch.zeros(DATA.n_users, DATA.n_items)), replace(DATA, place=tmp_path), "key")
        with pytest.raises(RrecError, match="has no vectors of users and items"):
            kept.users(torch.tensor([0]))
        assert [each.name for each in (tmp_path / "teachers").iterdir()] == ["key.npy"]

    def test_what_does_not_fit_or_belong_is_refused(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        data, folder = replace(DATA, place=tmp_path), tmp_path / "teachers"
        kept = Kept(teacher_of(), data, "key")
        np.save(folder / "key.users.npy", np.zeros((DATA.n_users, 3), dtype=np.float32))
        with pytest.raises(RrecError, match=r"key.users.npy: \(12, 3\) users where \(12, \d+\) belong; remove it"):
            kept.users(torch.tensor([0]))
        monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 100}))
        with pytest.raises(RrecError, match=r"cache=true: scores of a teacher, 12 × 20 numbers, take .* GiB"):
            Kept(teacher_of(), data, "other")
        with pytest.raises(RrecError, match=r"cache=true: items of a teacher, 20 × \d+ numbers, take .* GiB"):
            kept.items(torch.tensor([0]))

    def test_a_kept_file_that_is_broken_or_cannot_be_written_is_one_line(self, tmp_path: Path) -> None:
        data, folder = replace(DATA, place=tmp_path), tmp_path / "teachers"
        folder.mkdir()
        (folder / "key.npy").write_bytes(b"broken")
        with pytest.raises(RrecError, match=r"^cache=true: .*key.npy cannot be read; remove it, and it is computed"):
            Kept(teacher_of(), data, "key")
        (tmp_path / "file").write_text("")
        with pytest.raises(RrecError, match=r"^cache=true: cannot write .*other.npy \(.*\); leave cache out, or name"):
            Kept(teacher_of(), replace(DATA, place=tmp_path / "file"), "other")

    @pytest.mark.parametrize("which", ["users", "items"])
    def test_a_matrix_whose_ids_were_put_right_is_computed_anew(self, which: str, tmp_path: Path) -> None:
        data, scores = replace(DATA, place=tmp_path), torch.randn(DATA.n_users, DATA.n_items)
        ids = {"users": DATA.user_ids, "items": DATA.item_ids}
        path = self.matrix(tmp_path, scores, **{**ids, which: ids[which][::-1]})
        words = ("dataset=synthetic", f"teacher='{path}'", "cache=true")
        cfg, users = composing.typed(compose("distill", *words), "distill"), torch.arange(DATA.n_users)
        wrong = task.teacher_of(cfg, build("mf"), data).scores(users, None)
        assert torch.equal(wrong, scores.flip(0 if which == "users" else 1))
        self.matrix(tmp_path, scores, **ids)
        assert torch.equal(task.teacher_of(cfg, build("mf"), data).scores(users, None), scores)

    def test_what_moves_is_not_cached(self) -> None:
        with pytest.raises(RrecError, match="teacher=ema says something else in every epoch"):
            Kept(Average(build("mf"), DATA, 0.9, "bpr"), DATA, "key")


class TestAgreement:
    def test_overlap_counts_what_both_lists_begin_with(self) -> None:
        one, two = torch.tensor([[5.0, 4, 3, 2, 1]]), torch.tensor([[5.0, 1, 4, 2, 3]])
        assert overlap(one, two, 2).item() == 0.5
        assert overlap(one, one, 3).item() == 1

    def test_kendall_does_not_count_what_is_not_there(self) -> None:
        one, two = torch.randn(4, 9), torch.randn(4, 9)
        holed = [each.index_fill(1, torch.tensor([2, 5]), torch.nan) for each in (one, two)]
        there = torch.tensor([0, 1, 3, 4, 6, 7, 8])
        torch.testing.assert_close(kendall(*holed), kendall(one[:, there], two[:, there]))

    def test_kendall_is_that_of_scipy(self) -> None:
        from scipy.stats import kendalltau

        one, two = torch.randn(6, 9), torch.randint(4, (6, 9)).float()
        expected = [kendalltau(a, b).statistic for a, b in zip(one.numpy(), two.numpy(), strict=True)]
        torch.testing.assert_close(kendall(one, two), torch.tensor(expected, dtype=torch.double))
