"""Run the gateway like `python -m gateway`, and print a line once it serves."""

import os
import threading
import time
import urllib.error
import urllib.request

from gateway.__main__ import main


def report_ready() -> None:
    """Print READY once a call to the worker succeeds."""
    while True:
        try:
            url = f"http://127.0.0.1:{os.environ['BENCH_PORT']}/v1/posts"
            with urllib.request.urlopen(url, timeout=1):
                break
        except OSError:
            time.sleep(0.05)
    print("READY", flush=True)


threading.Thread(target=report_ready, daemon=True).start()
main()
