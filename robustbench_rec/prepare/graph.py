"""The knowledge graph, indexed so that entities 0 … n_items-1 are the items."""

import numpy as np
import pandas as pd
import torch

from robustbench_rec.data import KG
from robustbench_rec.errors import RrecError
from robustbench_rec.prepare.report import Report
from robustbench_rec.raw import Array, Raw, one_to_one


def index_kg(raw: Raw, item_ids: pd.Index, known: pd.Index, report: Report) -> KG | None:
    """The KG of the items in `item_ids`, None where the source has none.

    An item that is linked takes the index and the triples of its entity; others are entities without triples. The other
    entities follow in the order in which the triples name them. known: every item that the source has events of.
    """
    if raw.kg is None:
        return None
    kg = raw.kg[~raw.kg.duplicated()] if report.defect("kg_duplicates", int(raw.kg.duplicated().sum())) else raw.kg
    ends, names = pd.factorize(pd.concat([kg["head"], kg["tail"]], ignore_index=True))
    triples = ends.reshape(2, -1).T  # [T, 2]
    relations, relation_names = pd.factorize(kg["relation"])
    entities = pd.Index(names)
    item_entity = _links(raw, item_ids, known, entities, report)  # [n_items], -1: not linked
    linked = item_entity >= 0
    if len(kg) and not linked.any():
        raise RrecError(
            f"dataset '{report.name}': none of its {len(item_ids):,} items is in its knowledge graph of {len(kg):,} "
            "triples; are the ids of the links, or the names of the entities, those of the items?"
        )
    is_item = np.zeros(len(entities), dtype=bool)
    is_item[item_entity[linked]] = True

    index = np.full(len(entities), -1)
    index[item_entity[linked]] = np.flatnonzero(linked)
    others = pd.unique(triples.ravel()[~is_item[triples.ravel()]])
    index[others] = len(item_ids) + np.arange(len(others))
    relation_codes, relation_order = pd.factorize(relations)
    own_names = np.where(linked, entities.to_numpy()[item_entity], item_ids.to_numpy())
    heads, tails = index[triples].T
    return KG(
        heads=torch.from_numpy(np.ascontiguousarray(heads)),
        relations=torch.from_numpy(relation_codes.astype(np.int64)),
        tails=torch.from_numpy(np.ascontiguousarray(tails)),
        entity_ids=[*own_names.tolist(), *entities.to_numpy()[others].tolist()],
        relation_ids=list(relation_names[relation_order]),
        linked=torch.from_numpy(linked),
    )


def _links(raw: Raw, item_ids: pd.Index, known: pd.Index, entities: pd.Index, report: Report) -> Array:
    """The entity code of each item, -1 where none `[n_items]`."""
    if raw.links is None:
        return entities.get_indexer(item_ids)
    unknown = ~raw.links["item"].isin(known).to_numpy()
    links = raw.links[~unknown]
    single = one_to_one(links)
    report.defect("links_ambiguous", int((~single).sum()))
    report.defect("links_unknown", int(unknown.sum()))
    links = links[single]
    codes = pd.Series(entities.get_indexer(pd.Index(links["entity"])), index=pd.Index(links["item"]))
    report.defect("links_without_triples", int((codes < 0).sum()))
    return codes.reindex(item_ids, fill_value=-1).to_numpy()
