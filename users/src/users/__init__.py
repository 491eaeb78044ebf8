"""Accounts and access, on PostgreSQL."""
