"""Small data, components as conf/ configures them, and toy models; imported by name from the test modules."""

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import hydra
import pandas as pd
import pytest
import torch
from hypothesis import settings
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn
from torch.nn import functional as F

from robustbench_rec import checkpoint, composing
from robustbench_rec.adversarial import Adversarial
from robustbench_rec.ascent import Perturbation
from robustbench_rec.attacks import attacks
from robustbench_rec.batch import Batch, Output
from robustbench_rec.composing.words import nested
from robustbench_rec.config import Fit, Judge, Prepare, Recipe
from robustbench_rec.data import KG, Data, Interactions
from robustbench_rec.defenses import defenses
from robustbench_rec.errors import RrecError
from robustbench_rec.histories import Histories
from robustbench_rec.losses import loss
from robustbench_rec.model import RecModel
from robustbench_rec.objective import Objective, Plain, introduce, start_epoch
from robustbench_rec.sampling import Events, sampler
from robustbench_rec.shifted import SURFACES, Shifted, Site, surface

torch.set_num_threads(1)  # tiny tensors, and other work beside
settings.register_profile("rrec", deadline=None, derandomize=True, max_examples=60)
settings.load_profile("rrec")

VERBS: dict[str, tuple[str, ...]] = {
    "model": ("train",),
    "defense": ("train",),
    "attack": ("attack", "ckpt=none"),
    "distill": ("distill", "teacher=none"),
    "adaptation": ("train",),
    "goal": ("attack", "ckpt=none"),
    "noise": ("train",),
    "poison": ("train",),
    "finetune": ("finetune", "ckpt=none"),
    "certify": ("eval", "ckpt=none"),
    "clean": ("train",),
}


@cache
def compose(verb: str, *overrides: str) -> DictConfig:
    with composing.session():
        return hydra.compose(verb, nested(overrides))


SHIFTING = [  # the attacks within eps that any model has δ for
    each
    for each in attacks
    if issubclass(attacks[each], Perturbation) and "eps" in attacks[each].Config.__dataclass_fields__
]
WORDS = ["red", "old", "sea", "night", "song", "house", "winter"]
STANDINS = {"llm_prompt": "causal", "text_tower": "encoder"}  # for models on pretrained ones, which no test fetches
_folders = tempfile.TemporaryDirectory(prefix="rrec-pretrained-")


@cache
@torch.random.fork_rng()
def pretrained(kind: str) -> str | None:
    """Folder of a tiny untrained model of Hugging Face, a causal one, an encoder or a classifier; None without it."""
    try:
        import transformers
        from tokenizers import Tokenizer, models, pre_tokenizers, processors
        from transformers import BertForSequenceClassification, BertModel, GPT2LMHeadModel
    except ImportError:
        return None
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    words = [*special, "a", "yes", "no", ":", ",", "The", "liked", "Will", "like", *WORDS]
    tokenizer = Tokenizer(models.WordLevel({word: place for place, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    sizes = {"vocab_size": len(words), "initializer_range": 0.3}
    torch.manual_seed(0)
    if kind == "causal":
        shape = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256}
        model = GPT2LMHeadModel(transformers.GPT2Config(**shape, **sizes, bos_token_id=2, eos_token_id=3))
    else:
        shape = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
        config = transformers.BertConfig(**shape, **sizes, max_position_embeddings=256, num_labels=1)
        model = (BertModel if kind == "encoder" else BertForSequenceClassification)(config)
        tokenizer.post_processor = processors.TemplateProcessing("[CLS] $0 [SEP]", None, [("[CLS]", 2), ("[SEP]", 3)])
    folder = str(Path(_folders.name) / kind)
    model.save_pretrained(folder)
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    ).save_pretrained(folder)
    return folder


def buildable(name: str) -> bool:
    """Whether the extra that a model needs is installed."""
    return name not in STANDINS or pretrained(STANDINS[name]) is not None


def configured(group: str, name: str, **changes: Any) -> dict[str, Any]:
    """The config of a component, `name` included, as conf/<group>/<name>.yaml has it."""
    if group == "model" and name in STANDINS:
        changes = {"encoder": pretrained(STANDINS[name]) or "none", **changes}
    verb, *more = VERBS[group]
    config = OmegaConf.to_container(compose(verb, *more, f"{group}={name}")[group], resolve=True)
    assert isinstance(config, dict)
    return {**{str(key): value for key, value in config.items()}, **changes}


def interactions(users: list[int] | Tensor, items: list[int] | Tensor) -> Interactions:
    users, items = torch.as_tensor(users), torch.as_tensor(items)
    return Interactions(users, items, torch.ones(len(users)), torch.arange(len(users)))


def make_data(
    *, n_users: int = 12, n_items: int = 20, train: int = 5, valid: int = 1, test: int = 2, seed: int = 0
) -> Data:
    """Random rated events, no user with an item twice; a KG with duplicate pairs, a self-loop and a lonely entity."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.rand(n_users, n_items, generator=generator).argsort(1)  # [n_users, n_items]

    def part(first: int, number: int) -> Interactions:
        users, items = torch.arange(n_users).repeat_interleave(number), order[:, first : first + number].reshape(-1)
        return replace(interactions(users, items), values=1.0 + (users + 2 * items) % 5)

    n_entities, n_relations, n_triples = n_items + 7, 3, 40
    heads = torch.randint(n_entities - 1, (n_triples,), generator=generator)
    tails = torch.randint(n_entities - 1, (n_triples,), generator=generator)
    relations = torch.randint(n_relations, (n_triples,), generator=generator)
    heads[:3], tails[:3], relations[:3] = (
        torch.tensor([0, 0, 2]),
        torch.tensor([1, 1, 2]),
        torch.tensor([0, 1, 2]),
    )  # 0 → 1 twice, 2 → 2
    kg = KG(
        heads,
        relations,
        tails,
        [f"e{each}" for each in range(n_entities)],
        [f"r{each}" for each in range(n_relations)],
        torch.ones(n_items, dtype=torch.bool),
    )
    return Data(
        name="tiny",
        fingerprint="0" * 64,
        train=part(0, train),
        valid=part(train, valid),
        test=part(train + valid, test),
        user_ids=[f"u{each}" for each in range(n_users)],
        item_ids=[f"i{each}" for each in range(n_items)],
        item_table=pd.DataFrame(
            {
                "title": [f"The {WORDS[each % 5]} {WORDS[each % 7]}" for each in range(n_items)],
                "genres": [" ".join(WORDS[: 1 + each % 3]) for each in range(n_items)],
                "year": [float(1980 + each % 9) if each % 6 else float("nan") for each in range(n_items)],
            }
        ),
        user_table=pd.DataFrame(
            {
                "age": [float(20 + each) for each in range(n_users)],
                "gender": [("F", "M", None)[each % 3] for each in range(n_users)],
            }
        ),
        kg=kg,
        ordered=True,
    )


DATA = make_data()
RECIPE = Recipe(
    dataset={"name": "tiny"},
    split={"name": "ratio"},
    prepare=Prepare(threshold=None, label=None, user_core=0, item_core=0, defects="drop"),
)


def build(name: str, data: Data = DATA, *, seed: int = 0, **changes: Any) -> RecModel:
    """A fresh model of the registry, fitted where it has a closed form.

    A matrix that starts at zero, as half of LoRA does, would hide the other half: it starts beside zero.
    """
    torch.manual_seed(seed)
    model = checkpoint.build(configured("model", name, **changes), data)
    for each in model.parameters():
        if each.ndim > 1 and not each.any():
            nn.init.normal_(each, std=0.1)
    model.fit(data)
    return model


def batch_for(model: RecModel, data: Data = DATA, *, size: int = 16, seed: int = 0) -> Batch:
    """A training batch as the model is shown it."""
    built = sampler(data, model, loss=model.loss, batch_size=size, negatives=None)
    return next(iter(built.epoch(torch.Generator().manual_seed(seed))))


def question(model: RecModel, users: Tensor, items: Tensor | None = None, data: Data = DATA) -> Batch:
    """What the model is asked about users whose training events are known."""
    return Histories(data.train, n_users=data.n_users, n_items=data.n_items).question(users, items, model.window)


def batch_of(data: Data = DATA, *, size: int = 16, negatives: int = 2, seed: int = 0) -> Batch:
    sampler = Events(data, batch_size=size, negatives=negatives)
    return next(iter(sampler.epoch(torch.Generator().manual_seed(seed))))


def surfaces(model: RecModel) -> list[str]:
    """The surfaces that a model has."""
    found = []
    for kind in SURFACES:
        try:
            surface(model, kind)
        except RrecError:
            continue
        found.append(kind)
    return found


def fit(**changes: Any) -> Fit:
    values: dict[str, Any] = {
        "loss": None,
        "epochs": 6,
        "batch_size": 16,
        "negatives": 1,
        "optimizer": "adam",
        "lr": 0.01,
        "momentum": 0.0,
        "decay_after": None,
        "weight_decay": 0.0,
        "clip_norm": None,
        "patience": 100,
        "monitor": "ndcg@5",
    }
    return Fit(**(values | changes))


def judge(**changes: Any) -> Judge:
    values: dict[str, Any] = {
        "protocol": "full",
        "seen": False,
        "n_negatives": 5 if changes.get("protocol") in ("sampled", "clicks") else None,
        "metrics": ["ndcg", "recall", "precision", "hr", "mrr", "map", "auc", "coverage"],
        "top_k": [5],
        "per_user": False,
    }
    return Judge(**(values | changes))


def gradients(model: nn.Module, value: Tensor) -> dict[str, Tensor]:
    """d value / d parameter by name, zeros where there is none; nothing is left on the model."""
    model.zero_grad()
    value.backward()
    found = {
        name: torch.zeros_like(each) if each.grad is None else each.grad.clone()
        for name, each in model.named_parameters()
    }
    model.zero_grad()
    return found


def moved(model: RecModel, delta: Mapping[str, Tensor]) -> RecModel:
    """A copy whose tensors really are elsewhere."""
    from copy import deepcopy

    copy = deepcopy(model)
    with torch.no_grad():
        for name, each in delta.items():
            owner, _, leaf = name.rpartition(".")
            getattr(copy.get_submodule(owner), leaf).add_(each)
    return copy


class Toy(RecModel):
    """Every surface: embeddings, matrices, biases, a feature buffer, a site in `encode` and one in `forward`."""

    loss = "bpr"

    def __init__(self, data: Data = DATA, *, dim: int = 4, dtype: torch.dtype = torch.float64, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.user, self.item = nn.Embedding(data.n_users, dim), nn.Embedding(data.n_items, dim)
        self.register_buffer("feature_item", torch.randn(data.n_items, 3))
        self.lift, self.first, self.last = nn.Linear(3, dim), nn.Linear(2 * dim, 6), nn.Linear(6, 1)
        self.aside = nn.Linear(dim, dim)  # on no path to the scores
        self.tower, self.hidden = Site(), Site()
        self.encoded_times = 0
        self.to(dtype)

    def encode(self) -> Tensor:
        self.encoded_times += 1
        return self.tower(self.item.weight + torch.tanh(self.lift(self.feature_item)))  # type: ignore[no-any-return]

    def forward(self, batch: Batch, encoded: Tensor) -> Output:
        users = self.user(batch.users)  # [B, D]
        items = encoded.expand(len(batch), *encoded.shape) if batch.items is None else encoded[batch.items]
        joined = torch.cat([users[:, None].expand_as(items), items], -1)  # [B, C, 2D]
        scores = self.last(F.relu(self.hidden(self.first(joined)))).squeeze(-1)
        return Output(scores, {"user": users})

    def penalty(self, batch: Batch, said: Callable[[], Output]) -> Tensor:
        return 1e-3 * self.user(batch.users).square().sum() / len(batch)


def penalty(model: RecModel, batch: Batch) -> Tensor | float:
    """As the trainer asks for it."""
    return model.penalty(batch, partial(Shifted(model).said, batch))


class Fixed(RecModel):
    """Scores that a test writes down, `[n_users, n_items]`."""

    def __init__(self, scores: Tensor) -> None:
        super().__init__()
        self.table = nn.Parameter(scores.clone())

    def forward(self, batch: Batch, encoded: None) -> Output:
        rows = self.table[batch.users]
        return Output(rows if batch.items is None else rows.gather(1, batch.items))


def learner(name: str) -> RecModel:
    return Toy() if name == "toy" else build(name).eval()


def usual(model: RecModel) -> Objective:
    """The loss that a model is trained with."""
    return Plain(loss(model.loss))


def defended(
    name: str,
    model: RecModel,
    inner: Objective | None = None,
    *,
    epoch: int = 0,
    data: Data | None = None,
    **changes: Any,
) -> Any:
    """A defence as it stands in an epoch of a training, on some data where it is to know of them."""
    built = defenses.build(configured("defense", name, **changes), inner or usual(model), model)
    if data is not None:
        introduce(built, model, data)
    start_epoch(built, epoch, torch.Generator().manual_seed(epoch))
    return built


def against(
    attack: str, model: RecModel, data: Data = DATA, *, inner: Objective | None = None, **changes: Any
) -> Adversarial:
    """Adversarial training against an attack that is no perturbation alone, half of it clean."""
    config = configured("attack", attack, **changes)
    built = defended("at", model, inner, data=data, clean_weight=0.5, attack=config)
    assert isinstance(built, Adversarial)
    return built


def delta_of(objective: Adversarial, model: RecModel, batch: Batch) -> dict[str, Tensor]:
    return dict(objective.attack(Shifted(model), batch, objective.inner)[0].delta)


def assert_gradients(found: dict[str, Tensor], expected: dict[str, Tensor], **tolerance: Any) -> None:
    assert any(each.any() for each in expected.values())
    for name, each in expected.items():
        torch.testing.assert_close(found[name], each, **tolerance)


@pytest.fixture
def toy() -> Toy:
    return Toy()


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)
