"""Where people read what is printed."""

import os

from rich.console import Console


class Output(Console):
    """A console whose reader may have gone (`| head`): what is not read then is no reason to stop."""

    def on_broken_pipe(self) -> None:
        os.dup2(os.open(os.devnull, os.O_WRONLY), self.file.fileno())


def line(text: str, *, stderr: bool = False) -> None:
    """Print a line as it is."""
    Output(stderr=stderr).print(text, markup=False, highlight=False, soft_wrap=True)
