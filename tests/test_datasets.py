"""File formats: what is read, and the one line that each mistake in a file comes to."""

import datetime as dt
import gzip
from decimal import Decimal
from pathlib import Path
from typing import ClassVar

import pandas as pd
import pytest
from omegaconf import OmegaConf

from robustbench_rec.datasets import datasets, root
from robustbench_rec.errors import RrecError

CONF = Path(__file__).parents[1] / "conf" / "dataset"
RATINGS = "user_id,item_id,rating,timestamp\nann,7,4,100\nbob,7,2.5,300\nann,x y,5,200\n"


def source(name, **values):
    """A source with the values of its yaml, but for those given (nested ones as `items={…}`)."""
    config = OmegaConf.load(CONF / f"{name}.yaml")
    config.pop("defaults", None)
    return datasets.build(OmegaConf.to_container(OmegaConf.merge(config, values), resolve=True))


def load(name, **values):
    return source(name, **values).load(Path())


def write(path, text, encoding="utf-8"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode(encoding))
    return str(path)


def rows(frame, *columns):
    return list(frame[list(columns)].itertuples(index=False, name=None))


@pytest.fixture
def refused(tmp_path):
    """Checks that a table with this content is refused in one line that says all of `words`."""

    def check(text, *words, encoding="utf-8", **values):
        path = write(tmp_path / "ratings.csv", text, encoding)
        with pytest.raises(RrecError) as error:
            load("table", path=path, **values)
        assert "\n" not in str(error.value)
        for word in ("ratings.csv", *words):
            assert word in str(error.value)

    return check


class TestTable:
    def test_a_csv_keeps_ids_as_text(self, tmp_path):
        events = load("table", path=write(tmp_path / "a.csv", RATINGS)).events
        expected = [("ann", "7", 4.0, 100), ("bob", "7", 2.5, 300), ("ann", "x y", 5.0, 200)]
        assert rows(events, "user", "item", "rating", "time") == expected
        assert events["time"].dtype == "int64"

    @pytest.mark.parametrize(
        ("separator", "written"),
        [("tab", "\t"), ("\\t", "\t"), ("space", " "), ("::", "::"), ("semicolon", ";"), ("|", "|"), ("¦", "¦")],
    )
    def test_any_separator_by_name_or_itself(self, tmp_path, separator, written):
        path = write(tmp_path / "a.dat", RATINGS.replace("x y", "xy").replace(",", written))
        assert rows(load("table", path=path, separator=separator).events, "user", "item")[2] == ("ann", "xy")

    def test_tsv_and_windows_line_ends_and_byte_order_marks_need_no_option(self, tmp_path):
        path = write(tmp_path / "a.tsv", RATINGS.replace(",", "\t").replace("\n", "\r\n"), "utf-8-sig")
        assert rows(load("table", path=path).events, "user", "rating")[0] == ("ann", 4.0)

    @pytest.mark.parametrize(("suffix", "separator"), [("csv", ","), ("tsv", "\t")])
    def test_what_gzip_packed_is_unpacked_and_lines_are_those_of_the_text(self, tmp_path, suffix, separator):
        path = tmp_path / f"a.{suffix}.gz"
        path.write_bytes(gzip.compress(RATINGS.replace(",", separator).encode()))
        assert rows(load("table", path=str(path)).events, "user", "rating")[1] == ("bob", 2.5)
        path.write_bytes(gzip.compress(f"{RATINGS}\neve,9,much,400\n".replace(",", separator).encode()))
        with pytest.raises(RrecError, match=rf"a\.{suffix}\.gz, line 6, column 'rating': 'much'"):
            load("table", path=str(path))

    def test_half_a_gzip_file_is_refused_in_one_line(self, tmp_path):
        path = tmp_path / "a.csv.gz"
        path.write_bytes(gzip.compress(RATINGS.encode())[:-9])
        with pytest.raises(RrecError, match=r"a\.csv\.gz is no whole gzip file: .+"):
            load("table", path=str(path))

    def test_columns_by_position_where_there_is_no_header(self, tmp_path):
        path = write(tmp_path / "a.txt", "1 2 3.5\n1 3 4\n")
        events = load(
            "table", path=path, separator="space", header=False, user="0", item="1", rating="2", time=None
        ).events
        assert rows(events, "user", "item", "rating") == [("1", "2", 3.5), ("1", "3", 4.0)]
        assert "time" not in events

    def test_parquet_with_native_types(self, tmp_path):
        frame = pd.DataFrame(
            {"user_id": [1, 2], "item_id": [7, 8], "rating": [1, 5], "timestamp": pd.to_datetime([9, 10], unit="s")}
        )
        frame.to_parquet(tmp_path / "a.parquet")
        events = load("table", path=str(tmp_path / "a.parquet")).events  # a column that says itself what it is
        assert rows(events, "user", "item", "rating", "time") == [("1", "7", 1.0, 9), ("2", "8", 5.0, 10)]

    def test_parquet_keeps_every_digit_of_an_id_and_reads_dates(self, tmp_path):
        ids = [Decimal(10**19 + each) for each in (1, 2, 3)]
        frame = pd.DataFrame(
            {"user_id": ids, "item_id": [7, 8, 9], "timestamp": [dt.date(1970, 1, each) for each in (1, 2, 3)]}
        )
        frame.to_parquet(tmp_path / "a.parquet")
        events = load("table", path=str(tmp_path / "a.parquet"), rating=None).events
        assert rows(events, "user", "time") == [(str(each), 86400 * n) for n, each in enumerate(ids)]
        whole = pd.DataFrame({"item": [7, 8], "votes": [Decimal(12), Decimal(5)]})
        whole.to_parquet(tmp_path / "items.parquet")
        items = {"path": str(tmp_path / "items.parquet"), "id": "item"}
        assert load("table", path=str(tmp_path / "a.parquet"), rating=None, items=items).items["votes"].tolist() == [
            12,
            5,
        ]

    def test_parquet_lists_are_several_values_and_what_no_text_file_can_have_is_told(self, tmp_path, caplog):
        events = {"user_id": ["a", "b"], "item_id": ["x", "y"], "rating": [1, 2], "timestamp": [1, 2]}
        pd.DataFrame(events).to_parquet(tmp_path / "a.parquet")
        items = {
            "item": ["x", "y"],
            "genres": [["war", "love"], None],
            "price": [Decimal("1.50"), Decimal("2.25")],
            "new": [True, False],
            "about": [{"a": 1}, {"a": 2}],
        }
        pd.DataFrame(items).to_parquet(tmp_path / "items.parquet")
        table = load(
            "table", path=str(tmp_path / "a.parquet"), items={"path": str(tmp_path / "items.parquet"), "id": "item"}
        ).items
        assert list(table.columns) == ["item", "genres", "price", "new"]
        assert table["genres"].tolist()[:1] == ["war|love"]
        assert pd.isna(table["genres"].iloc[1])
        assert table["price"].tolist() == [1.5, 2.25]
        assert table["new"].tolist() == [1, 0]
        assert "column 'about' holds struct" in caplog.text

    def test_parquet_has_the_index_of_pandas_where_it_has_a_name(self, tmp_path):
        frame = pd.DataFrame({"user_id": ["a", "b"], "item_id": ["x", "y"], "rating": [1, 2]}, index=[5, 9])
        frame.to_parquet(tmp_path / "a.parquet")
        items = {"path": str(tmp_path / "a.parquet")}
        raw = load("table", path=str(tmp_path / "a.parquet"), time=None, items=items)
        assert list(raw.items.columns) == ["item", "user_id", "rating"]
        frame.set_index("item_id").to_parquet(tmp_path / "b.parquet")
        assert list(load("table", path=str(tmp_path / "b.parquet"), time=None).events["item"]) == ["x", "y"]

    def test_parquet_ids_that_became_floats_are_still_integers(self, tmp_path):
        pd.DataFrame({"user_id": [1.0, 2.0], "item_id": [7, 8]}).to_parquet(tmp_path / "a.parquet")
        assert list(load("table", path=str(tmp_path / "a.parquet"), rating=None, time=None).events["user"]) == [
            "1",
            "2",
        ]

    @pytest.mark.parametrize(
        ("style", "written", "seconds"),
        [
            ("seconds", "881250949", 881250949),
            ("seconds", "881250949.75", 881250949.75),
            ("milliseconds", "881250949500", 881250949.5),
            ("iso", "2001-09-09T01:46:40Z", 10**9),
            ("iso", "2001-09-09T01:46:40.125Z", 10**9 + 0.125),
            ("iso", "2001-09-09", 999993600),
            ("%d/%m/%Y %H:%M", "09/09/2001 01:46", 10**9 - 40),
        ],
    )
    def test_time_formats(self, tmp_path, style, written, seconds):
        path = write(tmp_path / "a.csv", f"user_id,item_id,rating,timestamp\na,1,1,{written}\n")
        assert load("table", path=path, time_format=style).events["time"].tolist() == [seconds]

    @pytest.mark.parametrize(
        ("text", "line"),
        [
            ('7,"The End\nx y,Heat\n9,Says "Hi"\n', 2),  # takes the next rows with it
            ('7,The End\nx y,"Heat\n', 3),  # to the end of the file
            ('7,The End\nx y,"Weird Al" Live\n', 3),
        ],
    )
    def test_a_quote_that_is_not_closed_is_refused_and_quotes_can_be_letters(self, tmp_path, text, line):
        events, items = (
            write(tmp_path / "a.csv", RATINGS),
            {"path": write(tmp_path / "items.csv", f"item_id,t\n{text}")},
        )
        with pytest.raises(RrecError, match=rf"items\.csv, line {line}: a cell begins with .* quote=null"):
            load("table", path=events, items=items)
        table = load("table", path=events, items=items | {"quote": None}).items
        assert len(table) == text.count("\n")
        assert "".join(table["t"]).count('"') == text.count('"')

    def test_quotes_that_are_closed_hide_separators_quotes_and_line_breaks(self, tmp_path):
        text = 'item_id,t\n7,"The ""End"", or\nnot"\nx y,Say "Hi"\n'
        items = load(
            "table", path=write(tmp_path / "a.csv", RATINGS), items={"path": write(tmp_path / "i.csv", text)}
        ).items
        assert items["t"].tolist() == ['The "End", or\nnot', 'Say "Hi"']

    def test_floats_that_have_lost_digits_are_no_ids(self, tmp_path):
        frame = pd.DataFrame({"user_id": [1.0, 2.0**63], "item_id": [7, 8], "rating": [1, 5], "timestamp": [9, 10]})
        frame.to_parquet(tmp_path / "a.parquet")
        with pytest.raises(RrecError, match=r"line 2, column 'user_id': '9.2\d+e\+18' is no id"):
            load("table", path=str(tmp_path / "a.parquet"))

    def test_side_tables_each_with_a_layout_of_its_own(self, tmp_path):
        raw = load(
            "table",
            path=write(tmp_path / "a.csv", RATINGS),
            items={
                "path": write(tmp_path / "movies.dat", "7::Amélie::122\nx y::Heat::\n", "latin-1"),
                "separator": "::",
                "header": False,
                "encoding": "latin-1",
                "id": "0",
                "numbers": ["2"],
            },
            kg={"path": write(tmp_path / "kg.tsv", "head\trelation\ttail\nm1\tby\tjp\n"), "separator": "tab"},
            links={"path": write(tmp_path / "links.csv", "item_id,entity_id\n7,m1\n")},
        )
        assert list(raw.items.columns) == ["item", "1", "2"]
        assert rows(raw.items, "item", "1")[0] == ("7", "Amélie")
        assert raw.items["2"].isna().tolist() == [False, True]
        assert rows(raw.kg, "head", "relation", "tail") == [("m1", "by", "jp")]
        assert rows(raw.links, "item", "entity") == [("7", "m1")]
        assert raw.users is None

    def test_the_column_that_names_items_whatever_it_is_called(self, tmp_path):
        def named(text, title):
            items = {"path": write(tmp_path / "items.csv", text), "title": title}
            return load("table", path=write(tmp_path / "a.csv", RATINGS), items=items).items

        assert rows(named("item_id,Titel\n7,Amélie\n", "Titel"), "item", "title") == [("7", "Amélie")]
        with pytest.raises(RrecError, match=r"dataset\.items\.title.*'Titl'.*Titel"):
            named("item_id,Titel\n7,Amélie\n", "Titl")
        with pytest.raises(RrecError, match="rename one of them"):
            named("item_id,Titel,title\n7,Amélie,Heat\n", "Titel")

    @pytest.mark.parametrize(
        ("part", "text", "key"),
        [
            ("items", "movie,title\n7,Heat\n", "items.id"),
            ("users", "name,age\nann,30\n", "users.id"),
            ("kg", "a,relation,tail\nm1,is,x\n", "kg.head"),
        ],
    )
    def test_the_key_that_names_a_missing_column_of_any_table_is_told(self, tmp_path, part, text, key):
        table = {part: {"path": write(tmp_path / "b.csv", text)}}
        with pytest.raises(RrecError, match=rf"unknown column of b\.csv .*; dataset\.{key} names it$"):
            load("table", path=write(tmp_path / "a.csv", RATINGS), **table)

    def test_files_are_those_that_decide_about_a_prepared_copy(self, tmp_path):
        path, kg = tmp_path / "a.csv", tmp_path / "kg.csv"
        assert source("table", path=str(path), kg={"path": str(kg)}).files(tmp_path) == [path, kg]

    def test_a_quoted_cell_may_hold_the_separator(self, tmp_path):
        path = write(tmp_path / "a.csv", 'user_id,item_id,rating,timestamp\nann,"a, b",1,1\n')
        assert load("table", path=path).events["item"].tolist() == ["a, b"]

    def test_a_missing_file(self, refused, tmp_path):
        with pytest.raises(RrecError, match=r"none\.csv does not exist"):
            load("table", path=str(tmp_path / "none.csv"))

    def test_an_empty_file(self, refused):
        refused("", "is empty")
        refused("\n\n", "is empty")

    def test_a_header_alone(self, refused):
        refused("user_id,item_id,rating,timestamp\n", "header and no rows")

    def test_a_missing_column_names_those_that_are_there_and_the_nearest(self, refused):
        refused(
            RATINGS.replace("rating", "ratings"), "'rating'", "did you mean 'ratings'", "item_id, ratings, timestamp"
        )

    def test_text_in_the_rating_column_names_line_and_value(self, refused):
        refused(RATINGS.replace("2.5", "good"), "line 3", "'rating'", "'good'", "not a finite number")

    def test_a_decimal_comma_is_told_what_to_write(self, refused):
        text = RATINGS.replace(",", ";").replace("2.5", "2,5")
        refused(text, "line 3", "'2,5'", "decimal point", separator="semicolon")

    def test_blank_lines_do_not_shift_the_line_number(self, refused):
        refused("\n" + RATINGS.replace("ann,7", "\nann,7").replace("2.5", "good"), "line 5", "'good'")

    @pytest.mark.parametrize("value", ["nan", "NaN", "inf", "-inf", ""])
    def test_ratings_that_are_no_finite_number(self, refused, value):
        refused(RATINGS.replace("2.5", value), "line 3", f"'{value}'")

    @pytest.mark.parametrize("value", ["soon", "nan", "1e30", ""])
    def test_times_that_are_none(self, refused, value):
        refused(RATINGS.replace("300", value), "line 3", "'timestamp'", f"'{value}'", "seconds")

    def test_what_other_formats_and_columns_there_are(self, refused):
        refused(RATINGS.replace("rating", "note"), "dataset.rating names it, null where there is none")
        refused(RATINGS, "'userId'", "dataset.user names it", user="userId")
        refused(RATINGS, "is not a time of the format", "milliseconds, iso", time_format="%Y")
        refused(RATINGS, "column", "separator: comma, semicolon", separator="semicolon")

    def test_a_date_of_another_format(self, refused):
        refused(RATINGS.replace("100", "2001-01-01"), "line 3", "'300'", "%Y-%m-%d", time_format="%Y-%m-%d")

    def test_an_unknown_time_format_lists_the_choices(self, tmp_path):
        with pytest.raises(RrecError, match=r"'second'.*did you mean 'seconds'.*milliseconds"):
            load("table", path=write(tmp_path / "a.csv", RATINGS), time_format="second")

    def test_an_empty_id(self, refused):
        refused(RATINGS.replace("bob", ""), "line 3", "'user_id'", "every row needs an id")

    def test_another_encoding_names_the_line(self, refused):
        refused(RATINGS.replace("bob", "zoë"), "line 3", "not utf-8", "latin-1", encoding="latin-1")

    def test_an_unknown_encoding(self, tmp_path):
        with pytest.raises(RrecError, match="unknown encoding: klingon"):
            load("table", path=write(tmp_path / "a.csv", RATINGS), encoding="klingon")

    @pytest.mark.parametrize(("row", "count"), [("bob,7", 2), ("bob,7,2.5,300,1", 5)])
    def test_a_row_of_another_length(self, refused, row, count):
        refused(RATINGS.replace("bob,7,2.5,300", row), "line 3", f"{count} columns", "has 4")

    @pytest.mark.parametrize("values", [{"separator": ""}, {"quote": "ab"}, {"separator": '"', "quote": '"'}])
    def test_separators_and_quotes_that_there_cannot_be(self, refused, values):
        refused(RATINGS, *(f"{key}='{value}'" for key, value in values.items()), **values)

    def test_lines_that_end_otherwise(self, refused):
        refused(RATINGS.replace("\n", "\r"), "its lines end in CR")

    def test_a_column_twice(self, refused):
        refused(RATINGS.replace("rating", "item_id"), "'item_id' twice")

    def test_text_among_the_numbers_of_a_side_table(self, tmp_path):
        items = {"path": write(tmp_path / "items.csv", "item_id,year\n7,1999\n8,old\n"), "numbers": ["year"]}
        with pytest.raises(RrecError, match=r"items\.csv, line 3, column 'year': 'old' is not a number"):
            load("table", path=write(tmp_path / "a.csv", RATINGS), items=items)

    def test_links_without_a_knowledge_graph(self, tmp_path):
        links = {"path": write(tmp_path / "links.csv", "item_id,entity_id\n7,m1\n")}
        with pytest.raises(RrecError, match=r"needs dataset\.kg\.path"):
            load("table", path=write(tmp_path / "a.csv", RATINGS), links=links)

    def test_only_events_of_items_in_the_knowledge_graph_when_asked(self, tmp_path):
        path = write(tmp_path / "a.csv", RATINGS.replace("x y", "8"))
        kg = {"path": write(tmp_path / "kg.csv", "head,relation,tail\nm1,by,8\n")}
        # item 9's entity is linked already, item 8's is in no triple
        links = {"path": write(tmp_path / "links.csv", "item_id,entity_id\n7,m1\n8,m2\n9,m1\n")}
        raw = load("table", path=path, kg=kg, links=links, linked_only=True)
        assert rows(raw.events, "user", "item", "time") == [("ann", "7", 100), ("bob", "7", 300)]
        raw = load("table", path=path, kg=kg, linked_only=True)  # without links, by the id of the item
        assert rows(raw.events, "user", "item") == [("ann", "8")]
        assert len(load("table", path=path, kg=kg, links=links).events) == 3

    def test_linked_items_without_a_knowledge_graph_or_without_any(self, tmp_path):
        path = write(tmp_path / "a.csv", RATINGS)
        with pytest.raises(RrecError, match=r"linked_only.*needs dataset\.kg\.path"):
            load("table", path=path, linked_only=True)
        kg = {"path": write(tmp_path / "kg.csv", "head,relation,tail\nm1,by,m2\n")}
        with pytest.raises(RrecError, match="leaves no event"):
            load("table", path=path, kg=kg, linked_only=True)

    def test_a_scale_the_wrong_way_round(self, tmp_path):
        with pytest.raises(RrecError, match=r"\[smallest, largest\]"):
            load("table", path=write(tmp_path / "a.csv", RATINGS), scale=[5, 1])

    def test_a_file_that_is_no_parquet(self, tmp_path):
        with pytest.raises(RrecError, match=r"a\.parquet is not a Parquet file"):
            load("table", path=write(tmp_path / "a.parquet", RATINGS))


INTER = "user_id:token\titem_id:token\trating:float\ttimestamp:float\nu1\ti1\t5\t10.0\nu2\ti1\t3\t20\n"


class TestRecBole:
    def test_atomic_files_with_side_tables_and_kg(self, tmp_path):
        folder = tmp_path / "tiny-1.0"
        write(folder / "tiny-1.0.inter", INTER)
        write(folder / "tiny-1.0.item", 'item_id:token\ttitle:token_seq\tyear:float\ni1\tThe "End\t1999\ni2\tB\t\n')
        write(folder / "tiny-1.0.user", "user_id:token\tzip:token\nu1\t00501\n")
        write(folder / "tiny-1.0.kg", "head_id:token\trelation_id:token\ttail_id:token\ne1\tr\te2\n")
        write(folder / "tiny-1.0.link", "item_id:token\tentity_id:token\ni1\te1\n")
        raw = load("recbole", path=str(folder), scale=[1, 5])
        assert rows(raw.events, "user", "item", "rating", "time") == [("u1", "i1", 5.0, 10), ("u2", "i1", 3.0, 20)]
        assert rows(raw.items, "item", "title")[0] == ("i1", 'The "End')
        assert raw.items["year"].dtype == "float64"
        assert raw.items["year"].isna().tolist() == [False, True]
        assert raw.users["zip"].tolist() == ["00501"]
        assert rows(raw.kg, "head", "relation", "tail") == [("e1", "r", "e2")]
        assert rows(raw.links, "item", "entity") == [("i1", "e1")]
        assert raw.scale == (1.0, 5.0)
        assert len(source("recbole", path=str(folder)).files(tmp_path)) == 5

    @pytest.mark.parametrize("parts", [["train", "valid", "test"], ["part1", "part3"]])
    def test_benchmark_files_keep_their_split(self, tmp_path, parts):
        for part in parts:
            write(tmp_path / f"tiny.{part}.inter", INTER)
        events = load("recbole", path=str(tmp_path), parts=parts).events
        names = ["train", "valid", "test"] if len(parts) == 3 else ["train", "test"]
        assert events["part"].tolist() == [name for name in names for _ in range(2)]

    @pytest.mark.parametrize("header", ["user_id", "user_id:word", ":token"])
    def test_a_header_without_a_known_type(self, tmp_path, header):
        write(tmp_path / "a.inter", INTER.replace("user_id:token", header))
        with pytest.raises(RrecError, match=rf"a\.inter, line 1: column '{header}'.*name:token\|token_seq"):
            load("recbole", path=str(tmp_path))

    def test_text_in_the_rating_column(self, tmp_path):
        write(tmp_path / "a.inter", INTER.replace("\t3\t", "\tgood\t"))
        with pytest.raises(RrecError, match=r"a\.inter, line 3, column 'rating': 'good'"):
            load("recbole", path=str(tmp_path))

    def test_a_missing_column_says_what_is_there(self, tmp_path):
        write(tmp_path / "a.inter", INTER)
        with pytest.raises(RrecError, match=r"'stars'.*item_id, rating, timestamp, user_id"):
            load("recbole", path=str(tmp_path), rating="stars")

    def test_a_folder_without_or_with_several_interaction_files(self, tmp_path):
        with pytest.raises(RrecError, match="it holds none"):
            load("recbole", path=str(tmp_path))
        write(tmp_path / "a.train.inter", INTER)
        write(tmp_path / "a.test.inter", INTER)
        with pytest.raises(RrecError, match=r"2 of them.*dataset\.parts="):
            load("recbole", path=str(tmp_path))

    def test_a_folder_that_is_not_there(self, tmp_path):
        with pytest.raises(RrecError, match="no folder here"):
            load("recbole", path=str(tmp_path / "none"))

    def test_a_part_that_is_not_there(self, tmp_path):
        write(tmp_path / "a.train.inter", INTER)
        with pytest.raises(RrecError, match=r"a\.test\.inter does not exist"):
            load("recbole", path=str(tmp_path), parts=["train", "test"])


class TestAdjacency:
    def test_a_published_split_with_original_ids(self, tmp_path):
        write(tmp_path / "train.txt", "0 0 2 \n1 1\n\n")
        write(tmp_path / "test.txt", "0 1\n1\n")
        write(tmp_path / "item_list.txt", "org_id remap_id freebase_id\nB c 1 m.1\nA 0 m.0\nC 2 m.2\n")
        write(tmp_path / "user_list.txt", "ann 0\nbob 1\n")
        raw = load("adjacency", path=str(tmp_path))
        expected = [("ann", "A", "train"), ("ann", "C", "train"), ("bob", "B c", "train"), ("ann", "B c", "test")]
        assert rows(raw.events, "user", "item", "part") == expected
        assert rows(raw.items, "item", "freebase_id") == [("A", "m.0"), ("B c", "m.1"), ("C", "m.2")]
        assert raw.users is None
        assert raw.kg is None

    def test_numbers_name_themselves_where_there_are_no_lists(self, tmp_path):
        write(tmp_path / "train.txt", "3 10 11\n")
        write(tmp_path / "valid.txt", "3 12\n")
        write(tmp_path / "test.txt", "3 0\n")
        events = load("adjacency", path=str(tmp_path)).events
        assert rows(events, "user", "item", "part")[2:] == [("3", "12", "valid"), ("3", "0", "test")]

    def test_large_numbers_take_no_more_room_than_small_ones(self, tmp_path):
        write(tmp_path / "train.txt", "0 99999999999 1\n")
        write(tmp_path / "test.txt", "0 7\n")
        events = load("adjacency", path=str(tmp_path)).events
        assert events["item"].tolist() == ["99999999999", "1", "7"]

    def test_a_knowledge_graph_whose_first_entities_are_the_items(self, tmp_path):
        write(tmp_path / "train.txt", "0 0 1\n")
        write(tmp_path / "test.txt", "0 2\n")
        write(tmp_path / "item_list.txt", "org_id remap_id\nA 0\nB 1\nC 2\n")
        write(tmp_path / "kg_final.txt", "0 0 3\n2 1 3\n")
        write(tmp_path / "entity_list.txt", "org_id remap_id\nm.0 0\nm.1 1\nm.2 2\nsome words 3\n")
        raw = load("adjacency", path=str(tmp_path))
        assert rows(raw.kg, "head", "relation", "tail") == [("m.0", "0", "some words"), ("m.2", "1", "some words")]
        assert rows(raw.links, "item", "entity") == [("A", "m.0"), ("C", "m.2")]

    def test_a_list_of_another_name_must_be_there(self, tmp_path):
        write(tmp_path / "train.txt", "0 0 1\n")
        write(tmp_path / "test.txt", "0 1\n")
        write(tmp_path / "map.txt", "x 0\ny 1\n")
        assert load("adjacency", path=str(tmp_path), item_list="map.txt").events["item"].tolist() == ["x", "y", "y"]
        with pytest.raises(RrecError, match=r"mop\.txt does not exist"):
            load("adjacency", path=str(tmp_path), item_list="mop.txt")

    @pytest.mark.parametrize(
        ("name", "text", "message"),
        [
            ("train.txt", "0 1\n1 x 2\n", r"train\.txt, line 2: 'x' is not a number"),
            ("train.txt", "0 -1\n", r"train\.txt, line 1: '-1' is not a number"),
            ("test.txt", "0 1.5\n", r"test\.txt, line 1: '1\.5' is not a number"),
            ("train.txt", "", r"train\.txt is empty"),
            ("item_list.txt", "org_id remap_id\nA 0\n", r"item_list\.txt must give each number from 0 to 2"),
            ("item_list.txt", "org_id remap_id\nA 0\nB 0\nC 2\n", r"item_list\.txt must give each number from 0 to 2"),
            ("item_list.txt", "org_id remap_id\nA 0\nA 1\nC 2\n", r"item_list\.txt gives the id 'A' to two numbers"),
            ("item_list.txt", "org_id remap_id\nA 0\nB\nC 2\n", r"item_list\.txt, line 3 has too few columns"),
            (
                "item_list.txt",
                "id remap_id\nA 0\nB 1\nC 2\n",
                r"item_list\.txt, line 1: .* must start with org_id",
            ),
            ("kg_final.txt", "0 0 3\n0 3\n", r"kg_final\.txt, line 2 has 2 numbers"),
            ("kg_final.txt", "0 by 3\n", r"kg_final\.txt, line 1: 'by' is not a number"),
        ],
    )
    def test_malformed_files_name_the_line(self, tmp_path, name, text, message):
        write(tmp_path / "train.txt", "0 0 1\n")
        write(tmp_path / "test.txt", "0 2\n")
        write(tmp_path / name, text)
        with pytest.raises(RrecError, match=message):
            load("adjacency", path=str(tmp_path))

    def test_a_missing_part(self, tmp_path):
        write(tmp_path / "train.txt", "0 0 1\n")
        with pytest.raises(RrecError, match=r"test\.txt does not exist"):
            load("adjacency", path=str(tmp_path))


class TestSequence:
    def test_one_user_a_line_in_the_order_of_time(self, tmp_path):
        raw = load("sequence", path=write(tmp_path / "a.txt", "A1 x y x\n\nB2\tz  y \r\n"))
        assert rows(raw.events, "user", "item") == [("A1", "x"), ("A1", "y"), ("A1", "x"), ("B2", "z"), ("B2", "y")]
        assert raw.repeats
        assert "time" not in raw.events

    def test_one_event_a_line(self, tmp_path):
        raw = load("sequence", path=write(tmp_path / "a.txt", "1 5\n2 5\n1 6\n"), layout="pairs", repeats=False)
        assert rows(raw.events, "user", "item") == [("1", "5"), ("2", "5"), ("1", "6")]
        assert not raw.repeats

    def test_texts_and_attributes_of_the_items(self, tmp_path):
        path = write(tmp_path / "a.txt", "A1 x y\nB2 z y\n")
        texts = write(tmp_path / "t.txt", "x  a red  house \n\ny\nw other\n")
        attributes = write(tmp_path / "a.json", '{"x": [3, "b c", 1], "z": []}')
        raw = load("sequence", path=path, texts=texts, attributes=attributes)
        table = raw.items.set_index("item")
        assert table["text"].to_dict() == {"x": "a red  house", "y": "", "w": "other"}
        assert table["attributes"]["x"] == "3 b c 1"
        assert table["attributes"].isna()[["y", "w"]].all()
        assert raw.items.columns[0] == "item"
        assert load("sequence", path=path).items is None
        assert list(load("sequence", path=path, texts=texts).items.columns) == ["item", "text"]
        assert source("sequence", path=path, texts=texts).files(tmp_path) == [Path(path), Path(texts)]

    @pytest.mark.parametrize(
        ("name", "text", "message"),
        [
            ("texts", " \n", r"x\.txt is empty"),
            ("attributes", "{", r"x\.txt is not JSON"),
            ("attributes", '{"x": 3}', r"x\.txt must hold one object"),
            ("attributes", "[1]", r"x\.txt must hold one object"),
            ("attributes", "[" * 100_000, r"x\.txt is not JSON"),
        ],
    )
    def test_malformed_files_of_items(self, tmp_path, name, text, message):
        path = write(tmp_path / "a.txt", "A1 x y\n")
        with pytest.raises(RrecError, match=message):
            load("sequence", path=path, **{name: write(tmp_path / "x.txt", text)})

    @pytest.mark.parametrize(
        ("layout", "text", "message"),
        [
            ("users", "1 2\n\n2\n", r"a\.txt, line 3 has 1 words"),
            ("pairs", "1 2\n1 2 3\n", r"a\.txt, line 2 has 3 words; layout=pairs needs exactly two"),
            ("users", " \n", r"a\.txt is empty"),
            ("rows", "1 2\n", r"'rows'.*pairs, users"),
        ],
    )
    def test_malformed_files_name_the_line(self, tmp_path, layout, text, message):
        with pytest.raises(RrecError, match=message):
            load("sequence", path=write(tmp_path / "a.txt", text), layout=layout)


def test_the_data_directory_is_the_argument_then_the_variable_then_the_users_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("RREC_DATA", str(tmp_path))
    assert root("here") == Path("here")
    assert root(None) == tmp_path
    monkeypatch.delenv("RREC_DATA")
    assert root(None).name == "robustbench_rec"


class TestLibFM:
    FIELDS: ClassVar = ["user", "item", "hour"]
    LINES = "1 10:1 20:1 30:1\n-1 10:1 21:1.0 31:1\n\n-1  11:1 20:1\t30:1\r\n"

    def test_labels_become_clicks_and_the_other_fields_context(self, tmp_path):
        raw = load("libfm", path=write(tmp_path / "a.libfm", self.LINES), fields=self.FIELDS)
        assert rows(raw.events, "user", "item", "hour", "rating") == [
            ("10", "20", "30", 1.0),
            ("10", "21", "31", 0.0),
            ("11", "20", "30", 0.0),
        ]
        assert raw.context == ("hour",)
        assert raw.repeats
        assert "part" not in raw.events

    def test_the_parts_are_files(self, tmp_path):
        paths = {name: write(tmp_path / f"{name}.libfm", self.LINES) for name in ("train", "valid", "test")}
        words = {"path": paths["train"], "valid": paths["valid"], "test": paths["test"], "fields": self.FIELDS}
        raw = load("libfm", **words)
        assert raw.events["part"].tolist() == ["train"] * 3 + ["valid"] * 3 + ["test"] * 3
        assert [each.name for each in source("libfm", **words).files(Path())] == [
            "train.libfm",
            "valid.libfm",
            "test.libfm",
        ]
        assert set(load("libfm", **(words | {"valid": None})).events["part"]) == {"train", "test"}

    def test_the_sign_of_a_label_is_judged_over_all_parts(self, tmp_path):
        ones = write(tmp_path / "ones.libfm", "1 a:1 b:1\n")
        stars = write(tmp_path / "stars.libfm", "4.5 a:1 c:1\n-1 a:1 b:1\n")
        raw = load("libfm", path=ones, test=stars, fields=["user", "item"])
        assert raw.events["rating"].tolist() == [1.0, 4.5, -1.0]
        assert raw.context == ()

    def test_feature_names_may_hold_colons_and_fields_any_order(self, tmp_path):
        path = write(tmp_path / "a.libfm", "0 hour:3:1 i7:1 u5:1\n")
        raw = load("libfm", path=path, fields=["hour", "item", "user"])
        assert rows(raw.events, "user", "item", "hour", "rating") == [("u5", "i7", "hour:3", 0.0)]

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            (
                "1 1:1 2:1 3:1\n\n1 1:1 2:1\n",
                r"a\.libfm, line 3 has 2 features, dataset\.fields names 3: user, item, hour",
            ),
            ("1 1:1 2:1 3:0.5\n", r"a\.libfm, line 1: '3:0\.5' is not feature:1"),
            ("1 1:1 2:1 3:1\nyes 1:1 2:1 3:1\n", r"a\.libfm, line 2: 'yes' is no label"),
            ("\n", r"a\.libfm is empty"),
        ],
    )
    def test_malformed_files_name_the_line(self, tmp_path, text, message):
        with pytest.raises(RrecError, match=message):
            load("libfm", path=write(tmp_path / "a.libfm", text), fields=self.FIELDS)

    @pytest.mark.parametrize("fields", [["user", "hour"], ["user", "item", "item"], ["user", "item", "rating"]])
    def test_fields_need_a_user_an_item_and_names_of_their_own(self, tmp_path, fields):
        with pytest.raises(RrecError, match=r"dataset\.fields="):
            load("libfm", path=write(tmp_path / "a.libfm", self.LINES), fields=fields)

    def test_a_valid_part_without_a_test_part_is_refused(self, tmp_path):
        with pytest.raises(RrecError, match=r"dataset\.valid names a file and dataset\.test none"):
            load("libfm", path="a.libfm", valid="b.libfm", fields=self.FIELDS)


class TestContextOfRecBole:
    HEADER = "user_id:token\titem_id:token\thour:token\tcity:token\n"

    def test_columns_of_the_interactions_come_as_text(self, tmp_path):
        write(tmp_path / "a" / "a.inter", self.HEADER + "u\ti\t7\tRome\nu\tj\t07\t\n")
        raw = load("recbole", path=str(tmp_path / "a"), rating=None, time=None, context=["city", "hour"])
        assert raw.context == ("city", "hour")
        assert rows(raw.events, "user", "item", "city", "hour") == [("u", "i", "Rome", "7"), ("u", "j", "", "07")]

    @pytest.mark.parametrize(("name", "message"), [("town", "'town'.*city"), ("user", "taken")])
    def test_a_column_that_is_not_there_or_whose_name_is_taken_is_refused(self, tmp_path, name, message):
        write(tmp_path / "a" / "a.inter", self.HEADER.replace("hour", "user") + "u\ti\t7\tRome\n")
        with pytest.raises(RrecError, match=message):
            load("recbole", path=str(tmp_path / "a"), rating=None, time=None, context=[name])
