"""The early-stopping frontier: the robustness that stopping earlier buys an undefended model, at what clean quality."""

from dataclasses import dataclass
from math import isnan

import torch
from torch import Tensor

from robustbench_rec.significance import Estimate, Spread, estimate, means, resamples, within_noise, worth

BEST = "best"
"""The state that early stopping chose, the checkpoint itself."""
SPAN = 0.2
"""Share of the best undefended quality, or error, that the curves are compared over: nobody ships what lost more."""
LEVELS = 101


@dataclass(frozen=True)
class Trace:
    """States of one run, judged clean and attacked; more is better.

    names: what each is called `[E]`. clean, attacked: a metric for each user `[E, N]`, errors
    negated; N = 1 for one of the whole part.
    """

    names: list[str]
    clean: Tensor
    attacked: Tensor

    def only(self, index: int) -> "Trace":
        """One of the states."""
        rows = [index % len(self.names)]
        return Trace([self.names[index]], self.clean[rows], self.attacked[rows])


def best_attacked(clean: Tensor, attacked: Tensor, levels: Tensor) -> Tensor:
    """The most attacked quality `[..., L]` among states `[..., E]` that have at least the clean quality of each level.

    -inf where none has. What a run reaches by choosing where to stop; nothing between two states is assumed.
    """
    enough = clean[..., None, :] >= levels[..., :, None]  # [..., L, E]
    return attacked[..., None, :].expand_as(enough).masked_fill(~enough, float("-inf")).amax(-1)


def advantage(run: Trace, undefended: Trace) -> Estimate:
    """How much more attacked quality a run has than the undefended one at equal clean quality, the mean over levels.

    Levels lie evenly where both have states, from 1 - SPAN of the best undefended clean quality on; a single state is
    compared at its own clean quality, or at the best undefended one if it has more. Bootstrap samples of the users are
    the same for both runs and both metrics, and every sample draws its own curves. The undefended side chooses its
    state for each level on the data that it is judged on, which favours it.
    """
    once = torch.ones(1, run.clean.shape[1], dtype=torch.double)
    pieces = (few for each in resamples(run.clean.shape[1]) for few in each.split(200))  # levels take room too
    parts = [once.new_empty(0), *(_advantage(run, undefended, few) for few in pieces)]
    return estimate(_advantage(run, undefended, once).item(), torch.cat(parts))


def verdict(gap: Spread, low: float, high: float) -> str:
    """What advantages over seeds are worth, in words. low, high: means of their intervals over users; NaN: none."""
    word = "beats it" if gap.mean > 0 else "is worse than it"
    noise = within_noise(gap, Spread(0.0, 0.0, gap.n))
    return worth(gap.mean, word, noise=noise, chance=None if isnan(low) else low <= 0 <= high)


def sentence(name: str, gap: Spread, low: float, high: float) -> str:
    """The same as a sentence about what is called so."""
    found = verdict(gap, low, high)
    word, _, seeds = found.partition(", ")
    words, more = f"{name} is not told apart from", found
    if found.startswith("unknown"):
        words, more = f"it is not known whether {name} beats", "one seed"
    elif word.endswith(" it"):
        words, more = f"{name} {word.removesuffix(' it')}", seeds
    number = "" if isnan(gap.mean) else f"{gap.mean:+.4f}" + (f" ± {gap.std:.4f}" if gap.n > 1 else "")
    told = ", ".join(each for each in (number, more) if each)
    return f"At equal clean quality {words} the undefended run stopped early ({told})"


def _advantage(run: Trace, undefended: Trace, weights: Tensor) -> Tensor:
    """`[R]`."""
    clean, attacked = means(run.clean, weights), means(run.attacked, weights)
    base_clean, base_attacked = means(undefended.clean, weights), means(undefended.attacked, weights)
    most = base_clean.amax(1)
    high = torch.minimum(clean.amax(1), most)
    low = torch.maximum(torch.maximum(clean.amin(1), base_clean.amin(1)), most - SPAN * most.abs()).minimum(high)
    levels = low[:, None] + (high - low)[:, None] * torch.linspace(0, 1, LEVELS, dtype=torch.double)  # [R, L]
    levels = levels.minimum(high[:, None])  # rounding must not leave the last level without a state
    return (best_attacked(clean, attacked, levels) - best_attacked(base_clean, base_attacked, levels)).mean(1)
