"""The compatibility check: what breaks for whom between two versions of the contracts.

A rule is a function from a pair of things to its changes, each of which says whom it breaks.
Callers write what is asked, so tightening breaks them; readers rely on answers and events, so
loosening breaks them. REST and WebSocket clients see JSON (names), workers and event consumers see
binary messages (numbers), some of either version while a deployment rolls.
"""

from tools.contracts.compatibility.comparison import compare
from tools.contracts.compatibility.findings import Audience, Finding

__all__ = ["Audience", "Finding", "compare"]
