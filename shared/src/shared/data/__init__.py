"""Databases: MongoDB collections, PostgreSQL sessions, migrations, pages and batched loads."""
