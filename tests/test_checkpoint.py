"""Checkpoints and files: whole or absent, and nothing in them is trusted."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from conftest import DATA, RECIPE, build, configured
from safetensors.torch import load as from_bytes
from safetensors.torch import save as to_bytes
from torch import Tensor

from robustbench_rec import checkpoint, files, prepare, savepoint
from robustbench_rec.data import Data
from robustbench_rec.errors import RrecError
from robustbench_rec.model import RecModel

CPU = torch.device("cpu")


@pytest.fixture
def saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run directory with a checkpoint of `mf`; loading finds the tiny data whatever the recipe says."""
    monkeypatch.setattr(checkpoint, "load_data", lambda recipe, data_dir: DATA)
    checkpoint.save(tmp_path, build("mf"), configured("model", "mf"), RECIPE, DATA)
    return tmp_path


def load(path: Path | str) -> checkpoint.Loaded:
    return checkpoint.load(str(path), data_dir=None, device=CPU)


def refused(path: Path | str, message: str) -> None:
    with pytest.raises(RrecError, match=message) as caught:
        load(path)
    assert "\n" not in str(caught.value)


def rewrite(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    card = json.loads((folder / "model.json").read_text())
    change(card)
    (folder / "model.json").write_text(json.dumps(card))


def retensor(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    """Other tensors, with the checksum to match."""
    from hashlib import sha256

    tensors = from_bytes((folder / "model.safetensors").read_bytes())
    change(tensors)
    content = to_bytes(tensors)
    (folder / "model.safetensors").write_bytes(content)
    rewrite(folder, lambda card: card.update(sha256=sha256(content).hexdigest()))


class TestLoading:
    def test_the_folder_and_the_file_name_the_same_checkpoint(self, saved: Path) -> None:
        for path in (saved, saved / "model.safetensors", f"{saved}/"):
            loaded = load(path)
            assert loaded.config == configured("model", "mf")
            assert loaded.recipe == RECIPE
            assert loaded.data.fingerprint == DATA.fingerprint

    def test_nothing_but_tensors_and_json_is_written(self, saved: Path) -> None:
        assert {each.name for each in saved.iterdir()} == {"model.safetensors", "model.json"}
        json.loads((saved / "model.json").read_text())
        from_bytes((saved / "model.safetensors").read_bytes())

    def test_a_path_without_a_checkpoint(self, tmp_path: Path) -> None:
        refused(tmp_path, "no model.safetensors there")
        refused(tmp_path / "nowhere", "no model.safetensors there")
        refused("", "no model.safetensors there")

    def test_tensors_without_their_card(self, saved: Path) -> None:
        (saved / "model.json").unlink()
        refused(saved, "model.json does not exist")

    @pytest.mark.parametrize("keep", [0, 7, 100, -1])
    def test_truncated_tensors(self, saved: Path, keep: int) -> None:
        path = saved / "model.safetensors"
        path.write_bytes(path.read_bytes()[:keep])
        refused(saved, "truncated or is not the file that model.json describes")

    def test_one_flipped_bit(self, saved: Path) -> None:
        path = saved / "model.safetensors"
        content = bytearray(path.read_bytes())
        content[-3] ^= 1
        path.write_bytes(content)
        refused(saved, "truncated or is not the file")

    def test_another_format_version(self, saved: Path) -> None:
        for version in (0, 2, "1", None):
            rewrite(saved, partial(dict.update, format=version))
            refused(saved, "this version reads format 1")

    def test_a_tensor_of_another_shape(self, saved: Path) -> None:
        retensor(saved, lambda tensors: tensors.update({"item.weight": torch.zeros(3, 64)}))
        refused(saved, r"tensor 'item.weight' has shape \(3, 64\), the model of model.json needs \(20, 64\)")

    @pytest.mark.parametrize("kind", [torch.int8, torch.float64, torch.bool])
    def test_a_tensor_of_another_kind(self, saved: Path, kind: torch.dtype) -> None:
        retensor(saved, lambda tensors: tensors.update({"item.weight": tensors["item.weight"].to(kind)}))
        name = str(kind).removeprefix("torch.")
        refused(saved, f"tensor 'item.weight' is of {name}, the model of model.json needs float32")

    def test_an_extra_and_a_missing_tensor(self, saved: Path) -> None:
        retensor(saved, lambda tensors: tensors.update(extra=torch.zeros(1)))
        refused(saved, "has an unknown tensor 'extra'")
        retensor(saved, lambda tensors: (tensors.pop("extra"), tensors.pop("user.weight")))
        refused(saved, "lacks tensor 'user.weight'")

    def test_tensors_that_are_no_tensors_although_the_checksum_matches(self, saved: Path) -> None:
        from hashlib import sha256

        content = b"\xff" * 200
        (saved / "model.safetensors").write_bytes(content)
        rewrite(saved, lambda card: card.update(sha256=sha256(content).hexdigest()))
        refused(saved, "not a checkpoint of robustbench_rec")

    def test_a_run_that_was_interrupted(self, saved: Path) -> None:
        (saved / "model.safetensors").unlink()
        refused(saved, "no model.safetensors there; name the directory of a finished run of rrec train")
        (saved / "resume").mkdir()
        refused(saved, f"no model.safetensors there; continue it first, with resume={saved}")

    def test_data_that_were_moved_since(self, saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def gone(recipe: Any, data_dir: Any) -> None:
            raise RrecError("ratings.csv does not exist")

        monkeypatch.setattr(checkpoint, "load_data", gone)
        refused(
            saved, r"ratings.csv does not exist; .* if the data were moved, write where they are into its model.json"
        )

    def test_data_that_has_changed_since(self, saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        other = replace(DATA, fingerprint="f" * 64)
        monkeypatch.setattr(checkpoint, "load_data", lambda recipe, data_dir: other)
        refused(saved, "trained on data 000000000000, but dataset 'tiny' now is ffffffffffff")

    @pytest.mark.parametrize("text", ["", "{", "[]", "null", '"x"', "\x00\x01", "[" * 100_000])
    def test_a_card_that_is_no_json_object(self, saved: Path, text: str) -> None:
        (saved / "model.json").write_text(text)
        refused(saved, "model.json")

    def test_a_card_in_another_encoding(self, saved: Path) -> None:
        (saved / "model.json").write_bytes(b"\xff\xfe{}")
        refused(saved, "model.json cannot be read")

    @pytest.mark.parametrize(
        "change",
        [
            {"model": None},
            {"model": "mf"},
            {"model": {"dim": 64}},
            {"model": {"name": "no_such_model", "dim": 64}},
            {"model": {"name": "mf"}},
            {"model": {"name": "mf", "dim": "sixty-four", "l2": 0}},
            {"model": {"name": "mf", "dim": [64], "l2": 0}},
            {"model": {"name": "mf", "dim": 64, "l2": 0, "evil": 1}},
            {"model": {"name": "mf", "dim": -64, "l2": 0}},
            {"model": {"name": "os.system", "dim": 64, "l2": 0}},
            {"model": {"name": "../../etc/passwd"}},
            {"model": {"name": "mf", "_target_": "os.system", "dim": 64, "l2": 0}},
            {"fingerprint": None},
            {"sha256": None},
            {"recipe": None},
            {"recipe": "everything"},
            {"recipe": {"dataset": {"name": "tiny"}}},
            {"recipe": {"dataset": "tiny", "split": {}, "prepare": {}}},
            {"recipe": {"dataset": {"name": "tiny"}, "split": {"name": "ratio"}, "prepare": {"unheard": 1}}},
        ],
        ids=str,
    )
    def test_a_card_with_something_else_in_it(self, saved: Path, change: dict[str, Any]) -> None:
        rewrite(saved, lambda card: card.update(change))
        refused(saved, ".")

    @pytest.mark.parametrize("key", ["format", "model", "recipe", "fingerprint", "sha256"])
    def test_a_card_that_lacks_something(self, saved: Path, key: str) -> None:
        rewrite(saved, lambda card: card.pop(key))
        refused(saved, "ckpt=")

    def test_a_model_that_needs_what_the_data_lacks(self, saved: Path) -> None:
        with pytest.raises(
            RrecError, match=r"model 'kgat' needs kg, which dataset 'tiny' does not have \(order, rating, text, time\)"
        ):
            checkpoint.build(configured("model", "kgat"), replace(DATA, kg=None))


class TestRealRecipe:
    """Through the real data layer: what the recipe of a card names is untrusted too."""

    SYNTHETIC: ClassVar[dict[str, Any]] = {
        "name": "synthetic",
        "n_users": 30,
        "n_items": 20,
        "events_per_user": 8.0,
        "n_intents": 2,
        "n_entities": 6,
        "n_relations": 2,
        "kg_share": 0.8,
        "drift": 0.5,
        "label_noise": 0.0,
        "seed": 0,
    }
    SPLIT: ClassVar[dict[str, Any]] = {"name": "ratio", "valid": 0.1, "test": 0.1, "order": "random", "seed": 0}

    def saved(self, out: Path) -> tuple[RecModel, Data]:
        recipe = replace(RECIPE, dataset=self.SYNTHETIC, split=self.SPLIT)
        data = prepare.load(recipe, None)
        model = build("mf", data)
        checkpoint.save(out, model, configured("model", "mf"), recipe, data)
        return model, data

    def test_model_and_data_come_back(self, tmp_path: Path) -> None:
        model, data = self.saved(tmp_path)
        loaded = load(tmp_path)
        assert loaded.data.fingerprint == data.fingerprint
        assert torch.equal(loaded.data.train.items, data.train.items)
        assert all(torch.equal(a, b) for a, b in zip(loaded.model.parameters(), model.parameters(), strict=True))

    @pytest.mark.parametrize(
        ("path", "value"),
        [
            (("dataset", "name"), "no_such_dataset"),
            (("dataset", "name"), "os"),
            (("dataset", "name"), None),
            (("dataset", "seed"), "zero"),
            (("dataset", "n_users"), -5),
            (("dataset", "seed"), 1),
            (("dataset", "n_users"), 31),
            (("split", "name"), "no_such_split"),
            (("dataset", "name"), "${oc.env:HOME}"),
            (("split", "valid"), 2.0),
            (("prepare", "defects"), "ignore"),
        ],
        ids=str,
    )
    def test_a_recipe_that_was_tampered_with_is_one_line(
        self, tmp_path: Path, path: tuple[str, str], value: Any
    ) -> None:
        self.saved(tmp_path)
        rewrite(tmp_path, lambda card: card["recipe"][path[0]].update({path[1]: value}))
        refused(tmp_path, ".")

    @pytest.mark.parametrize(("key", "value"), [("user_core", "many"), ("threshold", "high"), ("defects", 3)])
    def test_so_is_a_wrong_type_in_it(self, tmp_path: Path, key: str, value: Any) -> None:
        self.saved(tmp_path)
        rewrite(tmp_path, lambda card: card["recipe"]["prepare"].update({key: value}))
        refused(tmp_path, ".")


class TestWriting:
    def full(self, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
        def no_space(*_: object, **__: object) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        if call == "write":
            real = open

            def small(path: Any, mode: str = "r", *rest: Any, **more: Any) -> Any:
                file = real(path, mode, *rest, **more)
                if "b" not in mode or "r" in mode:
                    return file

                class Full:
                    def __enter__(self) -> "Full":
                        return self

                    def __exit__(self, *_: object) -> None:
                        file.close()

                    def write(self, content: bytes) -> int:
                        file.write(content[: len(content) // 2])
                        file.flush()
                        return no_space()  # type: ignore[return-value, func-returns-value]

                    flush, fileno = file.flush, file.fileno

                return Full()

            monkeypatch.setattr("builtins.open", small)
        else:
            monkeypatch.setattr(os, call, no_space)

    @pytest.mark.parametrize("call", ["write", "fsync", "replace"])
    def test_a_full_disk_leaves_the_old_checkpoint_and_no_drafts(
        self, saved: Path, monkeypatch: pytest.MonkeyPatch, call: str
    ) -> None:
        before = {each.name: each.read_bytes() for each in saved.iterdir()}
        with monkeypatch.context() as patch:
            self.full(patch, call)
            with pytest.raises(RrecError, match=r"cannot write .*model\.safetensors: No space left on device"):
                checkpoint.save(saved, build("mf", seed=5), configured("model", "mf"), RECIPE, DATA)
        assert {each.name: each.read_bytes() for each in saved.iterdir()} == before
        load(saved)

    def test_where_nothing_can_be_removed_either_it_is_one_error(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def read_only(self: Path, missing_ok: bool = False) -> None:
            raise OSError(errno.EROFS, "Read-only file system", str(self))

        monkeypatch.setattr(Path, "unlink", read_only)
        self.full(monkeypatch, "write")
        with pytest.raises(RrecError, match="No space left on device"):
            files.write_text(tmp_path / "report.html", "x" * 99)

    def test_a_full_disk_between_tensors_and_card_is_noticed(
        self, saved: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def no_space(*_: object) -> None:
            raise RrecError("cannot write model.json")

        monkeypatch.setattr(checkpoint, "write_json", no_space)
        with pytest.raises(RrecError):
            checkpoint.save(saved, build("mf", seed=5), configured("model", "mf"), RECIPE, DATA)
        refused(saved, "not the file that model.json describes")

    def test_a_folder_that_is_gone_or_not_ours_is_one_line(self, tmp_path: Path) -> None:
        with pytest.raises(RrecError, match="cannot write"):
            files.write_text(tmp_path / "nowhere" / "x", "content")
        (tmp_path / "taken").mkdir()
        with pytest.raises(RrecError, match="cannot write"):
            files.write_text(tmp_path / "taken", "content")
        assert [each.name for each in tmp_path.iterdir()] == ["taken"]

    def test_json_has_no_nan(self, tmp_path: Path) -> None:
        path = tmp_path / "metrics.json"
        files.write_json(path, {"a": float("nan"), "b": {"c": [1.0, float("-inf")]}, "d": None})
        assert files.read_json(path, "metrics") == {"a": None, "b": {"c": [1.0, None]}, "d": None}
        assert "NaN" not in path.read_text()

    def test_a_writer_killed_in_the_middle_leaves_the_old_file_or_the_new(self, tmp_path: Path) -> None:
        code = (
            "import sys\nfrom pathlib import Path\nfrom robustbench_rec.files import write_bytes\n"
            "path, n = Path(sys.argv[1]), 0\n"
            "while True:\n    n += 1\n    write_bytes(path, n.to_bytes(4, 'big') * 500_000)\n"
        )
        path = tmp_path / "state"
        for wait in (0.0, 0.003, 0.007, 0.013):
            process = subprocess.Popen([sys.executable, "-c", code, str(path)])
            while not path.exists():
                time.sleep(0.001)
            time.sleep(wait)
            process.send_signal(signal.SIGKILL)
            process.wait()
            content = path.read_bytes()
            assert content == content[:4] * 500_000
            path.unlink()


class TestState:
    def test_tensors_and_notes_come_back(self, tmp_path: Path) -> None:
        tensors = {
            "a/b": torch.randn(3),
            "step": torch.tensor(4.0),
            "empty": torch.zeros(0),
            "view": torch.eye(4).T[:2],
        }
        savepoint.save_state(tmp_path / "state", tensors, {"history": "[1, 2]", "ü": "ß"})
        found, notes = savepoint.load_state(tmp_path / "state", CPU)
        assert notes == {"history": "[1, 2]", "ü": "ß"}
        assert found.keys() == tensors.keys()
        assert all(torch.equal(found[name], each) for name, each in tensors.items())

    def test_tensors_that_share_memory_are_stored_apart(self, tmp_path: Path) -> None:
        x = torch.randn(4)
        savepoint.save_state(tmp_path / "state", {"model/x": x, "best/x": x}, {})
        found, _ = savepoint.load_state(tmp_path / "state", CPU)
        assert torch.equal(found["model/x"], found["best/x"])

    @pytest.mark.parametrize("content", [b"", b"\x00" * 100, b"{}"])
    def test_anything_else_says_what_to_do(self, tmp_path: Path, content: bytes) -> None:
        (tmp_path / "state").write_bytes(content)
        with pytest.raises(RrecError, match="cannot be read .*remove it to start the run again"):
            savepoint.load_state(tmp_path / "state", CPU)
