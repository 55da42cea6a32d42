"""A report as one HTML file, or as Markdown, CSV and LaTeX in a folder beside it."""

import csv
import io
import re
from base64 import b64encode
from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

from robustbench_rec import __version__
from robustbench_rec.files import write_text
from robustbench_rec.reports import plots
from robustbench_rec.reports.page import Cell, Figure, Page, Table
from robustbench_rec.significance import Spread

FORMATS = ("html", "md", "csv", "tex")


def write(page: Page, out: Path, formats: Sequence[str]) -> list[Path]:
    """Write the formats asked for: `out` itself is the HTML file, the others lie in a folder of its name."""
    out.parent.mkdir(parents=True, exist_ok=True)
    written = []
    if "html" in formats:
        write_text(out, html("report.html.j2", page=page, drawn=_drawn(page)))
        written.append(out)
    folder = out.with_suffix("") if out.suffix else out.with_name(f"{out.name}.d")
    if set(formats) - {"html"}:
        folder.mkdir(exist_ok=True)
    if "csv" in formats:
        for each in page.tables:
            write_text(folder / f"{each.name}.csv", _csv(each))
            written.append(folder / f"{each.name}.csv")
    if "md" in formats:
        for figure in page.figures:
            plots.write(figure.draw(), folder / f"{figure.name}.png")
        write_text(folder / "report.md", markdown(page))
        written.append(folder / "report.md")
    if "tex" in formats:
        write_text(folder / "report.tex", latex(page))
        written.append(folder / "report.tex")
    return written


def html(template: str, **shown: Any) -> str:
    """A page that needs nothing but itself; whatever is not marked as safe is escaped, and no other script can run."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("robustbench_rec.reports", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    script = environment.loader.get_source(environment, "page.js")[0] if environment.loader else ""
    digest = b64encode(sha256(script.encode()).digest()).decode()
    return environment.get_template(template).render(version=__version__, script=script, digest=digest, **shown)


def _drawn(page: Page) -> Mapping[str, str]:
    return {each.name: plots.svg(each.draw(), each.name) for each in page.figures}


def _csv(table: Table) -> str:
    """Means and standard deviations in full precision, each in a column of its own where there are several seeds."""
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    spread = [any(isinstance(row[at].value, Spread) for row in table.rows) for at in range(len(table.columns))]
    header: list[str] = []
    for name, has in zip(table.columns, spread, strict=True):
        header += [name, f"{name} sd", f"{name} n"] if has else [name]
    rows.writerow(header)
    for row in table.rows:
        cells: list[Any] = []
        for cell, has in zip(row, spread, strict=True):
            value = cell.value
            if has and isinstance(value, Spread):
                cells += [_known(value.mean), _known(value.std), value.n]
            else:
                cells += [_known(value), *([None, None] if has else [])]
        rows.writerow(cells)
    return text.getvalue()


def _known(value: Any) -> Any:
    return None if isinstance(value, float) and value != value else value


def markdown(page: Page) -> str:
    """The whole page, with its figures as PNG files beside it."""
    lines = [f"# {_md(page.title)}", "", _md(page.subtitle), "", *(f"- {_md(each)}" for each in page.summary)]
    for section in page.sections:
        lines += ["", f"## {_md(section.title)}", *(["", _md(section.text)] if section.text else [])]
        for block in section.blocks:
            lines += ["", f"### {_md(block.title)}", ""]
            if isinstance(block, Figure):
                lines.append(f"![{_md(block.title)}]({block.name}.png)")
            else:
                cells = [[_md(f"{cell.text} {cell.mark}".strip()) for cell in row] for row in block.rows]
                lines += [_row(list(map(_md, block.columns))), _row(["---"] * len(block.columns)), *map(_row, cells)]
            lines += ["", _md(block.note)] if block.note else []
    lines += ["", *(_md(each) for each in page.notes)]
    return "\n".join(lines).rstrip() + "\n"


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _md(text: str) -> str:
    """Without the signs that Markdown or HTML in it would read."""
    return re.sub(r"([\\`*_{}\[\]|#<>])", r"\\\1", " ".join(text.split()))


def latex(page: Page) -> str:
    """The tables, for `booktabs`, without those that are folded; the best value of a column is bold."""
    parts = ["% Tables of rrec report: \\usepackage{booktabs}"]
    for table in (each for each in page.tables if not each.folded):
        columns = "".join("l" if all(row[at].number is None for row in table.rows) else "r" for at in _places(table))
        rows = [" & ".join(map(_tex, table.columns)) + r" \\", r"\midrule"]
        rows += [" & ".join(map(_tex_cell, row)) + r" \\" for row in table.rows]
        parts += [
            "",
            r"\begin{table}",
            rf"\caption{{{_tex(table.title)}}}\label{{tab:{_tex(table.name).replace(chr(92), '')}}}",
            rf"\begin{{tabular}}{{{columns}}}",
            r"\toprule",
            *rows,
            r"\bottomrule",
            r"\end{tabular}",
            *([rf"\par\smallskip {_tex(note)}"] if (note := _note(table)) else []),
            r"\end{table}",
        ]
    return "\n".join(parts) + "\n"


NOISY = ("≈ best", "within noise")
MARKS = "Bold: best; ≈: as good as the best, or no more than nothing, within seed noise."


def _note(table: Table) -> str:
    """What stands under a table, its marks explained."""
    marked = any(cell.mark in ("best", *NOISY) for row in table.rows for cell in row)
    return f"{table.note}{f' {MARKS}' if marked else ''}".strip()


def _tex_cell(cell: Cell) -> str:
    if cell.mark == "best":
        return rf"\textbf{{{_tex(cell.text)}}}"
    return _tex(cell.text) + (r"$^{\approx}$" if cell.mark in NOISY else "")


def _places(table: Table) -> range:
    return range(len(table.columns))


TEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "–": "--",
    "±": r"$\pm$",
    "≈": r"$\approx$",
    "≤": r"$\leq$",
    "→": r"$\to$",
    "←": r"$\leftarrow$",
    "α": r"$\alpha$",
    "×": r"$\times$",
    "Δ": r"$\Delta$",
    "√": r"$\surd$",
    "²": r"$^2$",
    "≥": r"$\geq$",
    "·": r"$\cdot$",
    "“": "``",
    "”": "''",
    "…": r"\dots{}",
    **{each: f"\\{each}" for each in "&%$#_{}"},
}


def _tex(text: str) -> str:
    return "".join(TEX.get(each, each) for each in " ".join(text.split()))
