"""The command line: each verb hands its overrides to Hydra; nothing heavy is imported before a verb runs."""

import re
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
import typer.core

app = typer.Typer(
    name="rrec",
    help="Train, attack, harden and judge recommender systems. Start with: rrec train dataset=synthetic",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
data_app = typer.Typer(help="Fetch, inspect and list datasets.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(data_app, name="data")
sweep_app = typer.Typer(help="Continue and show sweeps.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(sweep_app, name="sweep")
leaderboard_app = typer.Typer(
    help="Make, verify and show cards of models.", no_args_is_help=True, rich_markup_mode=None
)
app.add_typer(leaderboard_app, name="leaderboard")


class Cfg(StrEnum):
    """Which part of the composed configuration `--cfg` prints."""

    JOB = "job"
    HYDRA = "hydra"
    ALL = "all"


def _complete(ctx: typer.Context, incomplete: str) -> list[str]:
    from robustbench_rec.composing.completion import complete

    inside_data = ctx.parent is not None and ctx.parent.info_name == "data"
    return complete("data" if inside_data else str(ctx.info_name), ctx.params.get("overrides") or [], incomplete)


def _complete_group(incomplete: str) -> list[str]:
    from robustbench_rec.tasks.ls import groups

    return [name for name in groups() if name.startswith(incomplete)]


DASHES = {"ignore_unknown_options": True}
"""Of commands with settings, which tell themselves how one with dashes is written."""


class WithSettings(typer.core.TyperCommand):
    """A setting behind one dash stays whole: `-model=mf` is not `-m`, `-o`, …"""

    def parse_args(self, ctx: typer.Context, args: list[str]) -> list[str]:  # type: ignore[override]
        return super().parse_args(ctx, [f"-{each}" if re.match(r"-\w\w+[\w.@]*=", each) else each for each in args])


Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="Overrides of the configuration.", autocompletion=_complete),
]
Multirun = Annotated[bool, typer.Option("--multirun", "-m", help="Sweep over comma separated values.")]
Show = Annotated[Cfg | None, typer.Option("--cfg", "-c", help="Print the configuration and exit.")]


DataDir = Annotated[str | None, typer.Option(help="Where the datasets are; else where the runs had them.")]
Cards = Annotated[Path, typer.Option("--cards", help="The folder of the cards.")]


def _verb(name: str, summary: str, examples: str) -> None:
    def command(overrides: Overrides = None, multirun: Multirun = False, cfg: Show = None) -> None:
        from robustbench_rec.launch import launch

        raise typer.Exit(launch(name, overrides or [], multirun=multirun, cfg=cfg and cfg.value))

    told = f"{summary}\n\n\b\nExamples:\n{examples}"
    app.command(name, cls=WithSettings, help=told, short_help=summary, context_settings=DASHES)(command)


def _data(action: str, summary: str, example: str) -> None:
    def command(overrides: Overrides = None) -> None:
        from robustbench_rec.launch import data

        raise typer.Exit(data(action, overrides or []))

    told = f"{summary}\n\n\b\nExample:\n  {example}"
    data_app.command(action, cls=WithSettings, help=told, short_help=summary, context_settings=DASHES)(command)


_verb(
    "train",
    "Train a recommender, with or without a defence.",
    """\
  rrec train model=kgat defense=rawp
  rrec train 'defense=[rawp,apr]' defense.inner.eps=0.3
  rrec train dataset=synthetic model=mf epochs=20 lr=0.01
  rrec train -m model=mf,kgat seed=0,1,2
  rrec train resume=outputs/train/<date>/<time>""",
)
_verb(
    "attack",
    "Attack a trained model and measure what it loses.",
    """\
  rrec attack ckpt=outputs/train/<date>/<time> eps=0.1
  rrec attack ckpt=<run directory> attack=fgsm part=valid
  rrec attack -m ckpt=<run directory> eps=0,0.05,0.1,0.2""",
)
_verb(
    "finetune",
    "Harden the least robust modules of a trained model.",
    """\
  rrec finetune ckpt=outputs/train/<date>/<time>
  rrec finetune ckpt=<run directory> epochs=5 lr=1e-4
  rrec finetune resume=outputs/finetune/<date>/<time>""",
)
_verb(
    "distill",
    "Train a student from a trained teacher, with or without a defence.",
    """\
  rrec distill teacher=outputs/train/<date>/<time> model=mf
  rrec distill teacher=<run directory> model=mf defense=awp
  rrec distill -m teacher=<run directory> model=mf distill.weight=0.1,0.5,0.9 seed=0,1,2
  rrec distill teacher=<run directory> experiment=study_weight""",
)
_verb(
    "eval",
    "Judge a trained model on a part of its split, and prove what no attack can change.",
    """\
  rrec eval ckpt=outputs/train/<date>/<time>
  rrec eval ckpt=<run directory> protocol=sampled n_negatives=99
  rrec eval ckpt=<run directory> noise=sparsify noise.level=0.3
  rrec eval ckpt=<run directory> certify=radius
  rrec eval ckpt=<run directory> baseline=<another> slices=[activity,popularity]""",
)
_verb(
    "recommend",
    "Show what a trained model recommends, to users or to a new one.",
    """\
  rrec recommend ckpt=outputs/train/<date>/<time> user=196
  rrec recommend ckpt=<run directory> user=[196,186] k=20 format=json
  rrec recommend ckpt=<run directory> liked=[50,181]
  rrec recommend ckpt=<run directory> all=true out=lists.parquet""",
)
_verb(
    "explain",
    "Say what a score comes from: paths, events or words, and how faithful that is.",
    """\
  rrec explain ckpt=outputs/train/<date>/<time> user=196 item=302
  rrec explain ckpt=<run directory> user=196 method=gradient format=json
  rrec explain ckpt=<run directory> sample=100
  rrec explain ckpt=<run directory> sample=50 attack=pgd attack.surface=weight eps=0.05""",
)
_verb(
    "gate",
    "Check a model before it is shipped; the exit status says whether it may be.",
    """\
  rrec gate ckpt=<run directory> baseline=<run directory> max_drop.ndcg@10=5%
  rrec gate ckpt=<run directory> baseline=<run directory> max_drop.ndcg@10=5% attack=pgd eps=0.1
  rrec gate ckpt=<run directory> at_least.ndcg@10=0.3 max_harm.ndcg@10=40% attack=rank_autoattack""",
)
_data("fetch", "Download a dataset into the data directory.", "rrec data fetch dataset=ml_100k")
_data(
    "info", "Describe a dataset: sizes, split, side information, what cleaning found.", "rrec data info dataset=ml_100k"
)
_data("ls", "List the datasets and what is there of them.", "rrec data ls")


Directory = Annotated[str, typer.Argument(metavar="DIRECTORY", help="The multirun directory of the sweep.")]


@sweep_app.command(short_help="Do what is missing of a sweep that was killed or has failed jobs.")
def resume(
    directory: Directory,
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[hydra/launcher=NAME]...", help="Another launcher.")
    ] = None,
) -> None:
    """Do what is missing of a sweep that was killed or has failed jobs; jobs that are done are not repeated."""
    from robustbench_rec.launch import resume_sweep

    raise typer.Exit(resume_sweep(directory, overrides or []))


@sweep_app.command("show")
def show_sweep(directory: Directory) -> None:
    """The table of a sweep, of what is finished so far."""
    from robustbench_rec.launch import show_sweep

    raise typer.Exit(show_sweep(directory))


@app.command(short_help="List what can be chosen: the groups, or the names of one.")
def ls(
    group: Annotated[
        str | None, typer.Argument(help="models, attacks, datasets, …", autocompletion=_complete_group)
    ] = None,
) -> None:
    """List what can be chosen: the groups, or one group with a line for each name."""

    def work() -> None:
        from robustbench_rec.tasks.ls import show

        show(group)

    _do(work)


@app.command(short_help="Write a page about runs, which needs no network, and its tables.")
def report(
    paths: Annotated[list[Path], typer.Argument(help="Run directories, or directories of runs.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The HTML file; other formats go to a folder beside it.")] = (
        Path("report.html")
    ),
    formats: Annotated[str, typer.Option(help="Comma separated: html, md, csv, tex.")] = "html",
    users: Annotated[int, typer.Option(help="Users whose lists are shown before and after an attack; 0: none.")] = 3,
    data_dir: DataDir = None,
) -> None:
    """Write a report about runs: one HTML file that needs no network, and its tables as Markdown, CSV and LaTeX.

    \b
    Examples:
      rrec report outputs/train/multirun/<date>/<time> outputs/attack -o report.html
      rrec report outputs --formats html,md,csv,tex --users 0
    """

    def work() -> None:
        from robustbench_rec.tasks.report import run

        run(paths, out, formats.split(","), users, data_dir)

    _do(work)


@leaderboard_app.command("add", short_help="Make a card of a run of the standard attack.")
def leaderboard_add(
    run: Annotated[Path, typer.Argument(help="A finished run of rrec attack attack=rank_autoattack.")],
    cards: Cards = Path("leaderboard/cards"),
    data_dir: DataDir = None,
) -> None:
    """Make a card of a run of the standard attack, if its model is eligible.

    \b
    Example:
      rrec leaderboard add outputs/attack/<date>/<time>
    """

    def work() -> None:
        from robustbench_rec.tasks.leaderboard import add

        typer.echo(str(add(run, cards, data_dir)))

    _do(work)


@leaderboard_app.command("verify", short_help="Run the attack of a card again.")
def leaderboard_verify(
    card: Annotated[Path, typer.Argument(help="A card, a JSON file.")],
    ckpt: Annotated[str, typer.Argument(metavar="ckpt=RUN", help="The run directory of its checkpoint.")],
    tolerance: Annotated[float, typer.Option(help="The largest difference of a metric, at most 0.005.")] = 0.005,
    data_dir: DataDir = None,
) -> None:
    """Run the attack of a card again and note what was found; exit 1 where it differs.

    \b
    Example:
      rrec leaderboard verify leaderboard/cards/<card>.json ckpt=outputs/train/<date>/<time>
    """

    def work() -> None:
        from robustbench_rec.tasks.leaderboard import verify

        if not verify(card, Path(ckpt.removeprefix("ckpt=")), tolerance=tolerance, data_dir=data_dir):
            raise typer.Exit(1)

    _do(work)


@leaderboard_app.command("build", short_help="Write the page of all cards.")
def leaderboard_build(
    cards: Cards = Path("leaderboard/cards"),
    out: Annotated[Path, typer.Option("--out", "-o", help="The HTML file.")] = Path("leaderboard/index.html"),
) -> None:
    """Write the page of all cards: sorted, with filters, without a network.

    \b
    Example:
      rrec leaderboard build -o leaderboard/index.html
    """

    def work() -> None:
        from robustbench_rec.tasks.leaderboard import build

        build(cards, out)

    _do(work)


@leaderboard_app.command("fill", short_help="Make the cards of models with some defences.")
def leaderboard_fill(
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Overrides of the training.")
    ] = None,
    models: Annotated[str, typer.Option(help="Comma separated; empty: all.")] = "",
    defenses: Annotated[
        str, typer.Option(help="Comma separated, fine-tunings too: rawp_ft is one of the undefended model.")
    ] = "none,apr,rawp,rawp+rawp_ft",
    seeds: Annotated[str, typer.Option(help="Comma separated.")] = "0",
    cards: Cards = Path("leaderboard/cards"),
    work_dir: Annotated[Path, typer.Option("--work", help="Where the runs are kept.")] = Path("outputs/leaderboard"),
) -> None:
    """Train, fine-tune, attack and add all models with some defences; a second call goes on where the first was.

    \b
    Example:
      rrec leaderboard fill --models mf,kgat --seeds 0,1,2 dataset=ml_100k
    """

    def work() -> None:
        from robustbench_rec.errors import RrecError
        from robustbench_rec.filling import fill

        if not all(each.isdecimal() for each in seeds.split(",")):
            raise RrecError(f"seeds={seeds}: comma separated numbers are needed")
        chosen = [each for each in models.split(",") if each]
        failed = fill(cards, work_dir, chosen, defenses.split(","), list(map(int, seeds.split(","))), overrides or [])
        for line in failed:
            typer.echo(f"left out: {line}", err=True)
        raise typer.Exit(1 if failed else 0)

    _do(work)


def _do(work: Callable[[], None]) -> None:
    """What is no Hydra application; a mistake of the person at the keyboard is one line."""
    from robustbench_rec.errors import RrecError

    try:
        work()
    except KeyboardInterrupt:
        typer.echo("rrec: interrupted", err=True)
        raise typer.Exit(130) from None
    except RrecError as error:
        typer.echo(f"rrec: {error}", err=True)
        raise typer.Exit(2) from None
    except OSError as error:
        if error.filename is None:
            raise
        typer.echo(f"rrec: cannot write {error.filename}: {error.strerror}; name another place", err=True)
        raise typer.Exit(2) from None


def _version(asked: bool) -> None:
    if asked:
        from robustbench_rec import __version__

        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Options of `rrec` itself."""


if __name__ == "__main__":
    app()
