"""Words of texts for search."""

import pytest

from shared.data.search_terms import distinct_words, words


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("Crème BRÛLÉE", ["creme", "brulee"]),
        ("STRASSE Straße", ["strasse", "strasse"]),
        ("ﬁne ①", ["fine", "1"]),
        ("a_b-c.d/e'f", ["a", "b", "c", "d", "e", "f"]),
        ("Ёлка", ["елка"]),
        ("がぎ", ["がぎ"]),
        ("हिन्दी", ["हिन्दी"]),
        ("한국어", ["한국어"]),
        ("🎉 ' & !", []),
        ("I ❤\ufe0f 1\ufe0f\u20e3", ["i", "1"]),
        ("❤\ufe0f \u094d", []),
        ("Postbus™ ㎅", ["postbustm", "kb"]),
        ("\u13a0 \uab70", ["\u13a0", "\u13a0"]),  # Cherokee folds to capital letters
        ("", []),
    ],
)
def test_words_have_no_case_and_no_accents(text: str, found: list[str]) -> None:
    assert words(text) == found


def test_composed_and_decomposed_texts_have_the_same_words() -> None:
    assert words("e\u0301te\u0301") == words("\u00e9t\u00e9") == ["ete"]


def test_words_of_words_are_the_same_words() -> None:
    every = [chr(code) for code in range(0x30000) if not 0xD800 <= code < 0xE000]

    assert [each for each in every if words(" ".join(words(each))) != words(each)] == []


def test_distinct_words_have_no_duplicates() -> None:
    assert distinct_words("One two", "TWO three") == ["one", "two", "three"]
