"""The gateway as `python -m gateway` runs it, and a line once it serves."""

import os
import threading
import time
import urllib.error
import urllib.request

from gateway.__main__ import main


def tell() -> None:
    """Print READY once the worker can be called through it."""
    while True:
        try:
            url = f"http://127.0.0.1:{os.environ['BENCH_PORT']}/v1/posts"
            with urllib.request.urlopen(url, timeout=1):
                break
        except OSError:
            time.sleep(0.05)
    print("READY", flush=True)


threading.Thread(target=tell, daemon=True).start()
main()
