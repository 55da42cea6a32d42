"""`rrec data`: fetch datasets, look into them, list them."""

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from rich.filesize import decimal
from rich.table import Column, Table

from robustbench_rec import config
from robustbench_rec.console import Output
from robustbench_rec.datasets import datasets, root

if TYPE_CHECKING:
    from torch import Tensor

    from robustbench_rec.data import Data

console = Output()


def fetch(cfg: config.Dataset) -> None:
    """Bring a dataset into the data directory and say where its files are."""
    place = root(cfg.data_dir)
    source = datasets.build(cfg.dataset)
    source.fetch(place)
    files = source.files(place)
    name = cfg.dataset["name"]
    if not files:
        console.print(f"{name} is computed, there is nothing to fetch")
    for path in files:
        console.print(f"{path}  {decimal(path.stat().st_size)}" if path.is_file() else f"{path}  [red]missing[/red]")


def info(cfg: config.Dataset) -> None:
    """Show what a dataset looks like once it is prepared, and what cleaning found."""
    from robustbench_rec.prepare import load

    data = load(cfg, cfg.data_dir)
    console.print(_overview(data))
    console.print(_findings(data))


def ls(data_dir: str | None) -> None:
    """List the datasets with what the data directory holds of each."""
    place = root(data_dir)
    table = Table("dataset", "what", "fetched", "prepared", title=f"datasets in {place}", title_justify="left")
    for name in datasets:
        fetched = sum(_folder_size(place / folder) for folder in (name, name.replace("_", "-")))
        copies = sorted((place / "prepared").glob(f"{name}-*"))
        prepared = f"{len(copies)} × {decimal(sum(map(_folder_size, copies)) // len(copies))}" if copies else "–"
        table.add_row(name, datasets.describe(name), decimal(fetched) if fetched else "–", prepared)
    console.print(table)


def _overview(data: "Data") -> Table:
    import torch

    table = Table("", Column(overflow="fold"), title=data.name, title_justify="left", show_header=False)
    parts = {name: data.part(name) for name in ("train", "valid", "test")}
    total = sum(map(len, parts.values()))
    table.add_row("users, items", f"{data.n_users:,}, {data.n_items:,}")
    table.add_row("events", f"{total:,}  ({', '.join(f'{name} {len(part):,}' for name, part in parts.items())})")
    table.add_row("density", f"{total / (data.n_users * data.n_items):.4%}")
    values = torch.cat([part.values for part in parts.values()])
    if "rating" in data.has:
        table.add_row("ratings", _histogram(values))
    if "time" in data.has:
        times = torch.cat([part.times for part in parts.values() if part.times is not None])
        table.add_row("time", " … ".join(_day(int(each)) for each in times.aminmax()))
    users = torch.cat([part.users for part in parts.values()])
    items = torch.cat([part.items for part in parts.values()])
    table.add_row("events a user", _quantiles(torch.bincount(users)))
    table.add_row("events an item", _quantiles(torch.bincount(items)))
    if data.kg is not None:
        kg = data.kg
        table.add_row(
            "knowledge graph", f"{len(kg):,} triples, {kg.n_entities:,} entities, {kg.n_relations:,} relations"
        )
        table.add_row("linked items", f"{int(kg.linked.sum()):,} of {data.n_items:,}")
    for name, features in (("item features", data.item_table), ("user features", data.user_table)):
        if features is not None:
            table.add_row(name, ", ".join(map(str, features.columns)))
    if data.truth:
        table.add_row("ground truth", ", ".join(data.truth))
    table.add_row("fingerprint", data.fingerprint)
    return table


def _day(seconds: int) -> str:
    """Of a time; the number where it is in no year that a calendar has."""
    try:
        return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d}"
    except (ValueError, OverflowError, OSError):
        return f"{seconds:,} seconds"


def _findings(data: "Data") -> Table:
    from robustbench_rec.prepare.report import DEFECTS, NOTES

    table = Table("rule", "count", "what", title="cleaning", title_justify="left")
    for rule, count in data.report.items():
        table.add_row(rule, f"{count:,}", (DEFECTS | NOTES)[rule], style=None if count else "dim")
    return table


def _histogram(values: "Tensor") -> str:
    """Share of each value; of ten ranges where there are many values."""
    import torch

    levels, counts = torch.unique(values, return_counts=True)
    names = [f"{level:g}" for level in levels.tolist()]
    if len(levels) > 12:
        low, high = (float(each) for each in values.aminmax())
        counts = values.histc(10, low, high)
        names = [f"{low + step * (high - low) / 10:.3g}…" for step in range(10)]
    return "  ".join(f"{name}: {count / len(values):.1%}" for name, count in zip(names, counts.tolist(), strict=True))


def _quantiles(counts: "Tensor") -> str:
    shares = (0.0, 0.25, 0.5, 0.75, 1.0)
    ordered = counts.sort().values
    found = [int(ordered[round(share * (len(ordered) - 1))]) for share in shares]
    return "least {}, quartiles {}, {}, {}, most {}".format(*found) + f", mean {counts.float().mean():.1f}"


def _folder_size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("*") if path.is_file()) if folder.is_dir() else 0
