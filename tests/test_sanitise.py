"""Cleaning of texts of items."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import ANY

import pandas as pd
import pytest
import torch
from fakes import GENUINE, find, step
from hypothesis import given
from hypothesis import strategies as st

from robustbench_rec import cleanings
from robustbench_rec.clean import cleaned
from robustbench_rec.errors import RrecError
from robustbench_rec.text.rules import RULES, TextRules


class TestSanitise:
    def texts(self, titles: list[str], **changes: Any) -> tuple[list[str], dict[str, int]]:
        table = pd.DataFrame({"title": [*titles, *["x"] * (50 - len(titles))], "year": 1.0})
        data, [(_, finding)] = cleaned(replace(GENUINE, item_table=table), [step("sanitise", words=None, **changes)])
        assert data.item_table is not None
        return data.item_table["title"].tolist()[: len(titles)], dict(finding.counts)

    def test_each_rule_is_counted_and_its_disguise_goes(self) -> None:
        disguised = [
            "<b>Toy</b> &amp; Story",
            "see https://spam.example/x now",
            "T\u200boy",
            "ｆull",
            "good good Good film",
        ]
        found, counts = self.texts(disguised)
        assert found == ["Toy & Story", "see now", "Toy", "full", "good film"]
        assert counts == {
            "disguises": 3,
            "html_or_links": 2,
            "repeated_signs": 0,
            "contacts": 0,
            "repeated_words": 1,
            "too_long": 0,
            "texts": 5,
        }

    @pytest.mark.parametrize(
        "text",
        [
            "see http://evil.com now",
            "see ht\u200btp://evil.com now",
            "see \uff48\uff54\uff54\uff50\uff1a\uff0f\uff0fevil.com now",
            "see htt\u0440://evil.com now",
            "see \uff57\uff57\uff57.evil.com now",
            "see \uff1cb\uff1enow",
            "see &amp;lt;b&amp;gt;now",
            "see \uff06lt;b\uff06gt;now",
            "see jo@@mail.example.org now",
        ],
    )
    def test_a_disguise_hides_nothing_from_the_rules(self, text: str) -> None:
        assert TextRules(None)(text) == "see now"

    @given(st.text(st.sampled_from("abp \u0440\u200b\uff1c\uff1e\uff06<>&;lt/:.@w!+1-5"), max_size=24))
    def test_no_text_changes_when_it_passes_again(self, text: str) -> None:
        clear = TextRules(None)(text)
        assert TextRules(None)(clear) == clear

    @pytest.mark.parametrize(
        ("text", "left"),
        [
            ("write to jo.do+x@mail.example.org now", "write to now"),
            ("call +49 30 901820-0 or +1 (555) 123-4567", "call or"),
            ("call (555) 123-4567, 555-123-4567", "call ,"),
            ("555.123.4567 555 123 4567", ""),
        ],
    )
    def test_no_address_or_number_leads_to_a_person(self, text: str, left: str) -> None:
        assert self.texts([text]) == ([left], {**dict.fromkeys(RULES, 0), "contacts": 1, "texts": 1})

    @pytest.mark.parametrize(
        "text",
        [
            "2001: A Space Odyssey (1968)",
            "1984-1985-1986",
            "ISBN 978-3-16-148410-0",
            "Ticket 12345678901",
            "100 000 000 views",
            "1994 - 1995",
            "@home",
            "C++ 11 22 33",
            "555-1234",
        ],
    )
    def test_other_numbers_stay(self, text: str) -> None:
        assert self.texts([text])[1]["contacts"] == 0

    @pytest.mark.parametrize(
        ("text", "left"),
        [
            ("buy buy, buy now", "buy now"),
            ("Windows 3.3", "Windows 3.3"),
            ("24/24 hours", "24/24 hours"),
            ("Model 1-1/2", "Model 1-1/2"),
            ("Catch-22: 22", "Catch-22: 22"),
        ],
    )
    def test_numbers_are_no_repeated_words(self, text: str, left: str) -> None:
        table = pd.DataFrame({"title": [text, *["x"] * 49]})
        data, _ = cleaned(replace(GENUINE, item_table=table), [step("sanitise", words=5)])
        assert data.item_table is not None
        assert data.item_table["title"][0] == left

    def test_what_the_rules_take_away_does_not_count_for_the_cap(self) -> None:
        assert TextRules(3).judged("&amp;lt;b one two&amp;gt; Toy Story Two")[0] == "Toy Story Two"
        assert TextRules(2).judged("Toy Story Two") == ("Toy Story", {"too_long"})

    def test_a_cap_cuts_and_an_honest_text_stays(self) -> None:
        table = pd.DataFrame({"title": ["one two three", "a < b and c > d", None, *["x"] * 47]})
        data, [(_, finding)] = cleaned(replace(GENUINE, item_table=table), [step("sanitise", words=5)])
        assert data.item_table is not None
        assert finding.counts["texts"] == 1
        assert data.item_table["title"].tolist()[:2] == ["one two three", "a < b and c"]
        assert pd.isna(data.item_table["title"][2])

    def test_a_column_that_is_not_there_is_refused(self) -> None:
        with pytest.raises(RrecError, match="unknown text column of dataset 'tiny' 'titel'"):
            find("sanitise", GENUINE, columns=["titel"])

    @pytest.mark.parametrize(
        ("names", "told"),
        [(["year"], "has no column of prose; clean.columns takes any of year"), ([], "has no column of prose$")],
    )
    def test_data_without_prose_are_refused(self, names: list[str], told: str) -> None:
        table = pd.DataFrame({name: ["1990s"] * GENUINE.n_items for name in names}, index=range(GENUINE.n_items))
        with pytest.raises(RrecError, match=told):
            find("sanitise", replace(GENUINE, item_table=table))

    def test_no_column_at_all_is_refused(self) -> None:
        with pytest.raises(RrecError, match=r"clean.columns=\[\]: a column at least, or null for those of prose"):
            step("sanitise", columns=[])

    def test_it_changes_nothing_when_done_again(self) -> None:
        once, _ = cleaned(GENUINE, [step("sanitise")])
        again, _ = cleaned(once, [step("sanitise")])
        assert again is once

    def test_rules_stay_where_nothing_was_found_and_change_nothing_then(self, tmp_path: Path) -> None:
        table = pd.DataFrame({"title": ["one two"] * 50, "plot": ["three"] * 50, "year": 1.0})
        data = replace(GENUINE, item_table=table)
        found, _ = cleaned(data, [step("sanitise", words=2), step("sanitise", words=None, columns=["plot"])])
        assert found.cleaning is not None
        assert found.cleaning.rules == {"title": (TextRules(2),), "plot": (TextRules(2), TextRules(None))}
        assert found.fingerprint == data.fingerprint
        assert torch.equal(found.train.items, data.train.items)
        cleanings.save(tmp_path, found.cleaning)
        assert cleanings.load(str(tmp_path), "ckpt").rules == found.cleaning.rules

    def test_a_file_from_before_there_were_rules_leaves_none(self, tmp_path: Path) -> None:
        found, _ = cleaned(GENUINE, [step("sanitise")])
        assert found.cleaning is not None
        cleanings.save(tmp_path, found.cleaning)
        card = json.loads((tmp_path / "cleaning.json").read_text())
        del card["rules"]
        (tmp_path / "cleaning.json").write_text(json.dumps(card))
        assert cleanings.load(str(tmp_path), "ckpt") == replace(found.cleaning, kept=ANY, rules={})

    def test_a_text_that_is_written_later_passes_them_and_one_that_stands_there_does_not(self) -> None:
        table = pd.DataFrame({"title": ["x &amp; y", *["x"] * 49], "genres": "<b>z</b>"})
        data, _ = cleaned(replace(GENUINE, item_table=table), [step("sanitise", words=None)])
        assert data.item_table is not None
        data.item_table.loc[0, "title"] = standing = "x x y"  # which the rules would change
        assert cleanings.as_read(data, "title", [0, 0, 1], [standing, "a a b", standing]) == [standing, "a b", "x y"]
        assert cleanings.as_read(data, "genres", [0], ["<i>z</i>"]) == ["<i>z</i>"]
        assert cleanings.as_read(GENUINE, "title", [0], ["a a b"]) == ["a a b"]
