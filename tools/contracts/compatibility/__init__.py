"""The compatibility check: the breaking changes between two contracts, with their audiences.

A rule is a function from a pair of descriptors to its changes, each with the audiences that it
breaks. A stricter rule breaks the writers of requests; a looser one breaks the readers of responses
and events. REST and WebSocket clients use JSON: they find a field or enum value by its name.
Workers and event consumers use binary messages: they find it by its number, and both versions of
them run during a rolling deployment. docs/compatibility.md states what breaks whom.
"""

from tools.contracts.compatibility.comparison import compare
from tools.contracts.compatibility.findings import Audience, Finding
from tools.contracts.compatibility.kinds import Kind

__all__ = ["Audience", "Finding", "Kind", "compare"]
