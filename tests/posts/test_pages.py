"""Page tokens."""

import pytest

from posts.pages import page_token, read_page_token
from shared.errors import Code, ServiceError

POST_ID = "018f3f6e-0000-7000-8000-000000000001"


def test_token_gives_back_the_id_it_was_made_of() -> None:
    assert read_page_token(page_token(POST_ID)) == POST_ID


def test_empty_token_is_the_first_page() -> None:
    assert read_page_token("") == ""


@pytest.mark.parametrize("token", ["x", "****", "AAAA", "a" * 400, "é"])
def test_token_of_another_make_is_an_invalid_argument(token: str) -> None:
    with pytest.raises(ServiceError) as raised:
        read_page_token(token)

    assert raised.value.code is Code.INVALID_ARGUMENT
