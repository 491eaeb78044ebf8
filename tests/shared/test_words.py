"""Words of texts."""

import pytest

from shared.words import distinct_words, words


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
        ("", []),
    ],
)
def test_words_have_neither_case_nor_accents(text: str, found: list[str]) -> None:
    assert words(text) == found


def test_text_and_the_same_text_composed_otherwise_have_the_same_words() -> None:
    assert words("e\u0301te\u0301") == words("\u00e9t\u00e9") == ["ete"]


def test_words_are_found_once() -> None:
    assert distinct_words("One two", "TWO three") == ["one", "two", "three"]
