"""Delimited text, gzip's too, and Parquet, read as text columns; complaints name the file, the line and the column."""

import csv
import gzip
import io
import logging
import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute
import pyarrow.csv
import pyarrow.parquet

from robustbench_rec.errors import RrecError, unknown

Array = np.ndarray[Any, Any]
SEPARATORS = {"comma": ",", "semicolon": ";", "tab": "\t", "\\t": "\t", "space": " "}
RIGHT = "is the separator right? (separator: comma, semicolon, tab, space, or the characters themselves)"
OTHER_TIMES = "time_format is seconds, milliseconds, iso, or a pattern such as %d/%m/%Y"
GZIP = b"\x1f\x8b"
_UNIT = "\x1f"  # stands in for separators that the CSV parser does not know: of several characters, or not ASCII
log = logging.getLogger(__name__)
_EARLIEST, _LATEST = -(2**53), 2**53  # seconds beyond which a number is no time at all


@dataclass
class File:
    """How a table lies on disk.

    path: null where there is none. separator: a character, several, or comma, semicolon, tab, space; null goes by the
    suffix. quote: the quoting character, null for none. header: false names the columns by position, from 0.
    """

    path: str | None
    separator: str | None
    quote: str | None
    header: bool
    encoding: str


@dataclass(frozen=True)
class Sheet:
    """A table in memory: text columns from CSV, native ones from Parquet.

    header: lines before the first row. numeric: columns whose text stands for numbers.
    """

    path: Path
    frame: pd.DataFrame
    header: int = 0
    numeric: frozenset[str] = frozenset()

    def pick(self, name: str) -> pd.Series:
        """A column; RrecError lists the columns that are there and the nearest."""
        if name not in self.frame.columns:
            hint = f"; {RIGHT}" if len(self.frame.columns) == 1 else ""
            raise RrecError(f"{unknown(f'column of {self.path.name}', name, map(str, self.frame.columns))}{hint}")
        column: pd.Series = self.frame[name]
        return column

    def ids(self, name: str) -> pd.Series:
        """A column of ids, as text; none may be empty."""
        column = self.pick(name)
        missing = column.isna().to_numpy()
        if pd.api.types.is_float_dtype(column) and bool((column[~missing] % 1 == 0).all()):
            large = (column[~missing].abs() >= _LATEST).reindex(column.index, fill_value=False).to_numpy()
            self._refuse(large, column, "is no id: a float has not all of its digits; write ids as integers or text")
            column = column.astype("Int64")  # Parquet keeps integers with gaps as floats: 7.0 is the id 7
        text = column.astype("str")
        self._refuse(missing | (text == "").to_numpy(), text, "is empty: every row needs an id there")
        return text

    def ratings(self, name: str) -> Array:
        """A column of finite numbers, float64 `[N]`."""
        column = self.pick(name)
        values = _numbers(column)
        self._refuse(~np.isfinite(values), column, "is not a finite number")
        return values

    def features(self, key: str, name: str) -> pd.DataFrame:
        """A table of side information: the ids of column `key` first, as `name`; empty numeric cells are NaN."""
        ids = self.ids(key).rename(name)
        frame = self.frame.drop(columns=key)
        for each in sorted(self.numeric):
            column = self.pick(each)
            frame[each] = _numbers(column)
            empty = column.isna() | (column.astype("str") == "")
            self._refuse((frame[each].isna() & ~empty).to_numpy(), column, "is not a number")
        if name in frame.columns:
            raise RrecError(f"{self.path} has both '{key}' and '{name}'; one of them must have another name")
        return pd.concat([ids, frame], axis=1)

    def times(self, name: str, style: str) -> Array:
        """A column of times, seconds since 1970 `[N]`: int64, or float64 where there are fractions of them.

        style: `seconds`, `milliseconds`, `iso` or a strptime pattern such as %d/%m/%Y; without a zone it is UTC.
        """
        column = self.pick(name)
        if pd.api.types.is_datetime64_any_dtype(column):  # Parquet says what they are
            style = "iso"
        if style in ("seconds", "milliseconds"):
            values = _numbers(column) / (1000 if style == "milliseconds" else 1)
            self._refuse(~((values > _EARLIEST) & (values < _LATEST)), column, f"is not a time in {style}", OTHER_TIMES)
            return _seconds(values)
        if style != "iso" and "%" not in style:
            raise unknown("time format", style, ["seconds", "milliseconds", "iso", "a pattern such as %Y-%m-%d"])
        pattern = "ISO8601" if style == "iso" else style
        stamps = pd.to_datetime(column, utc=True, errors="coerce", format=pattern)
        self._refuse(stamps.isna().to_numpy(), column, f"is not a time of the format '{style}'", OTHER_TIMES)
        micros = stamps.dt.tz_localize(None).to_numpy().astype("datetime64[us]").astype(np.int64)
        return _seconds(micros / 1e6)

    def columns(self, names: Mapping[str, str]) -> pd.DataFrame:
        """Columns of ids under other names, `{name: column}`."""
        return pd.DataFrame({name: self.ids(column) for name, column in names.items()})

    def line(self, row: int) -> int:
        """The line in the file of a row of the frame (blank lines count, line breaks inside quotes do not)."""
        if self.path.suffix == ".parquet":
            return row + 1
        return _filled_lines(self.path)[row + self.header]

    def _refuse(self, bad: Array, column: pd.Series, complaint: str, hint: str = "") -> None:
        if bad.any():
            row = int(bad.argmax())
            more = f" (and {int(bad.sum()) - 1:,} more)" if bad.sum() > 1 else ""
            value = column.iloc[row]
            if not hint and re.fullmatch(r"[+-]?\d+,\d+", str(value)):
                hint = "numbers need a decimal point, 3.5 and not 3,5"
            told = f"{self.path}, line {self.line(row)}, column '{column.name}': '{value}' {complaint}{more}"
            raise RrecError(f"{told}; {hint}" if hint else told)


def read(file: File, path: Path) -> Sheet:
    """Read a table with the layout of `file`; `.parquet` needs none of it."""
    if path.suffix == ".parquet":
        return _read_parquet(path)
    names = {".tsv": "\t", ".tab": "\t", ".inter": "\t"}
    suffix = path.with_suffix("").suffix if path.suffix == ".gz" else path.suffix
    separator = names.get(suffix, ",") if file.separator is None else file.separator
    return read_text(path, SEPARATORS.get(separator, separator), file.quote, file.header, file.encoding)


def read_text(path: Path, separator: str, quote: str | None, header: bool, encoding: str) -> Sheet:
    """Read delimited text; RrecError for a missing or empty file, another encoding, a row of another length."""
    breaks = set("\r\n\0")
    usable = separator and separator != quote and not breaks & set(separator)
    if not usable or (quote and (len(quote) > 1 or not quote.isascii() or quote in breaks)):
        told = f"separator={separator!r}, quote={quote!r}"
        raise RrecError(f"{path}, {told}: a separator is needed, and for quote another single character or null")
    text = decode(path, encoding)
    if len(separator) > 1 or not separator.isascii():
        text, separator = text.replace(separator, _UNIT), _UNIT
    if not text.strip():
        raise RrecError(f"{path} is empty")
    first = text.lstrip("\r\n").partition("\n")[0].rstrip("\r")
    quoting: Literal[0, 3] = csv.QUOTE_MINIMAL if quote else csv.QUOTE_NONE
    try:
        cells = next(csv.reader([first], delimiter=separator, quotechar=quote, quoting=quoting))
    except csv.Error as error:
        hint = "; its lines end in CR, but LF or CRLF is needed" if "\r" in first else ""
        raise RrecError(f"{path} cannot be read as a table: {error}{hint}") from error
    if quote and quote in text:
        _refuse_open_quotes(path, text, separator, quote)
    names = cells if header else [str(position) for position in range(len(cells))]
    refuse_twins(path, names)

    wrong: list[Any] = []

    def refuse(row: Any) -> str:
        wrong.append(row)
        return "error"

    try:
        table = pa.csv.read_csv(
            io.BytesIO(text.lstrip("\r\n").encode()),
            read_options=pa.csv.ReadOptions(use_threads=False, column_names=names, skip_rows=int(header)),
            parse_options=pa.csv.ParseOptions(
                delimiter=separator,
                quote_char=quote or False,
                newlines_in_values=bool(quote),
                invalid_row_handler=refuse,
            ),
            convert_options=pa.csv.ConvertOptions(column_types=dict.fromkeys(names, pa.string())),
        )
    except pa.ArrowInvalid as error:
        if not wrong:
            raise RrecError(f"{path} cannot be read as a table: {str(error).partition(chr(10))[0]}") from error
        line = _filled_lines(path)[wrong[0].number - 1]
        found, expected = wrong[0].actual_columns, wrong[0].expected_columns
        hint = "" if len(cells) > 1 else f"; {RIGHT}"
        raise RrecError(f"{path}, line {line} has {found} columns where the first line has {expected}{hint}") from error
    if not len(table):
        raise RrecError(f"{path} has a header and no rows")
    return Sheet(path, table.to_pandas(), int(header))


def _refuse_open_quotes(path: Path, text: str, separator: str, quote: str) -> None:
    """RrecError for a quote that is not closed where its cell ends, and would take the next rows with it."""
    lines = csv.reader(io.StringIO(text, newline=""), delimiter=separator, quotechar=quote, strict=True)
    first = 1
    try:
        for _ in lines:
            first = lines.line_num + 1
    except csv.Error as error:
        if "field limit" in str(error):  # of the csv module; a long text is no mistake
            return
        told = f"{path}, line {first}: a cell begins with {quote} and does not end with it ({error})"
        raise RrecError(f"{told}; quote=null takes quotes as they are") from error


def locate(path: str) -> Path:
    """A path of a config: from the working directory, `~` is the home directory."""
    return Path(path).expanduser()


def decode(path: Path, encoding: str) -> str:
    """The text of a file; RrecError for a missing file, an unknown encoding, the first line that is not in it."""
    content = read_bytes(path)
    try:
        return content.decode("utf-8-sig" if re.fullmatch("utf-?8", encoding, re.IGNORECASE) else encoding)
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise RrecError(f"{path}, line {line} is not {encoding}; e.g. dataset.encoding=latin-1 reads others") from error
    except (LookupError, UnicodeError) as error:
        raise RrecError(f"{path} cannot be read as {encoding}: {error}") from error


def read_bytes(path: Path) -> bytes:
    """The content of a file, unpacked if it is gzip's; RrecError when it cannot be read."""
    try:
        content = path.read_bytes()
        return gzip.decompress(content) if content.startswith(GZIP) else content
    except FileNotFoundError:
        raise RrecError(f"{path} does not exist") from None
    except IsADirectoryError:
        raise RrecError(f"{path} is a folder, not a file; null where there is none") from None
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise RrecError(f"{path} is no whole gzip file: {error}") from error
    except OSError as error:
        raise RrecError(f"{path} cannot be read: {error.strerror or error}") from error


def _seconds(values: Array) -> Array:
    """As integers, unless the order of events within a second is told too."""
    return values.astype(np.int64) if bool((values % 1 == 0).all()) else values


def _numbers(column: pd.Series) -> Array:
    return pd.to_numeric(column, errors="coerce").to_numpy(dtype=np.float64, na_value=np.nan)


def _read_parquet(path: Path) -> Sheet:
    try:
        table = pa.parquet.read_table(io.BytesIO(read_bytes(path)))
    except pa.ArrowException as error:
        raise RrecError(f"{path} is not a Parquet file: {str(error).partition(chr(10))[0]}") from error
    kept = [name for name in table.column_names if not name.startswith("__index_level_")]  # pandas' row numbers
    flat = {name: _flat(path, name, table[name]) for name in kept}
    frame = pa.table({name: column for name, column in flat.items() if column is not None}).to_pandas()
    if frame.empty:
        raise RrecError(f"{path} has no rows")
    return Sheet(path, frame)


def _flat(path: Path, name: str, column: pa.ChunkedArray) -> pa.ChunkedArray | None:
    """A column of Parquet as a text file could have it: true is 1, a list its values with `|` between them."""
    kind = column.type
    if pa.types.is_boolean(kind):
        return column.cast(pa.int8())
    if pa.types.is_decimal(kind):
        return column.cast(pa.float64()) if kind.scale else _whole(column)
    if pa.types.is_date(kind):
        return column.cast(pa.timestamp("s"))
    if not pa.types.is_nested(kind):
        return column
    if (pa.types.is_list(kind) or pa.types.is_large_list(kind)) and not pa.types.is_nested(kind.value_type):
        return pa.compute.binary_join(column.cast(pa.list_(pa.string())), "|")
    log.warning("%s: column '%s' holds %s and is left out", path, name, kind)
    return None


def _whole(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Whole decimals to the last digit, since they may be ids; as text where they are longer than other numbers."""
    try:
        return column.cast(pa.int64())
    except pa.ArrowInvalid:
        return column.cast(pa.string())


def refuse_twins(path: Path, names: Sequence[str]) -> None:
    """RrecError when two columns have one name."""
    twins = sorted({name for name in names if names.count(name) > 1})
    if twins:
        raise RrecError(f"{path} names the column '{twins[0]}' twice; header=false is for a file without names")


def _filled_lines(path: Path) -> list[int]:
    return [number for number, line in enumerate(read_bytes(path).split(b"\n"), 1) if line.strip(b"\r")]
