from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.func import grad, vmap

from robustbench_rec.batch import Batch
from robustbench_rec.defenses import defenses
from robustbench_rec.errors import RrecError
from robustbench_rec.model import RecModel
from robustbench_rec.objective import Objective, Plain, known
from robustbench_rec.shifted import Shifted
from robustbench_rec.traced import tracing

CELLS = 2**24  # numbers of gradients held at once: 64 MiB of float32


@defenses.register
class DPSGD(Objective):
    """Differentially private SGD: clipped gradients of single events, and Gaussian noise (Abadi et al., CCS 2016).

    clip: C, the l2 norm that the gradient of an event has at most. noise: σ; what is added to the sum has deviation σC
    in every parameter. delta: δ, for which ε is told at the end, by the RDP accountant of Opacus. The optimiser is any,
    it sees private gradients only.

    The unit of privacy is one training event. ε assumes batches by Poisson sampling, these are shuffled ones, as is
    common. It counts every epoch, also those after the best. Not covered: that sampled negatives avoid what the user
    has, which events cleaning and the cores of `prepare` leave, the statistics and categories of features, which are
    those of users and items with events, the loss in history.csv, the choice of the best epoch, and noise from the
    run's seed, which has to stay secret.

    Models through which an event reaches the loss of others (graphs, histories, closed forms, candidates that have
    events) are refused, and so is a penalty on what a batch touches: model.l2=0, weight_decay sees no data. So is
    `start`: ε would not count what that run learnt from the events. Every event's gradient is as large as the model, so
    an epoch costs events times parameters.
    """

    @dataclass
    class Config:
        clip: float
        noise: float
        delta: float

    alone: ClassVar[bool] = True
    steps: Tensor
    events: Tensor
    running: Tensor
    largest: Tensor

    def __init__(self, config: Config, inner: Objective, model: RecModel) -> None:
        super().__init__()
        if not (config.clip > 0 and config.noise >= 0 and 0 < config.delta < 1):
            raise RrecError(
                f"dp_sgd with clip={config.clip}, noise={config.noise}, delta={config.delta}: clip > 0, noise >= 0 and "
                "0 < delta < 1 are needed"
            )
        if not isinstance(inner, Plain):
            raise RrecError("dp_sgd needs the loss of single events, not another objective")
        if reason := entangled(model):
            raise RrecError(f"dp_sgd: model '{_name(model)}' {reason}, so one event has no gradient of its own")
        if config.noise:
            accountant()
        self.config, self.inner = config, inner
        self.generator = torch.Generator().manual_seed(0)
        for name in ("steps", "events", "running", "largest"):
            self.register_buffer(name, torch.zeros((), dtype=torch.long))

    def start_epoch(self, epoch: int, generator: torch.Generator) -> None:
        self.generator = generator
        self.running.zero_()

    def forward(self, at: Shifted, batch: Batch) -> Tensor:
        if isinstance(at.model.penalty(batch, partial(at, batch)), Tensor):
            raise RrecError(
                f"dp_sgd: the penalty of model '{_name(at.model)}' may look at the batch; set model.l2=0, and "
                "weight_decay for a penalty"
            )
        weights = {name: each for name, each in at.model.named_parameters() if each.requires_grad}
        value, sums = self.clipped(at, batch, list(weights))
        gradients = []
        for total in sums.values():
            noise = torch.randn(total.shape, generator=self.generator).to(total)
            gradients.append((total + self.config.noise * self.config.clip * noise) / len(batch))
        self.steps += 1
        self.running += len(batch)
        self.events.copy_(torch.maximum(self.events, self.running))
        self.largest.copy_(self.largest.clamp_min(len(batch)))
        return known(value, list(weights.values()), gradients)

    def clipped(self, at: Shifted, batch: Batch, names: list[str]) -> tuple[Tensor, dict[str, Tensor]]:
        """The mean loss, and the sums of the events' clipped gradients."""
        zeros = {name: torch.zeros_like(each) for name, each in at.tensors(names).items()}
        fields = {name: each for name, each in vars(batch).items() if isinstance(each, Tensor)}
        sums, values = {name: torch.zeros_like(each) for name, each in zeros.items()}, []

        def single(delta: dict[str, Tensor], event: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
            row: dict[str, Any] = {"items": None, **{name: each[None] for name, each in event.items()}}
            one = Batch(**row)
            loss = self.inner.loss(at.shift(delta)(one), one).sum()
            return loss, loss

        gradients = vmap(grad(single, has_aux=True), in_dims=(None, 0), randomness="different")
        size = max(1, CELLS // sum(each.numel() for each in zeros.values()))
        for part in torch.arange(len(batch), device=batch.users.device).split(size):
            rows = {name: each[part] for name, each in fields.items()}
            try:
                with tracing():
                    found, loss = gradients(zeros, rows)
            except RuntimeError as error:
                reason = str(error).partition("\n")[0]
                told = f"dp_sgd: model '{_name(at.model)}' gives no gradients of single events ({reason})"
                raise RrecError(told) from error
            norms = torch.stack([each.reshape(len(each), -1).norm(dim=1) for each in found.values()]).norm(dim=0)  # [b]
            share = (self.config.clip / norms.clamp_min(1e-30)).clamp_max(1)
            for name, each in found.items():
                sums[name] += (share @ each.reshape(len(each), -1)).view_as(sums[name])
            values.append(loss.detach())
        return torch.cat(values).mean(), sums

    def told(self) -> dict[str, float]:
        """ε and δ of all steps so far; nothing without noise, where there is no ε."""
        if not (self.steps and self.config.noise):
            return {}
        accounted = accountant()
        accounted.history = [(self.config.noise, self.largest.item() / self.events.item(), int(self.steps))]
        epsilon = float(accounted.get_epsilon(delta=self.config.delta))
        return {"privacy/epsilon": epsilon, "privacy/delta": self.config.delta}


def accountant() -> Any:
    """A new RDP accountant of Opacus; RrecError where it is not installed."""
    try:
        from opacus.accountants import RDPAccountant
    except ImportError as error:
        raise RrecError("defense=dp_sgd needs opacus: pip install 'robustbench_rec[privacy]'") from error
    return RDPAccountant()


def entangled(model: RecModel) -> str:
    """Why an event reaches more than its own loss; empty where it does not."""
    if model.window:
        return "reads histories"
    if model.reads_events:
        return "reads the events of all users"
    if model.counts_events:
        return "looks at which items have events"
    own = type(model)
    if own.fit is not RecModel.fit or own.auxiliary is not RecModel.auxiliary or own.refresh is not RecModel.refresh:
        return "learns from all data in a phase of its own"
    return ""


def _name(model: RecModel) -> str:
    return type(model).__module__.rpartition(".")[2]
