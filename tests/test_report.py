"""rrec report, on runs of the synthetic data."""

import csv
import html
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from statistics import mean, stdev

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from conftest import compose
from omegaconf import OmegaConf
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from scipy import stats
from test_tasks import DATA, JUDGED, MODEL, VERBS
from typer.testing import CliRunner

from robustbench_rec import composing
from robustbench_rec.cli import app
from robustbench_rec.errors import RrecError
from robustbench_rec.files import write_json
from robustbench_rec.reports import plots
from robustbench_rec.reports.apart import differing
from robustbench_rec.reports.page import Cell, Page, Section, Table
from robustbench_rec.reports.reading import Book, Found, filled, read, runs
from robustbench_rec.reports.render import latex
from robustbench_rec.reports.sections import page as page_of
from robustbench_rec.reports.sections.cells import change, marked, table_of
from robustbench_rec.reports.sections.compared import Pair
from robustbench_rec.reports.sections.summary import _attacked_beside
from robustbench_rec.significance import Comparison, Estimate, Spread, holm, paired
from robustbench_rec.tasks.report import run as report

TRAINED = (*DATA, *JUDGED, *MODEL["mf"], "epochs=4", "batch_size=256", "lr=0.05")
BROWSER = next((each for each in ("chromium", "chromium-browser", "google-chrome") if shutil.which(each)), None)
VOID = {"area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "source", "track", "wbr"}


def done(verb: str, out: Path, *overrides: str) -> dict[str, float]:
    """A run as `rrec` leaves it."""
    out.mkdir(parents=True)
    words = list({each.partition("=")[0]: each for each in overrides}.values())
    composed = compose(verb, *words)
    (out / ".hydra").mkdir()
    (out / ".hydra" / "config.yaml").write_text(OmegaConf.to_yaml(composed))
    (out / ".hydra" / "overrides.yaml").write_text(yaml.safe_dump(words))
    told = {"hydra": {"job": {"config_name": verb}, "runtime": {"cwd": str(out.parent)}}}
    (out / ".hydra" / "hydra.yaml").write_text(yaml.safe_dump(told))
    metrics: dict[str, float] = VERBS[verb].run(composing.typed(composed, verb), out)
    write_json(out / "metrics.json", metrics)
    return metrics


@pytest.fixture(scope="module")
def there(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two models with two seeds each, attacked with two budgets; a fine-tuned one, a frontier, a failed run."""
    root = tmp_path_factory.mktemp("runs")
    for seed in (0, 1):
        for name, words in (("plain", ["trajectory=1"]), ("apr", ["defense=apr", "defense.eps=0.5"])):
            done("train", root / "train" / f"{name}{seed}", *TRAINED, *words, f"seed={seed}")
            for eps in (0.2, 0.5):
                out = root / "attack" / f"{name}{seed}-{eps}"
                done("attack", out, f"ckpt='{root}/train/{name}{seed}'", *JUDGED, f"eps={eps}", "attack.steps=2")
    words = ["epochs=1", "alphas=3", "criticality.pairs=200", "attack.steps=1", "batch_size=256"]
    done("finetune", root / "tuned", f"ckpt='{root}/train/plain0'", *JUDGED, *words)
    words = ["eps=0.2", "attack.steps=1", f"frontier='{root}/train/plain0'"]
    done("attack", root / "frontier", f"ckpt='{root}/train/apr0'", *JUDGED, *words)
    failed = root / "failed"
    (failed / ".hydra").mkdir(parents=True)
    (failed / ".hydra" / "config.yaml").write_text("model: {name: mf}\nseed: 0\n")
    (failed / ".hydra" / "hydra.yaml").write_text("hydra: {job: {config_name: train}}\n")
    (failed / ".hydra" / "overrides.yaml").write_text("['+x=<script>alert(1)</script>', 'model=mf']\n")
    (failed / "train.log").write_text("[2026-01-01][rrec][ERROR] - lr must not be <b>negative</b>\n")
    return root


@pytest.fixture(scope="module")
def written(there: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("report") / "report.html"
    report([there], out, ["html", "md", "csv", "tex"], 2, None)
    return out


def browse(*words: str) -> str:
    assert BROWSER is not None
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", *words]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout


def dumped(page: Path, profile: Path) -> str:
    """The page once its script has run."""
    return browse("--dump-dom", f"--user-data-dir={profile}", page.as_uri())


class Reader(HTMLParser):
    """Tables by their id, as rows of (text, value), and whether every element is closed."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.tables: dict[str, list[list[tuple[str, str | None]]]] = {}
        self.cell: list[str] | None = None

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        if found.get("id"):
            self.ids.append(str(found["id"]))
        if tag == "table":
            self.table = self.tables.setdefault(str(found["id"]).removeprefix("t-"), [])
        elif tag == "tr":
            self.table.append([])
        elif tag in ("td", "th"):
            self.cell, self.value = [], found.get("data-value")
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.ids += [str(value) for name, value in attrs if name == "id"]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag
        if tag in ("td", "th") and self.cell is not None:
            self.table[-1].append((" ".join("".join(self.cell).split()), self.value))
            self.cell = None

    def handle_data(self, data: str) -> None:
        if self.cell is not None:
            self.cell.append(data)


@pytest.fixture(scope="module")
def page(written: Path) -> Reader:
    reader = Reader()
    reader.feed(written.read_text(encoding="utf-8"))
    reader.close()
    return reader


def columns(page: Reader, name: str) -> list[dict[str, tuple[str, str | None]]]:
    head, *rows = page.tables[name]
    return [dict(zip([text for text, _ in head], row, strict=True)) for row in rows]


def metrics(path: Path) -> dict[str, float]:
    found: dict[str, float] = json.loads((path / "metrics.json").read_text())
    return found


def test_the_page_is_well_formed_and_asks_for_nothing_from_elsewhere(written: Path, page: Reader) -> None:
    text = written.read_text(encoding="utf-8")
    assert page.open == []
    assert len(page.ids) == len(set(page.ids))
    assert not re.search(r"""(?:src|href)\s*=\s*["'](?!#|data:)""", re.sub(r'xmlns:?\w*="[^"]*"', "", text))
    assert not re.search(r"url\((?!#)|@import", text)


def test_the_numbers_of_the_clean_table_are_the_means_of_the_runs(there: Path, page: Reader) -> None:
    rows = {row["model"][0]: row for row in columns(page, "clean")}
    assert set(rows) == {"mf", "mf + apr", "mf → rawp_ft"}
    for label, name in (("mf", "plain"), ("mf + apr", "apr")):
        values = [metrics(there / "train" / f"{name}{seed}")["test/ndcg@10"] for seed in (0, 1)]
        text, value = rows[label]["ndcg@10"]
        assert float(value or "nan") == pytest.approx(mean(values), abs=1e-12)
        assert text.startswith(f"{mean(values):.4f} ± {stdev(values):.4f}")
        assert rows[label]["runs"][0] == "2"


def test_the_numbers_of_the_robust_table_are_those_of_the_attack_runs(there: Path, page: Reader) -> None:
    rows = {(row["model"][0], row["eps"][0]): row for row in columns(page, "robust")}
    assert len(rows) == 4
    for (label, eps), row in rows.items():
        name = "apr" if "apr" in label else "plain"
        found = [metrics(there / "attack" / f"{name}{seed}-{eps}") for seed in (0, 1)]
        for column, key in (("clean ndcg@10", "clean/ndcg@10"), ("attacked ndcg@10", "attacked/ndcg@10")):
            assert float(row[column][1] or "nan") == pytest.approx(mean(each[key] for each in found), abs=1e-12)
        assert row["drop"][0].startswith(f"{100 * mean(each['drop/ndcg@10'] for each in found):.1f} %")


def test_there_are_curves_a_trade_off_criticality_and_a_frontier(written: Path, page: Reader, there: Path) -> None:
    text = written.read_text(encoding="utf-8")
    assert text.count("<svg") == 5  # security curve, trade-off, criticality, alpha, frontier
    assert "currentColor" in text
    told = re.findall(r"<title>mf \+ apr, eps 0.5: ([\d.]+)", html.unescape(text))
    values = [metrics(there / "attack" / f"apr{seed}-0.5")["attacked/ndcg@10"] for seed in (0, 1)]
    assert told == [f"{mean(values):.4f}"]
    gap = metrics(there / "frontier")["frontier/gap"]
    assert float(columns(page, "frontier")[0]["beyond the frontier"][1] or "nan") == gap


def values_of(run: Path, name: str) -> np.ndarray:
    found: np.ndarray = load_file(run / "by_user.safetensors")[name].astype(float)
    return found


def test_defended_models_are_compared_with_no_defence_user_by_user(page: Reader, there: Path) -> None:
    rows = {(row["model"][0], row["on"][0]): row for row in columns(page, "compared")}
    assert set(rows) == {
        ("mf + apr", "test"),
        ("mf → rawp_ft", "test"),
        *(("mf + apr", f"pgd embedding l2 with eps {eps}") for eps in (0.2, 0.5)),
    }
    raw = []
    for (label, on), row in rows.items():
        folder, name = ("train", "test/ndcg@10") if on == "test" else ("attack", "attacked/ndcg@10")
        end = "" if on == "test" else f"-{on.split()[-1]}"
        theirs = [there / folder / f"plain{seed}{end}" for seed in (0, 1)]
        ours = [there / folder / f"apr{seed}{end}" for seed in (0, 1)] if "apr" in label else [there / "tuned"]
        expected = mean(metrics(each)[name] for each in ours) - mean(metrics(each)[name] for each in theirs)
        assert float(row["difference"][1] or "nan") == pytest.approx(expected, abs=1e-12)
        one, two = (np.mean([values_of(each, name) for each in runs], 0) for runs in (ours, theirs))
        difference = (one - two)[~np.isnan(one - two)]
        assert difference.mean() == pytest.approx(expected, abs=1e-6)
        judge = stats.bootstrap((difference,), np.mean, method="percentile", n_resamples=4000, rng=0)
        low, high = (float(row[column][1] or "nan") for column in ("95 % from", "to"))
        width = judge.confidence_interval.high - judge.confidence_interval.low
        assert (low, high) == pytest.approx(tuple(judge.confidence_interval), abs=0.12 * width)
        assert float(row["dz"][1] or "nan") == pytest.approx(difference.mean() / difference.std(ddof=1), rel=1e-4)
        assert row["by"][0] == "users"
        raw.append(paired(*(torch.from_numpy(each)[None] for each in (one, two)))[0].difference.p)
        spreads = [[metrics(each)[name] for each in runs] for runs in (ours, theirs)]
        if len(ours) > 1 and abs(expected) <= np.hypot(*(stdev(each) for each in spreads)):
            assert row["verdict"][0] == "within seed noise"
    adjusted = [float(row["p (Holm)"][1] or "nan") for row in rows.values()]
    assert adjusted == pytest.approx(holm(raw))
    assert adjusted != pytest.approx(raw)


def test_other_protocols_are_compared_and_what_training_told_is_not_told_twice(there: Path, tmp_path: Path) -> None:
    for name in ("plain0", "apr0"):
        shutil.copytree(there / "train" / name, tmp_path / name)
        for number, words in enumerate(([], ["protocol=sampled", "n_negatives=9"], ["part=valid"])):
            done("eval", tmp_path / f"{name}-{number}", f"ckpt='{tmp_path}/{name}'", *JUDGED, *words)
    report([tmp_path], tmp_path / "r.html", ["csv"], 0, None)
    rows = {row["on"]: row for row in csv.DictReader((tmp_path / "r" / "compared.csv").open())}
    assert list(rows) == ["test", "test, sampled", "valid, full"]
    for number, on, name in ((1, "test, sampled", "test/ndcg@10"), (2, "valid, full", "valid/ndcg@10")):
        ours, theirs = (metrics(tmp_path / f"{each}-{number}")[name] for each in ("apr0", "plain0"))
        assert float(rows[on]["difference"]) == pytest.approx(ours - theirs)
        assert rows[on]["by"] == "users"


def test_runs_on_several_splits_are_compared_by_seeds_on_those_that_both_have(tmp_path: Path) -> None:
    for name, defense in (("plain", []), ("apr", ["defense=apr", "defense.eps=0.5"])):
        for split in (0, 1) if name == "plain" else (0, 1, 2):
            words = ["split=random", f"split.seed={split}", "epochs=2"]
            done("train", tmp_path / f"{name}{split}", *TRAINED, *defense, *words)
    report([tmp_path], tmp_path / "r.html", ["csv"], 0, None)
    (row,) = csv.DictReader((tmp_path / "r" / "compared.csv").open())
    gaps = [
        metrics(tmp_path / f"apr{split}")["test/ndcg@10"] - metrics(tmp_path / f"plain{split}")["test/ndcg@10"]
        for split in (0, 1)  # the third split has no undefended run
    ]
    assert float(row["difference"]) == pytest.approx(mean(gaps))
    assert row["by"] == "seeds"


@pytest.mark.parametrize("spoil", ["missing", "garbage", "others", "fewer", "infinite"])
def test_without_values_of_users_seeds_are_compared_and_the_report_says_so(
    there: Path, tmp_path: Path, spoil: str
) -> None:
    for name in ("plain0", "plain1", "apr0", "apr1"):
        shutil.copytree(there / "train" / name, tmp_path / name)
    file = tmp_path / "apr1" / "by_user.safetensors"
    tensors = load_file(file)
    with safe_open(file, "np") as opened:
        notes = opened.metadata()
    if spoil == "fewer":
        tensors = {name: each[:-1].copy() for name, each in tensors.items()}
    if spoil == "infinite":
        tensors["test/ndcg@10"][0] = np.inf
    save_file(tensors, file, {"users": "somebody else"} if spoil == "others" else notes)
    if spoil == "missing":
        file.unlink()
    if spoil == "garbage":
        file.write_bytes(b"garbage")
    report([tmp_path], tmp_path / "r.html", ["csv", "md"], 0, None)
    (row,) = csv.DictReader((tmp_path / "r" / "compared.csv").open())
    assert row["by"] == "seeds"
    assert row["95 % from"] == row["p (Holm)"] == row["dz"] == ""
    assert row["verdict"] in ("better", "worse", "within seed noise")
    assert "Compared by seeds: values of the same users are not there" in (tmp_path / "r" / "report.md").read_text()


def pair(
    ours: tuple[float, ...],
    theirs: tuple[float, ...],
    p: float | None = None,
    metric: str = "ndcg@10",
    side: str = "test",
    on: str = "test",
) -> Pair:
    """Of runs with these metrics; p: of the users, None where their values are missing."""
    runs_ = [
        [Found(Path(), "train", {}, [], {}, {f"{side}/{metric}": each}, None, Path()) for each in values]
        for values in (ours, theirs)
    ]
    users = None if p is None else Comparison(Estimate(0.1, 0.05, 0.15, p), 0.3, 0.3)
    return Pair("a", "b", on, side, metric, (runs_[0], runs_[1]), users, float("nan") if p is None else p)


def test_the_summary_says_what_is_sure_under_other_attacks_than_the_usual_one() -> None:
    beside = [
        pair(ours, (0.3, 0.32), 0.001, side="attacked", on=on)
        for on, ours in (
            ("pgd", (0.31, 0.32)),
            ("fgm", (0.5, 0.52)),
            ("bim", (0.31, 0.3)),
            *((f"a{n}", (0.1, 0.1)) for n in range(3)),
        )
    ]
    told = _attacked_beside(beside, "pgd")
    assert [each.partition(":")[0] for each in told[:-1]] == [
        "Beside no defence, under pgd",
        "Beside no defence, under fgm",
        "Beside no defence, under a0",
    ]
    assert told[-1].startswith("2 more attacks")
    assert "bim" not in "".join(told)
    assert _attacked_beside(beside[:1], "") == []
    (told,) = _attacked_beside([pair((0.5, 0.52), (0.3, 0.32), 0.098, side="attacked", on="pgd")], "pgd")
    assert told.endswith("+0.0500 to +0.1500 (may be chance, p 0.098 after Holm).")


@pytest.mark.parametrize(
    ("told", "verdict"),
    [
        (pair((0.5, 0.52), (0.3, 0.32), 0.001), "better"),
        (pair((0.3, 0.32), (0.5, 0.52), 0.001), "worse"),
        (pair((0.3, 0.32), (0.5, 0.52), 0.001, "rmse"), "better"),
        (pair((0.5, 0.52), (0.3, 0.32), 0.2), "may be chance"),
        (pair((0.3, 0.32), (0.5, 0.52), 0.001, "ece"), "better"),
        (pair((0.3, 0.32), (0.5, 0.52), 0.001, "gini@10"), "lower"),
        (pair((0.5, 0.2), (0.3, 0.32), 0.001), "within seed noise"),
        (pair((0.5,), (0.3,), 0.001), "better, one seed"),
        (pair((0.5,), (0.3,), 0.2), "may be chance"),
        (pair((0.5, 0.52), (0.3, 0.32)), "better"),
        (pair((0.5, 0.2), (0.3, 0.32)), "within seed noise"),
        (pair((0.5,), (0.3,)), "unknown: one seed"),
        (pair((0.5,), (0.5,), 1.0), "the same"),
    ],
)
def test_a_difference_is_a_finding_beyond_chance_and_beyond_seed_noise_only(told: Pair, verdict: str) -> None:
    assert told.verdict == verdict


def test_a_change_that_is_no_more_than_its_spread_over_seeds_is_marked() -> None:
    assert [change(each).mark for each in (Spread(-0.01, 0.02, 3), Spread(0.03, 0.02, 3), Spread(0.0, 0.0, 1))] == [
        "within noise",
        "",
        "",
    ]


def test_poisons_that_differ_in_seeds_are_one_row(there: Path, tmp_path: Path) -> None:
    shutil.copytree(there / "train" / "plain0", tmp_path / "plain")
    changes = []
    for seed in (0, 1):
        words = [f"ckpt='{tmp_path}/plain'", *JUDGED, "poison=random", "poison.size=0.1", f"poison.seed={seed}"]
        changes.append(done("attack", tmp_path / f"p{seed}", *words)["change/ndcg@10"])
    report([tmp_path], tmp_path / "r.html", ["csv"], 0, None)
    rows = list(csv.DictReader((tmp_path / "r" / "poisoned.csv").open()))
    (row,) = (each for each in rows if each["metric"] == "ndcg@10")
    assert row["runs"] == "2"
    assert float(row["change"]) == pytest.approx(mean(changes))
    assert float(row["change sd"]) == pytest.approx(stdev(changes))
    done("attack", tmp_path / "more", *words[:-2], "poison.size=0.2", "poison.seed=0")
    report([tmp_path], tmp_path / "r.html", ["csv"], 0, None)
    rows = list(csv.DictReader((tmp_path / "r" / "poisoned.csv").open()))
    assert {each["poison"]: each["runs"] for each in rows} == {
        "random (poison.size=0.1)": "2",
        "random (poison.size=0.2)": "1",
    }


def test_gates_say_which_limits_were_kept(there: Path, tmp_path: Path) -> None:
    shutil.copytree(there / "train" / "plain0", tmp_path / "plain")
    words = (f"ckpt='{tmp_path}/plain'", *JUDGED)
    checked = done("gate", tmp_path / "open", *words, "at_least={ndcg@10: 0}")
    with pytest.raises(RrecError, match="the gate is shut"):
        done("gate", tmp_path / "shut", *words, "at_least={ndcg@10: 0, hr@10: 2}")
    report([tmp_path], tmp_path / "r.html", ["csv"], 0, None)
    rows = list(csv.DictReader((tmp_path / "r" / "gates.csv").open()))
    told = [(each["run"].partition("/")[2], each["check"], each["wanted"], each["verdict"]) for each in rows]
    assert told == [
        ("open", "clean: ndcg@10", "at least 0", "pass"),
        ("shut", "clean: ndcg@10", "at least 0", "pass"),
        ("shut", "clean: hr@10", "at least 2", "fail"),
    ]
    assert {float(each["found"]) for each in rows[:2]} == {round(checked["ckpt/clean/ndcg@10"], 4)}


def test_the_words_at_the_head_say_what_the_defence_is_worth(written: Path, page: Reader) -> None:
    text = " ".join(html.unescape(written.read_text(encoding="utf-8")).split())
    (row,) = (each for each in columns(page, "compared") if (each["model"][0], each["on"][0]) == ("mf + apr", "test"))
    told = f"mf + apr {float(row['difference'][1] or 'nan'):+.4f}, 95 % {float(row['95 % from'][1] or 'nan'):+.4f} to"
    assert "Beside no defence, on clean data: " in text
    assert told in text
    assert f"({row['verdict'][0]})" in text


def test_lists_before_and_after_are_those_of_the_attack(page: Reader) -> None:
    names = [name for name in page.tables if name.startswith("lists_")]
    assert len(names) == 4  # two users of two models
    rows = columns(page, "lists_1_1")
    assert len(rows) == 10
    before, after = ([row[side][0] for row in rows] for side in ("before the attack", "after it"))
    assert sum("hit" in each for each in before) > sum("hit" in each for each in after)


def test_what_the_runs_say_is_escaped_and_failed_runs_are_listed(written: Path, page: Reader) -> None:
    text = written.read_text(encoding="utf-8")
    assert "<script>alert" not in text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text
    (row,) = columns(page, "failed")
    assert row["why"][0] == "lr must not be <b>negative</b>"
    assert "1 of 15 runs has no results" in text
    markdown = (written.with_suffix("") / "report.md").read_text()
    assert "<script>" not in markdown


def test_the_only_script_that_may_run_is_that_of_the_page(written: Path) -> None:
    from base64 import b64encode
    from hashlib import sha256

    text = written.read_text(encoding="utf-8")
    (script,) = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    assert f"'sha256-{b64encode(sha256(script.encode()).digest()).decode()}'" in text


def test_the_other_formats_have_the_same_numbers(written: Path, page: Reader, there: Path) -> None:
    folder = written.with_suffix("")
    rows = list(csv.DictReader((folder / "clean.csv").open()))
    shown = {row["model"][0]: row for row in columns(page, "clean")}
    for row in rows:
        assert float(row["ndcg@10"]) == float(shown[row["model"]]["ndcg@10"][1] or "nan")
    markdown, latex = ((folder / f"report.{each}").read_text() for each in ("md", "tex"))
    text = shown["mf"]["ndcg@10"][0].removesuffix(" best").removesuffix(" ≈ best")
    assert text in markdown
    assert text.replace("±", r"$\pm$") in latex
    assert latex.count(r"\begin{tabular}") == latex.count(r"\end{tabular}") > 5
    labels = set(re.findall(r"\\label\{tab:(.*?)\}", latex))
    assert {"clean", "robust", "compared"} <= labels < {each.stem for each in folder.glob("*.csv")}
    assert not {"clean_all", "robust_all"} & labels
    for image in re.findall(r"!\[.*?\]\((.*?)\)", markdown):
        assert (folder / image).stat().st_size > 1000


def test_a_paper_has_the_marks_of_seed_noise_too() -> None:
    cells = [*marked([Spread(0.30, 0.02, 3), Spread(0.31, 0.02, 3), Spread(0.2, 0.01, 3)], "ndcg@10")]
    cells += [change(Spread(0.01, 0.02, 3)), Cell("a film", "hit")]
    told = latex(
        Page("", "", [], [Section("s", "", "", [Table("t", "", ["x"], [[each] for each in cells], "As good.")])])
    )
    lines = [line.removesuffix(r" \\") for line in told.splitlines()]
    for wanted in (
        r"0.3000 $\pm$ 0.0200$^{\approx}$",
        r"\textbf{0.3100 $\pm$ 0.0200}",
        r"0.2000 $\pm$ 0.0100",
        r"0.0100 $\pm$ 0.0200$^{\approx}$",
        "a film",
    ):
        assert wanted in lines
    assert r"\par\smallskip As good. Bold: best; $\approx$: as good as the best" in told
    marks = {
        mark: latex(Page("", "", [], [Section("s", "", "", [Table("t", "", ["x"], [[Cell(1.0, mark)]])])]))
        for mark in ("within noise", "hit")
    }
    assert "within seed noise" in marks["within noise"]
    assert "smallskip" not in marks["hit"]


def test_a_difference_within_seed_noise_ismarked() -> None:
    close = marked(
        [Spread(0.30, 0.02, 3), Spread(0.31, 0.02, 3), Spread(0.2, 0.01, 3), Spread(0.305, 0.01, 1)], "ndcg@10"
    )
    assert [each.mark for each in close] == ["≈ best", "best", "", ""]
    assert [each.mark for each in marked([Spread(0.5, float("nan"), 1)] * 2, "ndcg@10")] == ["best", "best"]
    assert [each.mark for each in marked([Spread(0.9, 0.1, 2), Spread(0.5, 0.1, 2)], "rmse")] == ["", "best"]


@pytest.mark.parametrize(
    ("metric", "marks"),
    [("ece", ["", "best"]), ("brier@10", ["", "best"]), ("gini@10", ["", ""]), ("auc", ["best", ""])],
)
def test_the_best_is_the_smallest_error_and_there_is_none_where_neither_way_is_better(
    metric: str, marks: list[str]
) -> None:
    assert [each.mark for each in marked([Spread(0.9, 0.1, 2), Spread(0.5, 0.1, 2)], metric)] == marks


def test_what_is_told_of_a_run_is_no_part_of_its_label_unless_nothing_else_differs() -> None:
    few, many = {"metrics": "['ndcg']", "top_k": "[10]"}, {"metrics": "None", "top_k": "[10, 20]"}
    assert differing([{"lr": 1, **few}, {"lr": 2, **many}], least=4) == [{"lr": "1"}, {"lr": "2"}]
    assert differing([few, many], least=4) == [{"metrics": "['ndcg']"}, {"metrics": "None"}]
    table, drawn = ({"dataset": {"name": name, name: 1}} for name in ("table", "synthetic"))
    assert differing([table, drawn, table | {"lr": 2}], least=4) == [
        {"dataset.name": "table"},
        {"dataset.name": "synthetic"},
        {"dataset.name": "table", "lr": "2"},
    ]


def test_the_summary_of_one_model_and_of_models_of_which_nothing_is_left(there: Path, tmp_path: Path) -> None:
    report([there / "train" / "plain0"], tmp_path / "r.html", ["md"], 0, None)
    text = (tmp_path / "r" / "report.md").read_text()
    assert "1 run (1 train) on synthetic" in text
    assert "No run has results yet" not in text
    assert re.search(r"On synthetic.*, mf has ndcg@10 0\.\d{4} on test", text)
    for name in ("plain0-0.5", "apr0-0.5"):
        run = Path(shutil.copytree(there / "attack" / name, tmp_path / "runs" / name))
        metrics = json.loads((run / "metrics.json").read_text())
        write_json(run / "metrics.json", metrics | {"attacked/ndcg@10": 0.0, "drop/ndcg@10": 1.0})
    report([tmp_path / "runs"], tmp_path / "r.html", ["md"], 0, None)
    text = (tmp_path / "r" / "report.md").read_text()
    assert "are left with the same, ndcg@10 0.0000" in text
    assert "keeps the most" not in text


@pytest.mark.parametrize(("kept", "near"), [((0.11, 0.13), True), ((0.31, 0.33), False)])
def test_the_summary_says_who_is_no_better_than_the_worst(
    there: Path, tmp_path: Path, kept: tuple[float, float], near: bool
) -> None:
    for name, value in zip(("plain0", "plain1", "apr0", "apr1"), (0.1, 0.12, *kept), strict=True):
        run = Path(shutil.copytree(there / "attack" / f"{name}-0.5", tmp_path / "runs" / name))
        metrics = json.loads((run / "metrics.json").read_text())
        write_json(run / "metrics.json", metrics | {"attacked/ndcg@10": value})
    report([tmp_path / "runs"], tmp_path / "r.html", ["md"], 0, None)
    (said,) = re.findall(r"mf is left with the least, 0\.1100.*", (tmp_path / "r" / "report.md").read_text())
    assert ("has no more than seed noise above it" in said) == near


def test_what_all_who_stand_together_say_alike_is_left_out_unless_they_are_one_then(tmp_path: Path) -> None:
    def found(name: str, dataset: str, epochs: int, **more: object) -> Found:
        config = {"model": {"name": name}, "dataset": {"name": dataset}, "epochs": epochs, **more}
        return Found(tmp_path / f"{name}{dataset}{epochs}", "train", config, [], {}, {"test/auc": 0.5}, None, tmp_path)

    book = Book([found("mf", "a", 1), found("mf", "a", 2), found("mf", "b", 1), found("pop", "b", 1)])
    labels = [book.label(each) for each in book.runs]
    assert labels[0] == "mf (dataset.name=a, epochs=1)"
    assert list(book.brief(labels[:2]).values()) == ["mf (epochs=1)", "mf (epochs=2)"]
    assert list(book.brief(labels[::2]).values()) == ["mf (dataset.name=a)", "mf (dataset.name=b)"]
    assert list(book.brief(labels[2:]).values()) == labels[2:]
    assert book.brief(["a path", labels[0]]) == {"a path": "a path", labels[0]: labels[0]}


def test_runs_of_other_settings_never_share_a_label_however_many_differ(tmp_path: Path) -> None:
    def found(name: str, verb: str, config: dict[str, object]) -> Found:
        return Found(tmp_path / name, verb, config, [], {}, {"test/auc": 0.5}, None, tmp_path)

    keys = ["a", "b", "c", "d", "e"]
    trained = [
        found(f"{n}", "train", {"model": {"name": "mf"}} | {key: n * (n < 3 or key == "e") for key in keys})
        for n in range(5)
    ]
    tuned = [found(f"t{n}", "finetune", {"finetune": {"name": "rawp_ft"}, "ckpt": str(n)}) for n in range(2)]
    book = Book([*trained, *tuned])
    assert len({book.label(each) for each in book.runs}) == 7
    seeds = [found(f"s{n}", "train", {"model": {"name": "mf"}, "seed": n}) for n in range(2)]
    assert {Book(seeds).label(each) for each in seeds} == {"mf"}


def test_runs_that_were_moved_are_found_again_and_strangers_are_not(there: Path, tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(there, moved)
    shutil.rmtree(moved / "train" / "apr1")
    book = Book(runs([moved / "attack", moved / "train"]))
    by_name = {each.path.name: each for each in book.runs}
    source = book.source(by_name["plain0-0.2"])
    assert source is not None
    assert source.path.name == "plain0"
    card = json.loads((moved / "train" / "plain1" / "run.json").read_text())
    (moved / "train" / "plain1" / "run.json").write_text(json.dumps(card | {"fingerprint": "other"}))
    book = Book(runs([moved / "attack" / "plain1-0.2", moved / "train" / "plain1"]))
    assert book.victim(book.runs[0]) != "mf" or book.source(book.runs[0]) != book.runs[1]


def test_a_run_in_the_directory_of_another_is_found(there: Path, tmp_path: Path) -> None:
    shutil.copytree(there / "train" / "plain0", tmp_path / "one")
    for name in ("two", "attacks/three"):
        shutil.copytree(there / "train" / "plain0", tmp_path / "one" / name)
    assert [each.path.name for each in runs([tmp_path])] == ["one", "three", "two"]


def test_a_run_that_is_repeated_with_the_same_seed_counts_once(there: Path, tmp_path: Path) -> None:
    shutil.copytree(there / "train" / "plain0", tmp_path / "again")
    out = tmp_path / "r.html"
    report([there / "train" / "plain0", tmp_path / "again"], out, ["csv"], 0, None)
    assert not out.exists()
    (row,) = csv.DictReader((tmp_path / "r" / "clean.csv").open())
    assert row["runs"] == "1"


def test_of_repeated_runs_the_last_counts_and_the_page_says_how_many_are_left_out(there: Path, tmp_path: Path) -> None:
    for name, start, value in (("1", "2026-01-02", 0.3), ("2", "2026-01-03", 0.5), ("3", "2026-01-01", 0.1)):
        shutil.copytree(there / "train" / "plain0", tmp_path / name)
        record = json.loads((tmp_path / name / "run.json").read_text()) | {"start": start}
        write_json(tmp_path / name / "run.json", record)
        write_json(tmp_path / name / "metrics.json", metrics(tmp_path / name) | {"test/ndcg@10": value})
    found = page_of(Book(runs([tmp_path])), [], [])
    (row,) = next(each for each in found.tables if each.name == "clean").rows
    assert [each.text for each in row[1:3]] == ["1", "0.5000"]
    assert found.notes == ["2 runs are left out: later ones repeat them, settings and seeds included."]
    assert page_of(Book(runs([there / "train"])), [], []).notes == []


def test_runs_of_one_recipe_whose_files_changed_are_not_seeds_of_one_model(there: Path, tmp_path: Path) -> None:
    for seed in (0, 1):
        shutil.copytree(there / "train" / f"plain{seed}", tmp_path / f"plain{seed}")
        shutil.copytree(there / "attack" / f"plain{seed}-0.2", tmp_path / f"attack{seed}")
        text = (tmp_path / f"attack{seed}" / ".hydra" / "config.yaml").read_text()
        text = re.sub(r"^ckpt: .*$", f"ckpt: {tmp_path / f'plain{seed}'}", text, flags=re.MULTILINE)
        (tmp_path / f"attack{seed}" / ".hydra" / "config.yaml").write_text(text)

    def counted(name: str, column: int) -> list[str]:
        made = page_of(Book(runs([tmp_path])), [], []).tables
        return [row[column].text for each in made if re.fullmatch(rf"{name}(_\d)?", each.name) for row in each.rows]

    assert (counted("clean", 1), counted("robust", 3)) == (["2"], ["2"])
    for name in ("plain1", "attack1"):
        record = json.loads((tmp_path / name / "run.json").read_text())
        write_json(tmp_path / name / "run.json", record | {"fingerprint": "f" * 64})
    assert (counted("clean", 1), counted("robust", 3)) == (["1", "1"], ["1", "1"])
    titles = [each.title for each in page_of(Book(runs([tmp_path])), [], []).tables if each.name.startswith("clean")]
    assert any("fingerprint=ffffffffffff" in each for each in titles)


def test_other_fakes_of_the_same_settings_are_no_other_files(there: Path, tmp_path: Path) -> None:
    fakes = {"poison": {"name": "random", "size": 0.1}}
    for name, seed, more in (("a", 0, {}), ("b", 1, {}), ("c", 0, fakes), ("d", 0, fakes)):
        shutil.copytree(there / "train" / f"plain{seed}", tmp_path / name)
        path = tmp_path / name / ".hydra" / "config.yaml"
        config = yaml.safe_load(path.read_text())
        config["split"]["seed"] = seed
        path.write_text(yaml.safe_dump({**config, **more}))
        record = json.loads((tmp_path / name / "run.json").read_text())
        write_json(tmp_path / name / "run.json", record | {"fingerprint": name * 64})
    tables = page_of(Book(runs([tmp_path])), [], []).tables
    rows = [row for each in tables if each.name.startswith("clean") for row in each.rows]
    assert "2" in [row[1].text for row in rows if "random" not in row[0].text]


@pytest.mark.parametrize(("status", "why"), [("running", "still running"), ("done", "no metrics.json")])
def test_a_run_without_results_says_why(there: Path, tmp_path: Path, status: str, why: str) -> None:
    shutil.copytree(there / "train" / "plain0", tmp_path / "a")
    (tmp_path / "a" / "metrics.json").unlink()
    card = json.loads((tmp_path / "a" / "run.json").read_text()) | {"status": status}
    (tmp_path / "a" / "run.json").write_text(json.dumps(card))
    assert why in (read(tmp_path / "a").error or "")


@pytest.mark.parametrize("content", ["", "{", "[1]"])
def test_a_run_whose_results_cannot_be_read_says_so(there: Path, tmp_path: Path, content: str) -> None:
    shutil.copytree(there / "train" / "plain0", tmp_path / "a")
    (tmp_path / "a" / "metrics.json").write_text(content)
    assert read(tmp_path / "a").error == "its metrics.json cannot be read"
    report([tmp_path / "a", there / "train" / "plain1"], tmp_path / "r.html", ["html"], 0, None)
    assert "its metrics.json cannot be read" in (tmp_path / "r.html").read_text()


def test_a_report_is_no_pdf(there: Path, tmp_path: Path) -> None:
    with pytest.raises(RrecError, match=r"--out .*r.pdf: a report is an .html file"):
        report([there / "train" / "plain0"], tmp_path / "r.pdf", ["html"], 0, None)


@pytest.mark.parametrize(("status", "why"), [("running", "still running"), ("failed", "the loss is NaN")])
def test_results_beside_a_run_that_is_not_done_are_not_its_own(
    there: Path, tmp_path: Path, status: str, why: str
) -> None:
    shutil.copytree(there / "train" / "plain0", tmp_path / "a")
    card = json.loads((tmp_path / "a" / "run.json").read_text()) | {"status": status, "error": "the loss is NaN"}
    (tmp_path / "a" / "run.json").write_text(json.dumps(card))
    found = read(tmp_path / "a")
    assert found.metrics is None
    assert why in (found.error or "")
    report([tmp_path / "a"], tmp_path / "r.html", ["csv"], 0, None)
    (row,) = csv.DictReader((tmp_path / "r" / "runs.csv").open())
    assert row["state"] == {"running": "unfinished", "failed": "failed"}[status]


def test_nothing_of_a_configuration_is_done_but_its_own_references(tmp_path: Path) -> None:
    config = {"eps": 0.1, "attack": {"eps": "${eps}", "seed": "${oc.env:HOME}", "x": "${nothing}"}}
    assert filled(config)["attack"] == {"eps": 0.1, "seed": "${oc.env:HOME}", "x": "${nothing}"}
    (tmp_path / ".hydra").mkdir()
    (tmp_path / ".hydra" / "config.yaml").write_text("a: &a {b: *a}\n")
    assert read(tmp_path).config == {}
    (tmp_path / ".hydra" / "config.yaml").write_text("a: !!python/object/apply:os.getcwd []\n")
    assert read(tmp_path).config == {}


def test_the_budget_is_that_of_the_attack_and_not_the_key_that_it_may_take_it_from() -> None:
    def budget(attack: dict[str, object]) -> float | None:
        return Found(Path(), "attack", {"eps": 0.1, "attack": attack}, [], {}, {}, None, Path()).eps

    assert budget({"name": "pgd", "eps": 0.05}) == 0.05
    assert budget({"name": "edges", "share": 0.2}) is None
    assert budget({"name": "cw", "eps": None}) is None


@pytest.mark.parametrize("broken", ["metrics.json", "run.json", ".hydra/config.yaml", ".hydra/hydra.yaml"])
@pytest.mark.parametrize("content", ["", "[1, 2]", "{", "\x00", '{"test/ndcg@10": "high", "threat": 3, "seeds": []}'])
def test_a_broken_file_costs_only_what_it_would_have_said(
    there: Path, tmp_path: Path, broken: str, content: str
) -> None:
    shutil.copytree(there / "attack" / "plain0-0.2", tmp_path / "a")
    (tmp_path / "a" / broken).write_text(content)
    report([tmp_path / "a", there / "train" / "plain0"], tmp_path / "r.html", ["html"], 0, None)
    assert "Clean quality" in (tmp_path / "r.html").read_text()


@pytest.mark.parametrize(
    ("file", "key", "value"),
    [
        ("metrics.json", "clean/ndcg@10", 10**400),
        ("metrics.json", "seconds", 10**400),
        ("../../train/plain0/run.json", "fingerprint", {"a": 1}),
        ("run.json", "fingerprint", {"a": 1}),
        ("run.json", "seconds", 10**400),
        (".hydra/config.yaml", "ckpt", "a\0b"),
        (".hydra/config.yaml", "ckpt", "x" * 5000),
        (".hydra/config.yaml", "ckpt", "~nobody-of-this-name/run"),
        (".hydra/config.yaml", "eps", 10**400),
        (".hydra/config.yaml", "seed", 10**400),
        (".hydra/hydra.yaml", "hydra", {"job": {"config_name": "attack"}, "runtime": {"cwd": "a\0b"}}),
    ],
    ids=lambda value: str(value)[:30].replace("\0", "0"),
)
def test_values_that_are_not_what_a_run_writes_cost_only_what_they_would_have_said(
    there: Path, tmp_path: Path, file: str, key: str, value: object
) -> None:
    for name in ("train/plain0", "train/apr0", "attack/apr0-0.2", "attack/plain0-0.2"):
        shutil.copytree(there / name, tmp_path / "runs" / name)
    broken = tmp_path / "runs" / "attack" / "plain0-0.2" / file
    text = broken.read_text()
    told = json.loads(text) if file.endswith("json") else yaml.safe_load(text)
    broken.write_text(json.dumps(told | {key: value}))  # which is YAML too
    report([tmp_path / "runs"], tmp_path / "r.html", ["html", "md", "csv", "tex"], 1, None)
    page = (tmp_path / "r.html").read_text()
    assert "Clean quality" in page
    assert "x" * 1000 not in page


def test_what_cannot_be_done_is_one_line(there: Path, tmp_path: Path) -> None:
    with pytest.raises(RrecError, match="is no directory"):
        report([tmp_path / "nowhere"], tmp_path / "r.html", ["html"], 0, None)
    with pytest.raises(RrecError, match="has no run in it"):
        report([tmp_path], tmp_path / "r.html", ["html"], 0, None)
    with pytest.raises(RrecError, match="unknown format of a report 'pdf'"):
        report([there], tmp_path / "r.html", ["pdf"], 0, None)
    done = CliRunner().invoke(app, ["report", str(tmp_path)])
    assert done.exit_code == 2
    assert "has no run in it" in done.output


def test_the_verb_writes_the_page(there: Path, tmp_path: Path) -> None:
    out = tmp_path / "deep" / "r.html"
    done = CliRunner().invoke(app, ["report", str(there / "train"), "-o", str(out), "--users", "0"])
    assert done.exit_code == 0, done.output
    assert out.is_file()


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.5, "0.5000"), (float("nan"), "–"), (None, "–"), (3, "3"), (Spread(0.5, float("nan"), 1), "0.5000")],
)
def test_cells_say_what_is_known(value: float | Spread | None, text: str) -> None:
    assert Cell(value).text == text


@pytest.mark.parametrize("name", ['round-"><b>mine', r"round-\g", "round-'&"])
def test_names_of_folders_are_no_part_of_a_page(there: Path, tmp_path: Path, name: str) -> None:
    shutil.copytree(there / "tuned", tmp_path / "tuned")
    for folder in ("round-1", "round-2", name):
        (tmp_path / "tuned" / folder).mkdir()
        shutil.copy(there / "tuned" / "criticality.csv", tmp_path / "tuned" / folder)
    (tmp_path / "tuned" / "criticality.csv").unlink()
    report([tmp_path / "tuned"], tmp_path / "r.html", ["html"], 0, None)
    text = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert "<b>mine" not in text
    assert len({*re.findall(r"criticality_1_round-\d", text)}) == 3


def test_what_a_figure_is_called_is_text_in_it() -> None:
    text = plots.svg(plots.bars({"a": 1.0}, [], "", ""), r'"><b>\g<1>')
    assert "<b>" not in text
    assert r'id="&quot;&gt;&lt;b&gt;\g&lt;1&gt;-' in text


def test_labels_of_strangers_are_text_in_a_figure() -> None:
    name = """--><script>alert("1")</script> $x_$ \\ & "q" _"""
    points = {name: (0.1, 0.2, 0.0, 0.0), "_b": (0.2, 0.1, float("nan"), float("nan"))}
    text = plots.svg(plots.points(points, [name], name, "$\\frac"), "f")
    assert "<script" not in text
    assert "<!--" not in text
    reader = Reader()
    reader.feed(text)
    assert reader.open == []


def test_names_in_a_legend_are_cut_no_further_than_they_differ() -> None:
    names = [f"mf ({'x' * 40}epochs={n}{'y' * 40})" for n in (3, 200)]
    drawn = plots.curves([plots.Curve(name, [0, 1], [0.5, 0.1], [0.0] * 2, 0) for name in names], "x", "y", "")
    shown = [each.get_text() for each in drawn.axes[0].get_legend().get_texts()]
    assert len(set(shown)) == 2
    (short,) = plots.curves([plots.Curve(names[0], [0, 1], [1, 1], [0.0] * 2, 0)], "x", "y", "").axes
    assert len(short.get_legend().get_texts()[0].get_text()) == plots.LABEL


def test_curves_are_cut_at_zero_only_where_nothing_is_below() -> None:
    for mean_, bottom in ((0.1, 0.0), (-0.1, None)):
        drawn = plots.curves(
            [plots.Curve("a", [0, 1], [0.5, mean_], [float("nan")] * 2, 0)], "x", "y", "", from_zero=True
        )
        low = drawn.axes[0].get_ylim()[0]
        assert low == bottom if bottom is not None else low < -0.1


def test_numbers_of_other_data_are_not_compared(there: Path, tmp_path: Path) -> None:
    other = [each.replace("n_items=60", "n_items=50") for each in TRAINED]
    words = ["protocol=sampled", "n_negatives=9", "defense=apr", "defense.eps=0.5"]
    done("train", tmp_path / "clicks", *other, *words)
    report([there / "train" / "plain0", tmp_path / "clicks"], tmp_path / "r.html", ["csv"], 0, None)
    assert not (tmp_path / "r" / "compared.csv").exists()
    for name in ("clean", "clean_2"):
        assert len(list(csv.DictReader((tmp_path / "r" / f"{name}.csv").open()))) == 1


def test_an_attack_with_a_baseline_or_other_metrics_is_the_same_attack(there: Path, tmp_path: Path) -> None:
    shutil.copytree(there / "train", tmp_path / "train")
    words = {
        "plain0": ["slices=[activity]"],
        "plain1": ["metrics=[ndcg,hr]"],
        "apr0": [f"baseline='{tmp_path}/plain0'"],
        "apr1": [f"baseline='{tmp_path}/plain1'", "top_k=[10]"],
        "apr1-again": [],
    }
    for name, more in words.items():
        told = [f"ckpt='{tmp_path}/train/{name.removesuffix('-again')}'", *JUDGED, "attack=fgsm", *more]
        done("attack", tmp_path / name, *told)
    report([tmp_path], tmp_path / "r.html", ["csv"], 0, None)
    robust = {row["model"]: row for row in csv.DictReader((tmp_path / "r" / "robust.csv").open())}
    assert [row["runs"] for row in robust.values()] == ["2", "2"]
    values = [metrics(tmp_path / f"apr{seed}")["attacked/ndcg@10"] for seed in (0, 1)]
    assert float(robust["mf + apr"]["attacked ndcg@10"]) == pytest.approx(mean(values))
    compared = [row["on"] for row in csv.DictReader((tmp_path / "r" / "compared.csv").open())]
    assert compared == ["test", f"{robust['mf']['attack']} with eps 0.1"]
    every = list(csv.DictReader((tmp_path / "r" / "robust_all.csv").open()))
    assert any(row["metric"] == "improvement/ndcg@10" for row in every)
    assert not (tmp_path / "r" / "flags.csv").exists()


@pytest.mark.parametrize(("eps", "little"), [("0.002", True), ("0.5", False)])
def test_an_improvement_of_little_says_of_how_little(
    there: Path, tmp_path: Path, eps: str, little: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(there / "train", tmp_path / "train")
    for name, more in {"plain": [], "apr": [f"baseline='{tmp_path}/plain'"]}.items():
        words = [f"ckpt='{tmp_path}/train/{name}0'", *JUDGED, "attack=pgd", f"eps={eps}"]
        done("attack", tmp_path / name, *words, *more)
    shown = capsys.readouterr().out.partition("robustness improvement")[2].splitlines()
    (row,) = (line for line in shown if line.startswith("│ ndcg@10 "))
    assert ("of only" in row) is little


def test_attacks_with_targets_have_a_table_of_their_exposure(there: Path, tmp_path: Path) -> None:
    shutil.copytree(there / "train", tmp_path / "train")
    for name, more in {"promoted": ["goal=promote", "eps=0.5"], "untargeted": []}.items():
        done("attack", tmp_path / name, f"ckpt='{tmp_path}/train/plain0'", *JUDGED, "attack=pgd", *more)
    report([tmp_path], tmp_path / "r.html", ["csv"], 0, None)
    (row,) = csv.DictReader((tmp_path / "r" / "exposure.csv").open())
    assert row["eps"] == "0.5"
    told = metrics(tmp_path / "promoted")
    assert float(row["attacked t_hr@5"]) == pytest.approx(told["attacked/t_hr@5"])
    assert float(row["rise"]) == pytest.approx(told["rise/t_hr@5"]) != 0


def test_a_training_that_was_attacked_at_its_end_is_among_the_attacks(tmp_path: Path) -> None:
    for seed in (0, 1):
        for name, words in (("plain", []), ("apr", ["defense=apr"])):
            words = [*TRAINED, *words, "attack=pgd", "attack.steps=2", "eps=0.3", f"seed={seed}"]
            done("train", tmp_path / f"{name}{seed}", *words)
    report([tmp_path], tmp_path / "r.html", ["csv"], 0, None)
    rows = {row["model"]: row for row in csv.DictReader((tmp_path / "r" / "robust.csv").open())}
    assert set(rows) == {"mf", "mf + apr"}
    told = [metrics(tmp_path / f"plain{seed}") for seed in (0, 1)]
    assert rows["mf"]["attack"] == "pgd embedding l2 at the end of training"
    assert (rows["mf"]["eps"], rows["mf"]["runs"]) == ("0.3", "2")
    for column, key in (("clean ndcg@10", "test/ndcg@10"), ("attacked ndcg@10", "attacked/ndcg@10")):
        assert float(rows["mf"][column]) == pytest.approx(sum(each[key] for each in told) / 2)
    on = {row["on"] for row in csv.DictReader((tmp_path / "r" / "compared.csv").open())}
    assert on == {"test", "pgd embedding l2 at the end of training with eps 0.3"}


def test_runs_judged_in_other_ways_are_rows_of_their_own_and_only_seeds_are_averaged(
    there: Path, tmp_path: Path
) -> None:
    for name in ("plain0", "plain1"):
        shutil.copytree(there / "train" / name, tmp_path / name)
    ways = {
        "known": ["part=valid"],
        "seen": ["part=valid", "seen=true"],
        "coarse": ["part=valid", "precision=bf16"],
        "few": ["protocol=sampled", "n_negatives=9"],
        "more": ["protocol=sampled", "n_negatives=19"],
    }
    for seed in (0, 1):
        for name, words in ways.items():
            done("eval", tmp_path / f"{name}-{seed}", f"ckpt='{tmp_path}/plain{seed}'", *JUDGED, *words)
    words = ["part=valid", "slices=[activity]", "metrics=[hr]"]
    done("eval", tmp_path / "sliced", f"ckpt='{tmp_path}/plain0'", *JUDGED, *words)
    report([tmp_path], tmp_path / "r.html", ["csv"], 0, None)
    rows = {row["on"]: row for row in csv.DictReader((tmp_path / "r" / "judged.csv").open())}
    assert [row["runs"] for row in rows.values()] == ["2"] * 5
    assert {"test, sampled (n_negatives=9)", "test, sampled (n_negatives=19)"} <= set(rows)
    (seen,) = (row for on, row in rows.items() if "seen=True" in on)
    values = [metrics(tmp_path / f"seen-{seed}")["valid/ndcg@10"] for seed in (0, 1)]
    assert float(seen["ndcg@10"]) == pytest.approx(mean(values))


def test_models_of_other_splits_candidates_and_preparation_have_a_table_each(tmp_path: Path) -> None:
    words = {
        "ease": ["model=ease"],
        "core": ["model=itemknn", "prepare.user_core=3"],
        "seen": ["model=itemknn", "seen=true"],
        "last": ["model=pop", "split=leave_one_out"],
        "few": ["model=pop", "protocol=sampled", "n_negatives=9"],
        "many": ["model=itemknn", "protocol=sampled", "n_negatives=19"],
    }
    for name, told in words.items():
        done("train", tmp_path / name, *DATA, *JUDGED, *told)
    book = Book(runs([tmp_path]))
    made = page_of(book, [], [])
    clean = [each for each in made.tables if each.name.startswith("clean") and not each.folded]
    assert [len(each.rows) for each in clean] == [1] * 6
    titles = {each.title.partition(": ")[2] for each in clean}
    assert len(titles) == 6
    assert {"synthetic, sampled (n_negatives=9)", "synthetic, sampled (n_negatives=19)"} <= titles
    assert any("split.name=leave_one_out" in each for each in titles)
    assert any("prepare.user_core=3" in each and "seen=False" in each for each in titles)
    assert not any("best clean quality" in each for each in made.summary)


def test_models_on_other_splits_are_not_ranked_against_each_other(tmp_path: Path) -> None:
    """Which split is easier says nothing about a model."""
    for name, split in (("pop", 0), ("pop", 1), ("itemknn", 0), ("ease", 1), ("ease", 0)):
        words = (f"model={name}", "split=random", f"split.seed={split}")
        done("train", tmp_path / f"{name}{split}", *DATA, *JUDGED, *words)
    made = page_of(Book(runs([tmp_path])), [], [])
    clean = {each.title: each for each in made.tables if each.name.startswith("clean") and not each.folded}
    assert {title: [row[0].text for row in each.rows] for title, each in clean.items()} == {
        "Quality on test: synthetic (split.seed=0, 1)": ["ease", "pop"],
        "Quality on test: synthetic (split.seed=0)": ["itemknn"],
    }
    (table,) = (each for each in made.tables if each.name == "runs")
    assert {row[0].text.partition("/")[2]: row[4].text for row in table.rows}["pop1"] == "0, split 1"


def test_attacks_on_other_splits_are_rows_of_their_own(there: Path, tmp_path: Path) -> None:
    done("train", tmp_path / "train", *TRAINED, "split.seed=1", "defense=apr")
    done("attack", tmp_path / "apr", f"ckpt='{tmp_path}/train'", *JUDGED, "eps=0.2", "attack.steps=2")
    report([tmp_path, there / "attack" / "plain0-0.2"], tmp_path / "r.html", ["csv"], 0, None)
    rows = list(csv.DictReader((tmp_path / "r" / "robust.csv").open()))
    assert {(row["model"], row["attack"]) for row in rows} == {
        ("mf", "pgd embedding l2, split 0"),
        ("mf + apr", "pgd embedding l2, split 1"),
    }
    assert {row["model"]: row["seed"] for row in csv.DictReader((tmp_path / "r" / "runs.csv").open())} == {
        "mf": "0, split 0",
        "mf + apr": "0, split 1",
    }


def test_a_split_that_one_side_lacks_costs_no_comparison_under_attack(tmp_path: Path) -> None:
    for name, splits in (("plain", (0, 1)), ("apr", (0,))):
        for split in splits:
            words = ["defense=apr", "defense.eps=0.5"] if name == "apr" else []
            done("train", tmp_path / f"{name}{split}", *TRAINED, *words, f"split.seed={split}", "epochs=2")
            out = tmp_path / f"{name}{split}-attack"
            done("attack", out, f"ckpt='{tmp_path}/{name}{split}'", *JUDGED, "eps=0.2", "attack.steps=2")
    report([tmp_path], tmp_path / "r.html", ["csv"], 0, None)
    assert {row["on"] for row in csv.DictReader((tmp_path / "r" / "compared.csv").open())} == {
        "test",
        "pgd embedding l2 with eps 0.2",
    }
    rows = {row["attack"]: row for row in csv.DictReader((tmp_path / "r" / "robust.csv").open())}
    assert set(rows) == {"pgd embedding l2, split 0", "pgd embedding l2, split 0, 1"}


def test_certificates_are_shown_and_how_models_were_judged_is_said(there: Path, tmp_path: Path) -> None:
    shutil.copytree(there / "train" / "plain0", tmp_path / "plain")
    words = (f"ckpt='{tmp_path}/plain'", *JUDGED)
    told = done("eval", tmp_path / "proven", *words, "certify=radius", "certify.budgets=[0,0.01]")
    done("eval", tmp_path / "noisy", *words, "noise=label_flip", "noise.level=0.2")
    report([tmp_path], tmp_path / "r.html", ["csv"], 0, None)
    rows = {
        row["metric"]: row for row in csv.DictReader((tmp_path / "r" / "certified_1.csv").open()) if row["certified"]
    }
    assert float(rows["ndcg@10"]["certified"]) == pytest.approx(told["certified/ndcg@10@0.01"])
    how = {row["run"].partition("/")[2]: row["how"] for row in csv.DictReader((tmp_path / "r" / "runs.csv").open())}
    assert how["proven"] == "test, full, radius"
    assert how["noisy"] == "test, full, label_flip 0.2"
    cost = {row["verb"] for row in csv.DictReader((tmp_path / "r" / "cost.csv").open())}
    assert {"eval", "eval radius"} <= cost


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="no Chromium here")
def test_a_browser_renders_the_page_with_the_numbers_of_the_runs(written: Path, there: Path, tmp_path: Path) -> None:
    shot = tmp_path / "shot.png"
    browse(f"--screenshot={shot}", f"--user-data-dir={tmp_path / 'browser'}", written.as_uri())
    assert shot.stat().st_size > 20_000
    dump = dumped(written, tmp_path / "browser")
    reader = Reader()
    reader.feed(dump)
    values = [metrics(there / "train" / f"plain{seed}")["test/ndcg@10"] for seed in (0, 1)]
    rows = {row["model"][0]: row for row in columns(reader, "clean")}
    assert rows["mf"]["ndcg@10"][0].startswith(f"{mean(values):.4f}")
    theirs = [metrics(there / "train" / f"apr{seed}")["test/ndcg@10"] for seed in (0, 1)]
    (row,) = (each for each in columns(reader, "compared") if (each["model"][0], each["on"][0]) == ("mf + apr", "test"))
    assert row["difference"][0] == f"{mean(theirs) - mean(values):.4f}"


def test_bars_of_long_names_stand_apart_and_tell_them_apart() -> None:
    values = {f"backbone.model.encoder.layer.0.layer.attention.{name}": float(n) for n, name in enumerate("qkv")}
    (axes,) = plots.bars(values, [], "", "").axes
    assert len({bar.get_y() for bar in axes.patches}) == 3
    assert len({label.get_text() for label in axes.get_yticklabels()}) == 3


def test_columns_of_counts_are_counts() -> None:
    frame = pd.DataFrame({"fakes": [0.0, 1.0, 20.0], "share": [0.0, 1.0, 1.0], "left": [2.0, 1.0, float("nan")]})
    told = [[each.text for each in row] for row in table_of("t", "", frame).rows]
    assert told == [["0", "0.0000", "2.0000"], ["1", "1.0000", "1.0000"], ["20", "1.0000", "–"]]
