"""Idempotent operations and their events: units of work, inbox, outbox and outbox relay."""
