"""The compatibility check: the breaking changes between two contracts, with their audiences.

A rule is a function from a pair of descriptors to its changes, each with the audiences that it
breaks. A stricter rule breaks the writers of requests; a looser one breaks the readers of responses
and events. REST and WebSocket clients use JSON (names); workers and event consumers use binary
messages (numbers), and both versions of them run during a rolling deployment.
"""

from tools.contracts.compatibility.comparison import compare
from tools.contracts.compatibility.findings import Audience, Finding

__all__ = ["Audience", "Finding", "compare"]
