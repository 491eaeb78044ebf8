"""Accounts of the services at RabbitMQ, PostgreSQL and MongoDB, with the least rights that work.

Each service has an account of its own name at the broker and at its database. `operator` is the
broker account of `just dlq`, `just status` and the tests. `python -m tools.accounts` makes all
accounts; docker compose runs it before the services.
"""
