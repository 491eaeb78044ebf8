"""The check of docstrings in `just check`."""

from tools.language import vague_docstrings

_SOURCE = '''"""What the module does."""

class Vague:
    """Those of others."""

def named() -> None:
    """Return the sort key."""

def vague() -> None:
    """Return what is sorted by."""

def later() -> None:
    """Return the sort key.

    Those of deleted posts are empty.
    """

def whatever() -> None:
    """Return whatever."""

def none() -> None:
    pass

async def loud() -> None:
    """NOBODY waits."""
'''


def test_vague_word_in_the_first_paragraph_of_a_docstring_is_found() -> None:
    found, count = vague_docstrings(_SOURCE)

    assert found == [
        (1, "What the module does."),
        (3, "Those of others."),
        (9, "Return what is sorted by."),
        (24, "NOBODY waits."),
    ]
    assert count == 7
