"""The gateway's own settings."""

from pathlib import Path

import pytest
import uvicorn
from pydantic import ValidationError

from gateway.__main__ import _clients, _uvicorn_config
from gateway.problems import HttpError
from gateway.settings import GatewaySettings
from gateway.socket_limits import SocketLimits


def settings(monkeypatch: pytest.MonkeyPatch, **values: str) -> GatewaySettings:
    required = {"amqp_url": "amqp://u:p@a", "verification_keys": "{}"}
    for name, value in {**required, **values}.items():
        monkeypatch.setenv(f"POSTBUS_{name.upper()}", value)
    return GatewaySettings()


def configured(settings: GatewaySettings) -> uvicorn.Config:
    return _uvicorn_config(None, _clients(settings), settings)  # type: ignore[arg-type]


def test_no_proxy_is_trusted_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORWARDED_ALLOW_IPS", "*")  # uvicorn's own variable

    configuration = configured(settings(monkeypatch))

    assert not configuration.proxy_headers
    assert configuration.forwarded_allow_ips == []


def test_trusted_proxies_are_addresses_and_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    given = settings(monkeypatch, trusted_proxies="192.0.2.1, 10.0.0.0/8,2001:db8::/32")

    configuration = configured(given)

    assert configuration.proxy_headers
    assert configuration.forwarded_allow_ips == ["192.0.2.1/32", "10.0.0.0/8", "2001:db8::/32"]


@pytest.mark.parametrize("value", ["*", "proxy.example", "10.0.0.1/8"])
def test_trusted_proxy_that_is_no_address_is_refused(
    monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    with pytest.raises(ValidationError):
        settings(monkeypatch, trusted_proxies=value)


@pytest.mark.parametrize("given", ["tls_certificate", "tls_key"])
def test_tls_needs_certificate_and_key(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, given: str
) -> None:
    file = tmp_path / "file.pem"
    file.touch()

    with pytest.raises(ValidationError) as raised:
        settings(monkeypatch, **{given: str(file)})
    assert [error["loc"] for error in raised.value.errors()] == [("tls_key",)]

    both = settings(monkeypatch, tls_certificate=str(file), tls_key=str(file))
    assert configured(both).is_ssl


def test_only_this_machine_can_connect_and_operate_by_default(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given = settings(monkeypatch)

    assert given.host == "127.0.0.1"
    assert list(map(str, given.operator_networks)) == ["127.0.0.0/8", "::1/128"]


def test_idle_connections_outlive_those_of_common_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    assert settings(monkeypatch).idle_seconds > 60


def test_lists_are_separated_by_commas(monkeypatch: pytest.MonkeyPatch) -> None:
    given = settings(
        monkeypatch,
        allowed_origins="https://a.example, https://b.example:8443",
        operator_networks="10.0.0.0/8,::1/128",
    )

    assert given.allowed_origins == ("https://a.example", "https://b.example:8443")
    assert list(map(str, given.operator_networks)) == ["10.0.0.0/8", "::1/128"]


def test_limits_of_unfinished_input_are_those_of_the_settings(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given = settings(
        monkeypatch, max_unfinished_bytes="90000", max_unfinished_bytes_per_address="60000"
    )
    unfinished = _clients(given).unfinished

    with pytest.raises(HttpError) as of_address:
        unfinished.change("192.0.2.1", held=0, size=60_001)
    unfinished.change("192.0.2.1", held=0, size=60_000)
    with pytest.raises(HttpError) as in_total:
        unfinished.change("192.0.2.2", held=0, size=30_001)

    assert (of_address.value.reason.http_status, in_total.value.reason.http_status) == (429, 503)


def test_settings_of_sockets_are_the_limits_of_sockets(monkeypatch: pytest.MonkeyPatch) -> None:
    values = {
        "frames_per_second": 1,
        "frame_burst": 5000,
        "sockets_per_address": 3,
        "sockets_per_user": 4,
        "subscriptions_per_socket": 5,
        "subscriptions_per_user": 6,
    }
    given = {f"socket_{n}" if n.startswith("frame") else n: str(v) for n, v in values.items()}

    assert settings(monkeypatch, **given).socket_limits == SocketLimits(**values)


def test_burst_of_frames_admits_one_message_of_any_size(monkeypatch: pytest.MonkeyPatch) -> None:
    given = settings(monkeypatch, max_body_bytes=str(4096 * 5000), socket_frame_burst="1")

    assert given.socket_limits.frame_burst == 5001


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("allowed_origins", "https://a.example/path"),
        ("allowed_origins", "*"),
        ("security_contact", "security@a.example"),
        ("security_contact", "mailto:a@b.example\nExpires: never"),
    ],
)
def test_value_of_another_form_is_refused(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    with pytest.raises(ValidationError):
        settings(monkeypatch, **{name: value})
