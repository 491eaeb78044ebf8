"""Wait until the system behind a gateway is ready."""

import time
import urllib.error
import urllib.request

_POLL_SECONDS = 0.1
_ANSWER_SECONDS = 2
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def wait_until_ready(url: str, seconds: float) -> str:
    """Wait until `url` is ready. Return the missing dependencies at the timeout, else ""."""
    end = time.monotonic() + seconds
    while (missing := _missing(url)) and time.monotonic() < end:
        time.sleep(_POLL_SECONDS)
    return missing


def _missing(url: str) -> str:
    try:
        _OPENER.open(f"{url}/readyz", timeout=_ANSWER_SECONDS).close()
    except urllib.error.HTTPError as error:
        return error.read().decode(errors="replace")
    except OSError as error:
        return str(error)
    return ""
