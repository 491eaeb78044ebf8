"""Databases: MongoDB collections, PostgreSQL sessions, their migrations; pages and batched loads."""
