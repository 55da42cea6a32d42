"""Side tables as tensors: what becomes a number, a category, a list of categories or nothing; words of item texts."""

from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import interactions, make_data
from torch import Tensor

from robustbench_rec.data import Data
from robustbench_rec.errors import RrecError
from robustbench_rec.features import Features, features
from robustbench_rec.vocabulary import UNKNOWN, item_vocabulary

ITEMS = 8


def data_of(table: dict[str, Any] | pd.DataFrame | None, *, trained: int = ITEMS) -> Data:
    """Eight items with this table, the first `trained` of them in training."""
    frame = None if table is None else pd.DataFrame(table)
    train = interactions([0] * trained, list(range(trained)))
    return replace(make_data(n_items=ITEMS, train=3, test=1), train=train, item_table=frame)


def found(table: dict[str, Any] | pd.DataFrame | None, columns: list[str] | None = None, **about: Any) -> Features:
    return features(data_of(table, **about), "item", columns)


def same(one: Features, two: Features) -> bool:
    return one.names == two.names and all(torch.equal(a, b) for a, b in zip(one.codes, two.codes, strict=True))


class TestNumbers:
    def test_they_are_standardised_on_what_occurs_in_train(self) -> None:
        values = [1.0, 2.0, 3.0, 6.0, 900.0, -900.0, 5.0, 5.0]
        numbers = found({"price": values}, trained=4).numbers[:, 0].numpy()
        np.testing.assert_allclose(numbers, (np.array(values) - 3.0) / np.std(values[:4]), rtol=1e-6)

    def test_what_is_missing_or_infinite_is_the_mean_and_changes_nothing_else(self) -> None:
        numbers = found({"price": [1.0, np.nan, 3.0, np.inf, 1.0, 3.0, 1.0, 3.0]}).numbers[:, 0].tolist()
        assert numbers == pytest.approx([-1, 0, 1, 0, -1, 1, -1, 1])

    @pytest.mark.parametrize("dtype", ["int64", "Int64", "float32", "bool", "boolean"])
    def test_every_numeric_type_is_one(self, dtype: str) -> None:
        column = pd.Series([0, 1] * 4).astype(dtype)
        assert found({"flag": column}).numbers[:, 0].tolist() == pytest.approx([-1, 1] * 4)

    def test_one_that_is_constant_or_empty_in_train_is_left_out(self) -> None:
        table = {"same": [0.1] * 6 + [5.0, 7.0], "none": [np.nan] * 6 + [1.0, 2.0], "good": range(8)}
        assert found(table, trained=6).names == ("good",)
        with pytest.raises(RrecError, match="'same'.*one value only"):
            found(table, ["same"], trained=6)

    def test_a_text_that_is_asked_for_and_empty_in_train_is_refused(self) -> None:
        table = {"note": [None] * 6 + ["a", "a"], "good": range(8)}
        assert found(table, trained=6).names == ("good",)
        with pytest.raises(RrecError, match="'note'.*no value in training"):
            found(table, ["note"], trained=6)


class TestCategories:
    def test_equal_values_have_equal_codes_and_the_missing_have_0(self) -> None:
        column = ["a", "b", None, "a", "", "b", "a", " b"]
        result = found({"kind": column})
        (codes,) = result.codes
        assert codes.shape == (ITEMS, 1)
        assert codes[:, 0].tolist() == [1, 2, 0, 1, 0, 2, 1, 2]
        assert result.sizes == (3,)

    def test_a_value_that_train_does_not_have_is_unknown(self) -> None:
        (codes,) = found({"kind": ["a", "a", "b", "b", "c", "a", "c", "b"]}, trained=4).codes
        assert codes[:, 0].tolist() == [1, 1, 2, 2, 0, 1, 0, 2]

    def test_codes_do_not_depend_on_rows_outside_train(self) -> None:
        one = {"kind": ["a", "a", "b", "b", "c", "d", "e", "f"]}
        two = {"kind": ["a", "a", "b", "b", "a", "a", "a", "a"]}
        assert torch.equal(found(one, trained=4).codes[0][:4], found(two, trained=4).codes[0][:4])

    def test_values_that_do_not_come_back_make_none(self) -> None:
        table = {"zip": [f"z{each}" for each in range(ITEMS)], "kind": ["a", "b"] * 4}
        assert found(table).names == ("kind",)

    def test_one_that_is_asked_for_is_used_whatever_its_values_are(self) -> None:
        table = {"zip": [f"z{each}" for each in range(ITEMS)], "kind": ["a", "b"] * 4, "year": range(8)}
        result = found(table, ["zip", "year"])
        assert result.names == ("year", "zip")
        assert result.sizes == (ITEMS + 1,)
        assert len(found(table, [])) == 0

    def test_words_of_a_value_stay_together_where_they_are_not_shared(self) -> None:
        (codes,) = found({"city": ["New York", "Paris"] * 4}).codes
        assert codes[:, 0].tolist() == [1, 2] * 4


class TestLists:
    @pytest.mark.parametrize("mark", ["|", " | ", " "])
    def test_several_values_of_a_cell_are_padded_codes(self, mark: str) -> None:
        cells = [["war"], ["love", "war"], ["love"], [], ["love", "war", "sea"], ["sea"], ["war"], ["love", "sea"]]
        column = [mark.join(each) or None for each in cells]
        result = found({"genres": column})
        (codes,) = result.codes
        names = {1: "war", 2: "love", 3: "sea"}
        assert codes.shape == (ITEMS, 3)
        assert [[names[code] for code in row if code] for row in codes.tolist()] == cells
        assert all(row == sorted(row, key=lambda code: code == 0) for row in codes.tolist())  # padding comes last
        assert result.sizes == (4,)

    def test_values_with_spaces_inside_are_told_apart_by_the_bar(self) -> None:
        (codes,) = found({"genres": ["film noir|war", "war", "film noir", "war"] * 2}).codes
        assert codes[:4].tolist() == [[1, 2], [2, 0], [1, 0], [2, 0]]

    @pytest.mark.parametrize("name", ["title", "movie_title", "Description", "text"])
    def test_prose_is_no_feature(self, name: str) -> None:
        words = ["red", "old", "sea"]
        column = [f"{words[i % 3]} {words[j % 3]}" for i, j in np.ndindex(3, 3)][:8]
        assert found({name: column}).names == ()
        assert found({"tags": column}).names == ("tags",)


class TestTables:
    def test_without_a_table_there_are_no_features(self) -> None:
        result = found(None)
        assert len(result) == 0
        assert result.numbers.shape == (ITEMS, 0)

    def test_an_unknown_column_lists_those_that_are_there(self) -> None:
        with pytest.raises(RrecError, match="item column of dataset 'tiny'.*'knd'.*kind"):
            found({"kind": ["a", "b"] * 4}, ["knd"])

    def test_the_order_of_the_columns_is_that_of_the_table_numbers_first(self) -> None:
        table = {"kind": ["a", "b"] * 4, "year": range(8), "sort": ["x", "x", "y", "y"] * 2}
        assert found(table).names == ("year", "kind", "sort")

    def test_users_have_features_of_their_own(self) -> None:
        result = features(make_data(), "user", None)
        assert result.names == ("age", "gender")
        assert result.codes[0].unique().tolist() == [0, 1, 2]

    def test_twice_the_same(self) -> None:
        assert same(features(make_data(), "item", None), features(make_data(), "item", None))


class Texts(NamedTuple):
    tokens: Tensor
    lengths: Tensor
    words: tuple[str, ...]


def texts_of(data: Data, **changes: Any) -> Texts:
    """The texts of all items, with the words of those in training."""
    values: dict[str, Any] = {"min_count": 1, "max_tokens": 10, "columns": None}
    found = item_vocabulary(data, **(values | changes))
    assert data.item_table is not None
    return Texts(*found.read(data.item_table), found.words)


class TestTexts:
    def texts(self, column: list[str | None], trained: int = ITEMS, **changes: Any) -> Texts:
        return texts_of(data_of({"title": column}, trained=trained), **changes)

    def words(self, texts: Texts, row: int) -> list[str | int]:
        return [texts.words[code - 2] if code > 1 else code for code in texts.tokens[row].tolist()]

    def test_words_are_lower_case_and_padding_comes_last(self) -> None:
        texts = self.texts(["The Sea", "the  SEA, again!", None, ""] + ["sea"] * 4)
        assert self.words(texts, 0) == ["the", "sea", *[0] * 8]
        assert self.words(texts, 1) == ["the", "sea", "again", *[0] * 7]
        assert texts.tokens[2:4].tolist() == [[0] * 10] * 2
        assert texts.lengths.tolist() == [2, 3, 0, 0, 1, 1, 1, 1]
        assert len(texts.words) == 3

    def test_equal_words_in_other_unicode_are_equal(self) -> None:
        texts = self.texts(["ｓｅａ café", "sea cafe\u0301"] + ["sea"] * 6)
        assert texts.tokens[0].tolist() == texts.tokens[1].tolist()

    def test_a_word_that_too_few_items_in_train_have_is_unknown(self) -> None:
        texts = self.texts(["sea sea sea", "old", "old man", "man", "new", "new", "new", "old"], trained=4, min_count=2)
        assert set(texts.words) == {"old", "man"}
        assert texts.tokens[0, :3].tolist() == [UNKNOWN] * 3
        assert self.words(texts, 7)[0] == "old"
        assert texts.tokens[4, 0] == UNKNOWN

    def test_the_first_words_of_a_text_are_read(self) -> None:
        texts = self.texts(["a b c d e"] + ["a"] * 7, max_tokens=2)
        assert self.words(texts, 0) == ["a", "b"]
        assert texts.lengths[0] == 2

    def test_columns_follow_one_another(self) -> None:
        data = data_of({"year": range(8), "title": ["sea"] * 8, "genres": ["war", None] * 4})
        both = texts_of(data, max_tokens=2)
        assert self.words(both, 0) == ["sea", "war"]
        assert self.words(both, 1) == ["sea", 0]
        assert texts_of(data, columns=["genres"]).words == ("war",)

    def test_other_texts_are_read_with_the_same_words(self) -> None:
        data = data_of({"title": ["old sea"] * 8})
        known = item_vocabulary(data, None, min_count=1, max_tokens=4)
        tokens, lengths = known.read(pd.DataFrame({"title": ["Sea of new old sea sea", None]}))
        assert tokens.tolist() == [[3, UNKNOWN, UNKNOWN, 2], [0] * 4]
        assert lengths.tolist() == [4, 0]

    def test_mistakes_are_told(self) -> None:
        with pytest.raises(RrecError, match="text column.*'name'.*title"):
            self.texts(["sea"] * 8, columns=["name"])
        with pytest.raises(RrecError, match="no word that 9 items"):
            self.texts(["sea"] * 8, min_count=9)
        with pytest.raises(RrecError, match="no texts of its items"):
            texts_of(data_of({"year": range(8)}))
