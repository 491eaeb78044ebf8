# Postbus. Without just: ./just RECIPE, which brings its own.

python := justfile_directory() / ".venv/bin/python"

[private]
default:
    @just --justfile {{ quote(justfile()) }} --list --unsorted

# start the whole system, and restart what you change
[group('run')]
[no-exit-message]
dev: _setup
    @exec {{ quote(python) }} -m tools dev

# tell a story against the real system, then stop
[group('run')]
[no-exit-message]
demo: _setup
    @exec {{ quote(python) }} -m tools demo

# write gen/ from proto/
[group('build')]
[no-exit-message]
gen: _setup
    @exec {{ quote(python) }} -m tools.contracts.generate

# build the documents and packages of the contracts in dist/contracts
[group('build')]
[no-exit-message]
contracts: _setup
    @exec {{ quote(python) }} -m tools contracts

# pass the tests; arguments go to pytest
[group('build')]
[no-exit-message]
[positional-arguments]
test *arguments: _setup
    @exec {{ quote(python) }} -m tools test "$@"

# write a service that works: just new-service NAME [--database postgres|mongo]
[group('build')]
[no-exit-message]
[positional-arguments]
new-service *arguments: _setup
    @exec {{ quote(python) }} -m tools new-service "$@"

# remove a service that nothing else uses
[group('build')]
[no-exit-message]
[positional-arguments]
remove-service *arguments: _setup
    @exec {{ quote(python) }} -m tools remove-service "$@"

# format, lint, types, imports, contracts, drift
[group('build')]
[no-exit-message]
check: _setup
    @exec {{ quote(python) }} -m tools check

# look for bytes and JSON that break the edges: just fuzz [SECONDS]
[group('build')]
[no-exit-message]
fuzz seconds="300": _setup
    @POSTBUS_FUZZ_SECONDS={{ quote(seconds) }} exec {{ quote(python) }} -m pytest -q tests/contract/test_fuzz.py

# measure ours against rivals, in one run: just bench [SUITE...]
[group('build')]
[no-exit-message]
[positional-arguments]
bench *arguments: _setup
    @exec {{ quote(python) }} -m bench "$@"

# lock all dependencies anew, with hashes
[group('build')]
[no-exit-message]
[positional-arguments]
lock *arguments:
    @exec python3 -m tools.lock "$@"

# start the servers to stay: RabbitMQ, PostgreSQL, MongoDB
[group('servers')]
[no-exit-message]
up: _setup
    @exec {{ quote(python) }} -m tools up

# stop the servers
[group('servers')]
[no-exit-message]
down: _setup
    @exec {{ quote(python) }} -m tools down

# show the servers, their addresses and who uses them
[group('servers')]
[no-exit-message]
status: _setup
    @exec {{ quote(python) }} -m tools status

# show logs of servers and services: just logs [--follow] [NAME...]
[group('servers')]
[no-exit-message]
[positional-arguments]
logs *arguments: _setup
    @exec {{ quote(python) }} -m tools logs "$@"

# bring the databases up to date
[group('data')]
[no-exit-message]
migrate: _setup
    @exec {{ quote(python) }} -m tools migrate

# add users and posts to look at to a running system
[group('data')]
[no-exit-message]
seed: _setup
    @exec {{ quote(python) }} -m tools seed

# set counters and leftovers right, and say which were wrong
[group('data')]
[no-exit-message]
repair: _setup
    @exec {{ quote(python) }} -m tools repair

# look after dead letters: just dlq [show|replay|drop QUEUE] [ID...]
[group('data')]
[no-exit-message]
[positional-arguments]
dlq *arguments: _setup
    @exec {{ quote(python) }} -m tools dlq "$@"

# write .env with new secrets for docker compose, once
[group('data')]
[no-exit-message]
secrets: _setup
    @exec {{ quote(python) }} -m tools secrets

# sign access tokens with the next key, and make another
[group('data')]
[no-exit-message]
rotate-keys: _setup
    @exec {{ quote(python) }} -m tools rotate-keys

_setup:
    @python3 -m tools.setup
