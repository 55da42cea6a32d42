"""A made-up world whose truth is known."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from robustbench_rec.datasets import datasets
from robustbench_rec.errors import RrecError
from robustbench_rec.raw import Array, Raw, Source

START, SPAN = 1_500_000_000, 2 * 365 * 86_400  # seconds: July 2017, two years
AGE_GROUPS = ("under 18", "18-24", "25-34", "35-49", "50 and over")
CONSONANTS, VOWELS = "bdfgklmnprstvz", "aeiou"
REDRAWS = 8  # rounds in which an item that the user already has is drawn anew


@datasets.register
class Synthetic(Source):
    """A seeded world of any size: drifting intents, a KG, texts, features, times, label noise, and the truth of it all.

    Every item serves one of `n_intents` intents, every user mixes them, and moves by the share `drift` from a first
    mixture to a last. Items have a long tail of popularity. Each has three triples: a share `kg_share` of these names
    an entity of the item's own intent, the rest any entity (1: the KG reveals the intents, 0: it is noise); entities
    hang on the hub of their intent. Titles and texts use words of intent and entities, item and user features lean on
    the intent. Ratings go from 1 to 5 with the taste of the user and the quality of the item; a share `label_noise` of
    the events is noise: any item at all, and the rating turned round.

    truth: `event/intent` (the intent acted on, -1 for noise), `event/noise`, `event/rating` (before the noise),
    `user/start` and `user/end` (mixtures `[n_users, n_intents]`), `item/intent`, `item/quality`.
    """

    @dataclass
    class Config:
        n_users: int
        n_items: int
        events_per_user: float
        n_intents: int
        n_entities: int
        n_relations: int
        kg_share: float
        drift: float
        label_noise: float
        seed: int

    config: Config

    def files(self, root: Path) -> list[Path]:
        return []

    def load(self, root: Path) -> Raw:
        self._check()
        c = self.config
        rng = np.random.default_rng(c.seed)
        item_intent = rng.permutation(np.arange(c.n_items) % c.n_intents)
        quality = rng.standard_normal(c.n_items)
        start, end = (rng.dirichlet(np.full(c.n_intents, 0.3), c.n_users) for _ in range(2))
        item_ids, user_ids = _ids("i", c.n_items), _ids("u", c.n_users)
        entity_intent = np.arange(c.n_entities) % c.n_intents
        names = _words(rng, c.n_intents * 6 + c.n_entities)
        attributes = self._attributes(rng, item_intent, entity_intent)
        events, truth = self._events(rng, item_intent, quality, start, end)
        return Raw(
            events=events.assign(user=user_ids[events["user"]], item=item_ids[events["item"]]).astype(
                {"user": "str", "item": "str"}
            ),
            items=self._items(rng, item_ids, item_intent, attributes, names),
            users=self._users(rng, user_ids, start.argmax(axis=1)),
            kg=self._kg(rng, item_ids, attributes, entity_intent, names[c.n_intents * 6 :]),
            scale=(1.0, 5.0),
            truth=truth | {"user/start": start, "user/end": end, "item/intent": item_intent, "item/quality": quality},
        )

    def _check(self) -> None:
        c = self.config
        sizes = {"n_users": (c.n_users, 2), "n_items": (c.n_items, 2), "events_per_user": (c.events_per_user, 1)}
        sizes |= {
            "n_intents": (c.n_intents, 1),
            "n_relations": (c.n_relations, 2),
            "n_entities": (c.n_entities, c.n_intents),
        }
        for name, (value, least) in sizes.items():
            if value < least:
                raise RrecError(f"dataset.{name} must be at least {least}, got {value}")
        for name, share in {"kg_share": c.kg_share, "drift": c.drift, "label_noise": c.label_noise}.items():
            if not 0 <= share <= 1:
                raise RrecError(f"dataset.{name} must lie between 0 and 1, got {share}")
        if c.n_intents > c.n_items:
            raise RrecError(f"dataset.n_intents={c.n_intents} needs as many items, got n_items={c.n_items}")

    def _events(
        self, rng: np.random.Generator, item_intent: Array, quality: Array, start: Array, end: Array
    ) -> tuple[pd.DataFrame, dict[str, Array]]:
        c = self.config
        # A long tail of activity as well; nobody has more than half of the catalogue.
        counts = rng.negative_binomial(2, 2 / (2 + max(c.events_per_user - 3, 1e-9)), c.n_users) + min(
            3, c.events_per_user
        )
        counts = np.clip(counts, 1, max(c.n_items // 2, 1)).astype(np.int64)
        users = np.repeat(np.arange(c.n_users), counts)
        place = np.arange(len(users)) - np.repeat(np.cumsum(counts) - counts, counts)
        moved = c.drift * place / np.maximum(counts[users] - 1, 1)  # [N]
        taste = (1 - moved)[:, None] * start[users] + moved[:, None] * end[users]  # [N, K]
        intents = (taste.cumsum(axis=1) < rng.random(len(users))[:, None]).sum(axis=1).clip(max=c.n_intents - 1)
        noise = rng.random(len(users)) < c.label_noise
        items = _distinct_items(rng, users, intents, noise, item_intent)
        kept = items >= 0
        users, items, intents, noise, taste = users[kept], items[kept], intents[kept], noise[kept], taste[kept]

        # The item's intent against the one that the user likes best at that time, [N]
        liking = taste[np.arange(len(users)), item_intent[items]] / taste.max(axis=1)
        ratings = 1.5 + 2.5 * np.sqrt(liking) + 0.5 * quality[items] + 0.4 * rng.standard_normal(len(users))
        ratings = np.clip(np.rint(ratings), 1, 5)
        events = pd.DataFrame(
            {
                "user": users,
                "item": items,
                "rating": np.where(noise, 6 - ratings, ratings),
                "time": _times(rng, users, c.n_users),
            }
        )
        truth = {"event/intent": np.where(noise, -1, intents), "event/noise": noise, "event/rating": ratings}
        return events, truth

    def _attributes(self, rng: np.random.Generator, item_intent: Array, entity_intent: Array) -> Array:
        """Three entities an item, `[n_items, 3]`; entity e belongs to intent e mod n_intents."""
        c = self.config
        shape = (c.n_items, 3)
        per_intent = np.bincount(entity_intent, minlength=c.n_intents)
        own = item_intent[:, None] + c.n_intents * (rng.random(shape) * per_intent[item_intent][:, None]).astype(
            np.int64
        )
        return np.where(rng.random(shape) < c.kg_share, own, rng.integers(c.n_entities, size=shape))

    def _kg(
        self, rng: np.random.Generator, item_ids: Array, attributes: Array, entity_intent: Array, names: Array
    ) -> pd.DataFrame:
        """Item triples under relations 1 …, and `belongs_to` from every entity to the hub of its intent."""
        c = self.config
        entity_ids = np.char.add(_ids("e", c.n_entities), np.char.add("_", names[: c.n_entities]))
        relation_of = rng.integers(1, c.n_relations, size=c.n_entities)
        relation_ids = np.concatenate([["belongs_to"], np.char.add("has_", _ids("r", c.n_relations - 1))])
        triples = {
            "head": np.concatenate([np.repeat(item_ids, 3), entity_ids]),
            "relation": np.concatenate(
                [relation_ids[relation_of[attributes.ravel()]], np.full(c.n_entities, "belongs_to")]
            ),
            "tail": np.concatenate([entity_ids[attributes.ravel()], _ids("hub", c.n_intents)[entity_intent]]),
        }
        return pd.DataFrame(triples, dtype="str").drop_duplicates(ignore_index=True)

    def _items(
        self, rng: np.random.Generator, item_ids: Array, item_intent: Array, attributes: Array, names: Array
    ) -> pd.DataFrame:
        c = self.config
        of_intent, of_entity = names[: c.n_intents * 6].reshape(c.n_intents, 6), names[c.n_intents * 6 :]
        first, second, third = of_intent[item_intent[:, None], rng.integers(6, size=(c.n_items, 3))].T
        title = _joined([np.char.capitalize(first), of_entity[attributes[:, 0]], _ids("", c.n_items)])
        text = _joined([first, second, third, of_entity[attributes[:, 1]], of_entity[attributes[:, 2]]])
        category = np.where(rng.random(c.n_items) < 0.9, item_intent, rng.integers(c.n_intents, size=c.n_items))
        year = 1980 + (40 * (item_intent / c.n_intents) + rng.normal(0, 5, c.n_items)).astype(np.int64).clip(0, 39)
        columns = {"item": item_ids, "title": title, "text": text, "category": of_intent[category, 0]}
        return pd.DataFrame(columns, dtype="str").assign(year=year)

    def _users(self, rng: np.random.Generator, user_ids: Array, main: Array) -> pd.DataFrame:
        """Age group and gender, each with odds of their own in every main intent."""
        c = self.config
        ages = rng.dirichlet(np.full(len(AGE_GROUPS), 0.7), c.n_intents).cumsum(axis=1)
        age = (ages[main] < rng.random(c.n_users)[:, None]).sum(axis=1).clip(max=len(AGE_GROUPS) - 1)
        women = rng.uniform(0.15, 0.85, c.n_intents)
        gender = np.where(rng.random(c.n_users) < women[main], "F", "M")
        return pd.DataFrame({"user": user_ids, "age_group": np.array(AGE_GROUPS)[age], "gender": gender}, dtype="str")


def _distinct_items(rng: np.random.Generator, users: Array, intents: Array, noise: Array, item_intent: Array) -> Array:
    """An item for each event, by intent and popularity, any one for noise; -1 where only repeats were drawn `[N]`."""
    n_items = len(item_intent)
    by_intent = np.argsort(item_intent, kind="stable")
    places = np.arange(n_items) - np.searchsorted(item_intent[by_intent], item_intent[by_intent])
    popularity = 1 / (places + 3.0)  # Zipf within each intent
    upto = np.concatenate([[0.0], popularity.cumsum()])
    bounds = np.searchsorted(item_intent[by_intent], np.arange(item_intent.max() + 2))
    low, high = upto[bounds[:-1]], upto[bounds[1:]]

    items = np.full(len(users), -1)
    missing = np.arange(len(users))
    for _ in range(REDRAWS):
        intent = intents[missing]
        point = low[intent] + rng.random(len(missing)) * (high - low)[intent]
        chosen = by_intent[(np.searchsorted(upto, point, side="right") - 1).clip(0, n_items - 1)]
        items[missing] = np.where(noise[missing], rng.integers(n_items, size=len(missing)), chosen)
        missing = np.flatnonzero(pd.Series(users * n_items + items).duplicated().to_numpy())
        if not len(missing):
            break
    items[missing] = -1
    return items


def _times(rng: np.random.Generator, users: Array, n_users: int) -> Array:
    """Strictly increasing times of each user, spread over up to a year, int64 seconds `[N]`."""
    gaps = rng.exponential(size=len(users))
    first = np.flatnonzero(np.diff(users, prepend=-1))
    counts = np.diff(np.append(first, len(users)))
    since = gaps.cumsum() - np.repeat(gaps.cumsum()[first], counts)
    whole = np.repeat(np.maximum(np.maximum.reduceat(since, first), 1e-9), counts)
    place = np.arange(len(users)) - np.repeat(first, counts)
    length = rng.integers(SPAN // 2, size=n_users)[users]
    times: Array = START + rng.integers(SPAN, size=n_users)[users] + (since / whole * length).astype(np.int64) + place
    return times


def _ids(prefix: str, count: int) -> Array:
    return np.char.add(prefix, np.arange(count).astype(str))


def _words(rng: np.random.Generator, count: int) -> Array:
    """Different made-up words of three syllables, four when these run out."""
    syllables = np.array([consonant + vowel for consonant in CONSONANTS for vowel in VOWELS])
    length = 3 if count <= len(syllables) ** 3 // 2 else 4
    codes = rng.choice(len(syllables) ** length, size=count, replace=False)
    digits = (codes[:, None] // len(syllables) ** np.arange(length)) % len(syllables)
    return _joined(list(syllables[digits].T), "")


def _joined(columns: list[Array], between: str = " ") -> Array:
    text = columns[0]
    for column in columns[1:]:
        text = np.char.add(np.char.add(text, between), column)
    return text
