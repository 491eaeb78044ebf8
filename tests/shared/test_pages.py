"""Page tokens: signed, and valid only for the list that they came from."""

import base64

import pytest
from pydantic import SecretStr

from postbus.posts.v1 import ListFeedRequest, ListPostsRequest
from shared.data.pages import Pages
from shared.errors import Code, ServiceError

PAGES = Pages(SecretStr("the key"))
REQUEST = ListPostsRequest(tag="a")


def token(*position: str | int) -> str:
    return PAGES.of(REQUEST).token(position)


def test_token_contains_its_position() -> None:
    page = PAGES.of(ListPostsRequest(tag="a", page_size=7, page_token=token(5, "日本")))

    assert (page.size, page.limit, page.after) == (7, 8, (5, "日本"))


def test_request_without_a_token_selects_the_first_page() -> None:
    page = PAGES.of(REQUEST)

    assert (page.size, page.after) == (20, ())


def test_page_has_a_token_if_a_next_page_exists() -> None:
    page = PAGES.of(ListPostsRequest(tag="a", page_size=2))

    items, following = page.cut([1, 2, 3], lambda item: (item,))
    assert items == [1, 2]
    assert PAGES.of(ListPostsRequest(tag="a", page_token=following)).after == (2,)
    assert page.cut([1, 2], lambda item: (item,)) == ([1, 2], "")


async def test_total_is_counted_only_if_the_request_includes_it() -> None:
    calls: list[tuple[str, bool]] = []

    async def count(tag: str, *, drafts: bool) -> int:
        calls.append((tag, drafts))
        return 7

    without = await PAGES.of(REQUEST).total(count, "a", drafts=False)
    included = PAGES.of(ListPostsRequest(tag="a", include_total=True))

    assert (without, calls) == (None, [])
    assert await included.total(count, "a", drafts=True) == 7
    assert calls == [("a", True)]


@pytest.mark.parametrize(
    "request_",
    [
        ListPostsRequest(tag="b", page_token=token(1)),
        ListPostsRequest(page_token=token(1)),
        ListFeedRequest(page_token=token(1)),
        ListPostsRequest(tag="a", page_token=token(1)[:-1]),
        ListPostsRequest(tag="a", page_token=token(1) + "A"),
        ListPostsRequest(tag="a", page_token="x" + token(1)[1:]),
        ListPostsRequest(tag="a", page_token=f"{token(1)[:8]}!!!!{token(1)[8:]}"),
        ListPostsRequest(tag="a", page_token="****"),  # noqa: S106  # no password
        ListPostsRequest(tag="a", page_token="é"),  # noqa: S106  # no password
        ListPostsRequest(tag="a", page_token="A" * 400),
        ListPostsRequest(tag="a", page_token=Pages(SecretStr("another")).of(REQUEST).token((1,))),
    ],
)
def test_foreign_or_changed_token_is_an_invalid_argument(
    request_: ListPostsRequest | ListFeedRequest,
) -> None:
    with pytest.raises(ServiceError) as raised:
        PAGES.of(request_)

    assert (raised.value.code, raised.value.reason) == (
        Code.INVALID_ARGUMENT,
        "PAGE_TOKEN_INVALID",
    )


def test_page_token_begins_with_a_mac_of_128_bits() -> None:
    token = Pages(SecretStr("key")).of(ListFeedRequest()).token(("x",))

    assert base64.urlsafe_b64decode(token + "=" * (-len(token) % 4))[16:] == b'["x"]'
