"""Connections of HTTP/1.1: order of the requests, responses, disconnects, TLS and proxies."""

import asyncio
import gc
import json
import shutil
import ssl
import weakref
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from unittest.mock import Mock

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from gateway.http1 import HttpLimits
from gateway.http1.exchange import Exchange
from gateway.response_headers import transport_security
from tests.gateway.http1_server import (
    LAST,
    POST,
    SHORT,
    Client,
    Server,
    connect,
    exchange,
    request,
    serve,
    until,
)

# Order


async def test_pipelined_requests_get_responses_in_order(server: Server) -> None:
    got = await exchange(
        server, b"".join(request(f"GET /{number} HTTP/1.1") for number in range(300)) + LAST
    )

    assert [each.document["path"] for each in got] == [f"/{n}" for n in range(300)] + ["/echo"]


async def test_requests_after_connection_close_get_no_response(server: Server) -> None:
    (response,) = await exchange(server, LAST + POST)

    assert response.fields["connection"] == "close"


@pytest.mark.parametrize(
    ("broken", "status"),
    [
        (b"nonsense\r\n\r\n", 400),
        (b"GET / HTTP/2.0\r\n\r\n", 505),
        (b"GET /" + b"a" * 70_000, 431),
        (request("POST / HTTP/1.1", "Content-Length: 1000000000"), 413),
    ],
)
@pytest.mark.parametrize("apart", [False, True])
async def test_invalid_request_is_refused_after_the_response_to_the_valid_one(
    server: Server, broken: bytes, status: int, apart: bool
) -> None:
    first, second = await exchange(server, *((POST, broken) if apart else (POST + broken,)))

    assert first.outline == (200, "hello")
    assert second.status == status
    assert second.document["outcome"] == "NO_EFFECT"


async def test_next_request_waits_for_the_previous_response() -> None:
    async with serve() as server, connect(server) as client:
        await client.send(request("GET /wait HTTP/1.1"))
        await until(lambda: server.echo.requests == ["GET /wait"])
        await client.send(LAST)
        for _ in range(100):
            await asyncio.sleep(0)
        assert server.echo.requests == ["GET /wait"]
        server.echo.proceed.set()

        got = await client.responses()

    assert [each.document["path"] for each in got] == ["/wait", "/echo"]


async def test_invalid_request_waits_for_the_previous_response() -> None:
    async with serve() as server, connect(server) as client:
        await client.send(request("GET /wait HTTP/1.1") + b"nonsense\r\n\r\n")
        server.echo.proceed.set()

        assert [each.status for each in await client.responses()] == [200, 400]


# Responses


async def test_head_has_no_body_even_if_it_is_refused(server: Server) -> None:
    for sent, status in (
        (request("HEAD /echo HTTP/1.1"), 200),
        (request("HEAD /echo HTTP/1.1", "a"), 400),
        (request("HEAD /echo HTTP/1.1", "Content-Length: 1000000"), 413),
    ):
        async with connect(server) as client:
            await client.send(sent)
            assert (await client.response("HEAD")).status == status
            await client.send(LAST) if status == 200 else None
            assert (await client.reader.read(9)) in (b"", b"HTTP/1.1 ")


async def test_every_response_has_strict_transport_security_if_set() -> None:
    async with serve(headers=transport_security(86_400)) as server:
        responses = [
            *await exchange(server, POST + LAST),
            *await exchange(server, b"nonsense\r\n\r\n"),
        ]

    assert [response.status for response in responses] == [200, 200, 400]
    for response in responses:
        assert response.fields["strict-transport-security"] == "max-age=86400; includeSubDomains"
    assert transport_security(0) == []


async def test_fault_of_the_application_is_an_internal_problem(
    server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    (response,) = await exchange(server, request("GET /fail HTTP/1.1"))

    assert response.outline == (500, "INTERNAL")
    assert response.document["outcome"] == "UNKNOWN"
    assert capsys.readouterr().out.count("request.failed") == 1


@pytest.mark.parametrize(
    "path",
    [
        "/wrong/longer",
        "/wrong/shorter",
        "/wrong/break",
        "/wrong/twice",
        "/wrong/end",
        "/wrong/nothing",
    ],
)
async def test_invalid_response_of_the_application_is_never_sent_as_a_valid_one(
    server: Server, path: str
) -> None:
    async with connect(server) as client:
        await client.send(request(f"GET {path} HTTP/1.1") + LAST)
        got = await client.reader.read()

    assert b"injected" not in got
    assert got.startswith(b"HTTP/1.1 500 ") or got.endswith(b"\r\n\r\nshort")
    assert b"GET /echo" not in got


async def test_204_has_no_framing_and_the_connection_goes_on(server: Server) -> None:
    first, second = await exchange(server, request("GET /none HTTP/1.1") + LAST)

    assert (first.status, first.fields.get("transfer-encoding")) == (204, None)
    assert second.status == 200


def test_callback_for_a_request_that_has_ended_is_called_at_once() -> None:
    scope = {"method": "GET", "path": "/", "http_version": "1.1"}
    ended = Exchange(scope, Mock(), keep_alive=True, expects_continue=False, body=b"a")
    ended.disconnect()
    called: list[bool] = []

    ended.on_disconnect(lambda: called.append(True))

    assert called == [True]
    assert ended.take_body() is None


async def test_connection_that_closes_before_the_end_of_a_body_lets_the_client_send_the_rest() -> (
    None
):
    head = request("POST /ignore HTTP/1.1", "Content-Length: 5", "Connection: close")
    async with serve() as server, connect(server) as client:
        await client.send(head)
        assert (await client.response()).status == 200
        assert await client.is_closed()

        assert server.clients.open == 1  # only the server's direction is closed


async def test_application_may_close_the_connection(server: Server) -> None:
    (response,) = await exchange(server, request("GET /last HTTP/1.1") + LAST)

    assert response.fields["connection"] == "close"


async def test_nothing_refers_to_a_connection_that_has_ended() -> None:
    async with serve() as server:
        async with connect(server) as client:
            await client.send(POST)
            await client.response()
            (protocol,) = server.uvicorn.server_state.connections
            ended = weakref.ref(protocol)
            del protocol
        await until(lambda: not server.uvicorn.server_state.connections)
        gc.collect()

        assert ended() is None


async def test_shutdown_closes_the_connection_after_the_running_response() -> None:
    async with serve() as server, connect(server) as client:
        await client.send(request("GET /wait HTTP/1.1"))
        await until(lambda: server.echo.requests == ["GET /wait"])
        for connection in tuple(server.uvicorn.server_state.connections):
            connection.shutdown()
        server.echo.proceed.set()

        response = await client.response()
        assert (response.status, response.fields["connection"]) == (200, "close")
        assert await client.is_closed()


async def test_finished_requests_create_no_garbage_cycles(server: Server) -> None:
    async with connect(server) as client:
        await client.send(POST)
        await client.response()
        gc.collect()
        gc.disable()
        try:
            for _ in range(50):
                await client.send(POST)
                await client.response()
            left = gc.collect()
        finally:
            gc.enable()

    assert left < 50


# Disconnects and logs


@pytest.mark.parametrize("path", ["/leave", "/called-back"])
async def test_application_receives_the_disconnect_of_the_client(path: str) -> None:
    async with serve() as server:
        async with connect(server) as client:
            await client.send(request(f"GET {path} HTTP/1.1"))
        async with asyncio.timeout(5):
            await server.echo.disconnected.wait()


async def test_hostile_clients_cause_no_log_lines(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    async with serve() as server:
        for number in range(60):
            async with connect(server) as client:
                await client.send(
                    (b"nonsense\r\n\r\n", request("GET /large HTTP/1.1") * 20)[number % 2]
                )
                await client.reader.read(1)
                client.writer.transport.abort()
        await until(lambda: not server.clients.open)
        await until(lambda: not server.uvicorn.server_state.tasks)

    assert capsys.readouterr().out == ""
    assert [record.message for record in caplog.records if record.levelname != "INFO"] == []


@pytest.mark.parametrize(
    "sent", [b"", POST, b"GET /", b"nonsense\r\n\r\n", request("GET /large HTTP/1.1") * 3]
)
async def test_server_shuts_down_despite_any_client(sent: bytes) -> None:
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(serve())
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        await Client(reader, writer).send(sent)
        await until(lambda: server.clients.open == 1)

        async with asyncio.timeout(5):
            await stack.aclose()
            await until(lambda: server.clients.open == 0)
        writer.close()


# TLS and proxies


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(UTC)
    signed = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    folder = tmp_path_factory.mktemp("tls")
    pem, encoding = serialization.PrivateFormat.PKCS8, serialization.Encoding.PEM
    (folder / "cert.pem").write_bytes(signed.public_bytes(encoding))
    (folder / "key.pem").write_bytes(key.private_bytes(encoding, pem, serialization.NoEncryption()))
    return folder / "cert.pem", folder / "key.pem"


async def test_requests_over_tls_have_the_scheme_https(certificate: tuple[Path, Path]) -> None:
    cert, key = certificate
    async with serve(
        HttpLimits(linger_seconds=SHORT), ssl_certfile=cert, ssl_keyfile=key
    ) as server:
        context = ssl.create_default_context(cafile=cert)
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", server.port, ssl=context, server_hostname="localhost"
        )
        client = Client(reader, writer)
        writer.write(POST + b"nonsense\r\n\r\n")
        first, second = await client.responses()
        writer.close()

    assert first.document["scheme"] == "https"
    assert second.outline == (400, "MALFORMED_HTTP")


FORWARDED = ("X-Forwarded-For: 203.0.113.9, 127.0.0.1", "X-Forwarded-Proto: https")


async def test_forwarded_client_and_scheme_of_a_trusted_proxy_are_used() -> None:
    async with serve(proxy_headers=True, forwarded_allow_ips=["127.0.0.1/32"]) as server:
        (response,) = await exchange(
            server, request("GET /echo HTTP/1.1", *FORWARDED, "Connection: close")
        )

    assert response.document["client"][0] == "203.0.113.9"
    assert response.document["scheme"] == "https"


async def test_forwarded_client_of_an_untrusted_client_is_ignored() -> None:
    async with serve(proxy_headers=True, forwarded_allow_ips=["192.0.2.1/32"]) as server:
        (response,) = await exchange(
            server, request("GET /echo HTTP/1.1", *FORWARDED, "Connection: close")
        )

    assert response.document["client"][0] == "127.0.0.1"
    assert response.document["scheme"] == "http"


# Clients of other languages

_JAVA = """
import java.net.URI;
import java.net.http.*;

public class Client {
    public static void main(String[] arguments) throws Exception {
        HttpClient client = HttpClient.newHttpClient();  // offers h2c
        for (int number = 0; number < 3; number++) {
            HttpRequest request = HttpRequest.newBuilder(URI.create(arguments[0]))
                .header("Content-Type", "application/json")
                .POST(HttpRequest.BodyPublishers.ofString("hello " + number)).build();
            HttpResponse<String> response =
                client.send(request, HttpResponse.BodyHandlers.ofString());
            System.out.println(response.statusCode() + " " + response.body());
        }
    }
}
"""


async def output(*command: str) -> str:
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    out, _ = await process.communicate()
    return out.decode()


@pytest.mark.skipif(shutil.which("java") is None, reason="java is not installed")
async def test_java_client_that_offers_http_2_is_served(server: Server, tmp_path: Path) -> None:
    program = tmp_path / "Client.java"
    program.write_text(_JAVA)

    got = await output("java", str(program), f"http://127.0.0.1:{server.port}/echo")

    lines = got.splitlines()
    bodies = [json.loads(line.removeprefix("200 "))["body"] for line in lines]
    assert bodies == ["hello 0", "hello 1", "hello 2"]
    assert "upgrade" in got.lower()


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
@pytest.mark.parametrize("options", [["--http2"], ["--http1.0"], ["-H", "Expect: 100-continue"],
                                     ["-H", "Transfer-Encoding: chunked"]])  # fmt: skip
async def test_curl_is_served(server: Server, options: list[str]) -> None:
    url = f"http://127.0.0.1:{server.port}/echo"

    got = await output("curl", "-sS", "-m", "10", *options, "-d", "hello", url, "-d", "hello", url)

    assert got.count('"body": "hello&hello"') == 2
