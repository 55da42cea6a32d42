"""Edits of texts keep their budgets, distances are those of other people's code, sanitisation undoes disguises."""

import unicodedata
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.metrics.pairwise import cosine_similarity

from robustbench_rec.text.distances import Similarity, levenshtein, overlap
from robustbench_rec.text.edits import BESIDE, HOMOGLYPHS, KINDS, ZERO_WIDTH, kinds, popular_words
from robustbench_rec.text.neighbours import Neighbours, shared_titles
from robustbench_rec.text.recipes import RECIPES, Limits, phrases, substitutes
from robustbench_rec.text.sanitise import compatible, latin, once, sanitise, visible
from robustbench_rec.text.words import LABELS, STOP, Pieces, editable, in_case_of, part_of_speech, spans

TEXTS = st.text(max_size=30)
TITLES = st.text(alphabet="abcdeXYZ 'é-.3ßж", max_size=30)
LATIN = st.text(alphabet="abcdeopxyABCXYZ 'é-.3ß", max_size=30)
POPULAR = ["Star", "Wars", "Fargo"]
TITLE = "Hunt for Red October, The (1990)"


def recursive(a: str | list[str], b: str | list[str]) -> int:
    """The textbook table."""
    row = list(range(len(b) + 1))
    for x, here in enumerate(a, 1):
        new = [x]
        for y, there in enumerate(b, 1):
            new.append(min(row[y] + 1, new[-1] + 1, row[y - 1] + (here != there)))
        row = new
    return row[-1]


class TestEdits:
    @pytest.mark.parametrize("name", KINDS)
    @given(text=st.one_of(TEXTS, TITLES), budget=st.integers(0, 8), seed=st.integers(0, 3))
    def test_no_edit_goes_beyond_its_budget_and_the_seed_decides(
        self, name: str, text: str, budget: int, seed: int
    ) -> None:
        kind = kinds(POPULAR)[name]
        one, two = (kind.edit(text, np.random.default_rng(seed), budget // kind.cost) for _ in range(2))
        assert one == two
        assert levenshtein([text], [one], kind.unit) <= budget
        if not budget:
            assert one.split() == text.split()

    @pytest.mark.parametrize("name", KINDS)
    def test_every_edit_changes_a_title(self, name: str) -> None:
        kind = kinds(POPULAR)[name]
        found = kind.edit(TITLE, np.random.default_rng(0), 6)
        assert found != TITLE
        assert 1 <= levenshtein([TITLE], [found], kind.unit)[0] <= 6 * kind.cost

    @pytest.mark.parametrize("name", KINDS)
    def test_the_least_budget_is_what_the_smallest_edit_takes(self, name: str) -> None:
        kind = kinds(POPULAR)[name]
        for budget in (kind.least - 1, kind.least):
            found = kind.edit(TITLE, np.random.default_rng(0), budget // kind.cost)
            assert (found != TITLE) == (budget == kind.least)

    def test_typing_errors_are_on_keys_that_touch(self) -> None:
        assert set(BESIDE["g"]) == set("fhtyvb")
        assert set(BESIDE["q"]) == set("wa")
        assert all(key in BESIDE[near] for key, beside in BESIDE.items() for near in beside)
        found = kinds(())["typo"].edit(TITLE, np.random.default_rng(1), 5)
        changed = [(a, b) for a, b in zip(TITLE, found, strict=True) if a != b]
        assert len(changed) == 5
        assert all(b.lower() in BESIDE[a.lower()] and a.isupper() == b.isupper() for a, b in changed)

    def test_lookalikes_are_other_letters_of_one_case(self) -> None:
        for letter, other in HOMOGLYPHS.items():
            assert unicodedata.name(other).startswith("CYRILLIC")
            assert letter.isupper() == other.isupper()

    def test_a_shuffle_keeps_the_words_and_a_cut_the_first_ones(self) -> None:
        known, rng = kinds(()), np.random.default_rng(0)
        assert sorted(known["shuffle"].edit(TITLE, rng, 4).split()) == sorted(TITLE.split())
        assert known["truncate"].edit(TITLE, rng, 2) == "Hunt for Red October,"
        assert known["truncate"].edit(TITLE, rng, 99) == "Hunt"

    def test_stuffing_copies_popular_words_that_are_not_there_yet(self) -> None:
        stuffed = kinds(["October", "Star", "the", "Wars"])["stuffing"]
        assert stuffed.edit("October Sky", np.random.default_rng(0), 2) == "October Sky Star the"
        assert popular_words(["The Star Wars", "Star Trek 2", "title: Fargo"]) == ["Star", "Wars", "Trek", "Fargo"]

    def test_a_sentence_needs_its_room(self) -> None:
        sentence = kinds(())["sentence"]
        assert sentence.edit("Fargo", np.random.default_rng(0), 5) == "Fargo"
        assert sentence.edit("Fargo", np.random.default_rng(0), 6) == "Fargo users who like everything love this"


class TestDistances:
    @given(st.lists(st.tuples(TITLES, TITLES), max_size=6))
    def test_levenshtein_is_that_of_the_table(self, pairs: list[tuple[str, str]]) -> None:
        old, new = [each[0] for each in pairs], [each[1] for each in pairs]
        assert levenshtein(old, new).tolist() == [recursive(a, b) for a, b in pairs]
        words = levenshtein(old, new, "words").tolist()
        assert words == [recursive(a.split(), b.split()) for a, b in pairs]

    @given(st.lists(st.tuples(TEXTS, TEXTS), max_size=6))
    def test_levenshtein_is_that_of_rapidfuzz(self, pairs: list[tuple[str, str]]) -> None:
        judge = pytest.importorskip("rapidfuzz.distance").Levenshtein
        old, new = [each[0] for each in pairs], [each[1] for each in pairs]
        assert levenshtein(old, new).tolist() == [judge.distance(a, b) for a, b in pairs]

    def test_similarity_is_that_of_scikit_learn(self) -> None:
        texts = ["Star Wars 1977", "Star Trek", "Fargo. Crime", "The Sea"]
        judge = TfidfVectorizer(analyzer="char", ngram_range=(3, 3)).fit([f" {each} " for each in texts])
        vectors = judge.transform([f" {each} " for each in texts])
        expected = cosine_similarity(vectors)
        mine = Similarity(texts)
        found = [[mine(a, b) for b in texts] for a in texts]
        np.testing.assert_allclose(found, expected, atol=1e-12)

    @given(TITLES, TITLES)
    def test_likeness_is_between_nothing_and_equality(self, old: str, new: str) -> None:
        mine = Similarity([TITLE, old])
        assert -1e-9 <= mine(old, new) <= 1 + 1e-9
        assert mine(old, new) == pytest.approx(mine(new, old))
        assert mine(old, old) == pytest.approx(1)
        assert 0 <= overlap(old, new) <= overlap(old, old) == 1

    def test_fewer_edits_are_more_alike(self) -> None:
        mine = Similarity([TITLE])
        found = [mine(TITLE, each) for each in (TITLE, "Hunt for Red Octobe, The (1990)", "Hunt Red", "Fargo")]
        assert all(a > b for a, b in pairwise(found))
        assert overlap("Red October", "red sea") == pytest.approx(1 / 3)


class TestSanitise:
    @given(text=LATIN, seed=st.integers(0, 5), count=st.integers(0, 20))
    @pytest.mark.parametrize("kind", ["homoglyph", "zero_width"])
    def test_it_undoes_disguises(self, kind: str, text: str, seed: int, count: int) -> None:
        disguised = kinds(())[kind].edit(text, np.random.default_rng(seed), count)
        assert sanitise(disguised) == sanitise(text)

    def test_a_disguised_title_comes_back_to_the_letter(self) -> None:
        known, rng = kinds(()), np.random.default_rng(0)
        disguised = known["zero_width"].edit(known["homoglyph"].edit(TITLE, rng, 20), rng, 20)
        assert disguised != TITLE
        assert sanitise(disguised) == TITLE

    @given(text=TEXTS)
    @pytest.mark.parametrize("fold", [True, False])
    def test_twice_is_once(self, fold: bool, text: str) -> None:
        assert sanitise(sanitise(text, fold_case=fold), fold_case=fold) == sanitise(text, fold_case=fold)

    @given(text=TITLES, seed=st.integers(0, 5))
    def test_case_noise_goes_where_case_is_folded(self, text: str, seed: int) -> None:
        noisy = kinds(())["case"].edit(text, np.random.default_rng(seed), 9)
        assert sanitise(noisy, fold_case=True) == sanitise(text, fold_case=True)

    def test_words_of_other_scripts_stay(self) -> None:
        assert sanitise("Солярис и Сталкер") == "Солярис и Сталкер"
        assert latin("Ѕtаr Солярис") == "Star Солярис"

    def test_each_step_does_its_part(self) -> None:
        assert visible(f"s{ZERO_WIDTH}ea\u00ad") == "sea"
        assert compatible("ｓｅａ ﬁlm") == "sea film"
        assert once("What?!!  now...") == "What?! now."


class TestWords:
    @given(TEXTS)
    def test_pieces_are_the_text(self, text: str) -> None:
        pieces = Pieces.of(text)
        assert pieces.text == text
        assert pieces.n_words == len(spans(text))
        assert [pieces.parts[each] for each in pieces.editable] == [text[a:b] for a, b in editable(text)]

    def test_grammar_numbers_and_labels_stay(self) -> None:
        free = [TITLE[a:b] for a, b in editable(TITLE)]
        assert free == ["Hunt", "Red", "October"]
        labelled = "title: The Brand brand: Acme"
        assert [labelled[a:b] for a, b in editable(labelled)] == ["Brand", "Acme"]
        assert not STOP & LABELS

    def test_a_replaced_word_is_not_replaced_again(self) -> None:
        pieces = Pieces.of(TITLE)
        found = pieces.putting(pieces.editable[1], "Blue")
        assert found.text == "Hunt for Blue October, The (1990)"
        assert found.editable == (pieces.editable[0], pieces.editable[2])
        assert found.text[found.start(found.editable[1]) :].startswith("October")

    def test_parts_of_speech_and_case(self) -> None:
        told = [part_of_speech(each) for each in ("quickly", "running", "famous", "darkness", "sea")]
        assert told == ["adverb", "verb", "adjective", "noun", "other"]
        assert [in_case_of("sea", each) for each in ("Red", "RED", "red", "I")] == ["Sea", "SEA", "sea", "Sea"]


class TestNeighbours:
    NEAR = Neighbours.of(["old", "ancient", "sea", "aged"], torch.tensor([[1.0, 0], [2, 0.2], [0, 1], [1, 1]]))

    def test_the_nearest_come_first_and_far_ones_not_at_all(self) -> None:
        assert self.NEAR.nearest("Old", 5, cosine=0.6, same_part=False) == ["ancient", "aged"]
        assert self.NEAR.nearest("old", 1, cosine=0.6, same_part=False) == ["ancient"]
        assert self.NEAR.nearest("new", 5, cosine=0.6, same_part=False) == []
        near = Neighbours.of(["quickly", "slow", "slowly"], torch.tensor([[1.0, 0], [1, 0.1], [1, 0.2]]))
        assert near.nearest("quickly", 5, cosine=0.6, same_part=True) == ["slowly"]

    def test_words_of_the_same_titles_are_near(self) -> None:
        titles = [
            "dark night crime",
            "night crime city",
            "dark crime night",
            "love song",
            "song of love",
            "sweet love song",
        ]
        near, state = shared_titles(titles, dim=3), torch.random.get_rng_state()
        assert near.nearest("love", 1, cosine=0.5, same_part=False) in (["song"], ["sweet"])
        assert set(near.nearest("night", 2, cosine=0.5, same_part=False)) <= {"crime", "dark", "city"}
        assert torch.equal(torch.random.get_rng_state(), state)
        assert not shared_titles(["", "!"]).words


class TestRecipes:
    @pytest.mark.parametrize("recipe", ["textfooler", "textbugger", "deepwordbug", "punctuation"])
    def test_substitutes_are_others_each_once_and_the_seed_decides(self, recipe: str) -> None:
        def found() -> list[str]:
            rng = np.random.default_rng(0)
            near = TestNeighbours.NEAR if recipe.startswith("text") else None
            return substitutes(recipe, "Ancient", rng, near, cosine=0.6, same_part=False)

        assert found() == found()
        assert len(set(found())) == len(found()) > 0
        assert "Ancient" not in found()
        edits = levenshtein(["Ancient"] * len(found()), found())
        assert (edits <= 2).all() or recipe.startswith("text")
        assert ("Old" in found()) == recipe.startswith("text")

    def test_at_least_one_word_may_change(self) -> None:
        assert [Limits(words=0.2).most(each) for each in (1, 5, 10)] == [1, 1, 2]
        assert Limits().most(7) == 7
        assert RECIPES["textfooler"].similarity == 0.8


def test_every_phrase_of_a_recipe_fits_its_limit() -> None:
    for recipe in ("stuffing", "insertion"):
        most = RECIPES[recipe].added
        assert most is not None
        assert all(len(each.split()) <= most for each in phrases(recipe, ["word"]))
