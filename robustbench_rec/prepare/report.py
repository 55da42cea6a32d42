"""What cleaning found: every rule is counted, nothing is left out in silence."""

from robustbench_rec.errors import RrecError, unknown

MODES = ("drop", "refuse", "keep")

DEFECTS = {
    "duplicates": "events that repeat another one in everything",
    "repeated_pairs": "events whose user and item met before (the first by time stays)",
    "nonfinite_ratings": "events whose rating is no finite number of single precision",
    "out_of_scale": "events whose rating is outside the scale",
    "impossible_times": "events at time 0 or before, or more than a day in the future",
    "items_repeated": "rows of the item table whose id came before",
    "items_unknown": "rows of the item table whose item has no event",
    "users_repeated": "rows of the user table whose id came before",
    "users_unknown": "rows of the user table whose user has no event",
    "kg_duplicates": "triples that came before",
    "links_ambiguous": "links whose item or entity is linked already (the first stays)",
    "links_unknown": "links whose item has no event",
    "links_without_triples": "links whose entity is in no triple",
    "users_without_train": "users with no train event after the split",
}
NOTES = {
    "below_threshold": "events rated below prepare.threshold",
    "clicks": "events rated at least prepare.label, the others are none",
    "core_users": "users with fewer events than prepare.user_core",
    "core_items": "items with fewer events than prepare.item_core",
    "core_events": "events of these users and items",
    "items_without_row": "items that the item table does not have",
    "users_without_row": "users that the user table does not have",
    "events_without_train": "valid and test events of users with no train event (left out)",
    "valid_items_unseen": "items in valid that train never shows (kept)",
    "test_items_unseen": "items in test that train never shows (kept)",
    "valid_seen_in_train": "valid events whose user and item met in train (left out of a ranking unless seen=true)",
    "test_seen_in_train": "test events whose user and item met in train (left out of a ranking unless seen=true)",
}


class Report:
    """The counts of one preparation, in the order of the rules.

    mode: drop leaves defects out, refuse raises RrecError at the first, keep leaves them in where they can be indexed
    (side rows and links without an event, and users without a train event, never can).
    """

    def __init__(self, name: str, mode: str) -> None:
        if mode not in MODES:
            raise unknown("value of prepare.defects", mode, MODES)
        self.name = name
        self.mode = mode
        self.counts: dict[str, int] = {}

    def defect(self, rule: str, count: int) -> bool:
        """Count a defect; true when it is to be left out."""
        if count and self.mode == "refuse":
            raise RrecError(
                f"dataset '{self.name}', {rule}: {count:,} {DEFECTS[rule]}; "
                "prepare.defects=drop goes on without them, rrec data info shows every count"
            )
        self.counts[rule] = int(count)
        return count > 0 and self.mode == "drop"

    def note(self, rule: str, count: int) -> None:
        """Count what was asked for, or is worth knowing."""
        self.counts[rule] = int(count)
