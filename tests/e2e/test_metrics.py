"""The metrics of the whole system at the gateway."""

import httpx
from prometheus_client.parser import text_string_to_metric_families


async def test_metrics_include_those_of_every_worker(client: httpx.AsyncClient) -> None:
    await client.get("/v1/posts")
    await client.get("/v1/users/nobody")

    response = await client.get("/metrics")

    samples = [
        (sample.name, sample.labels, sample.value)
        for family in text_string_to_metric_families(response.text)
        for sample in family.samples
    ]
    workers = {
        labels["worker"] for name, labels, _ in samples if name.startswith("postbus_worker_")
    }
    assert workers == {"posts", "users"}
    ran = {
        labels["handler"]: value
        for name, labels, value in samples
        if name == "postbus_handler_seconds_count"
    }
    assert ran["postbus.posts.v1.PostsService.ListPosts"] >= 1
    failed = {
        (labels["handler"], labels["code"])
        for name, labels, _ in samples
        if name == "postbus_handler_errors_total"
    }
    assert ("postbus.users.v1.UsersService.GetUser", "NOT_FOUND") in failed
