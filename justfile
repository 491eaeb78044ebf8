# Postbus. Without just: ./just RECIPE installs just and uv first.

python := justfile_directory() / ".venv/bin/python"

[private]
default:
    @just --justfile {{ quote(justfile()) }} --list --unsorted

# run the system; services restart when their sources change: just dev [--posts 2] [--port 9000]
[group('run')]
[no-exit-message]
[positional-arguments]
dev *arguments: _setup
    @exec {{ quote(python) }} -m tools dev "$@"

# run a scripted session with the real system, then stop
[group('run')]
[no-exit-message]
demo: _setup
    @exec {{ quote(python) }} -m tools demo

# write gen/ from proto/
[group('build')]
[no-exit-message]
gen: _setup
    @exec {{ quote(python) }} -m tools.contracts.gen

# build the documents and packages of the contracts in dist/contracts
[group('build')]
[no-exit-message]
contracts: _setup
    @exec {{ quote(python) }} -m tools contracts

# run the tests; arguments go to pytest
[group('build')]
[no-exit-message]
[positional-arguments]
test *arguments: _setup
    @exec {{ quote(python) }} -m tools test "$@"

# run the tests and the long suites; arguments go to pytest
[group('build')]
[no-exit-message]
[positional-arguments]
test-all *arguments: _setup
    @exec {{ quote(python) }} -m tools test-all "$@"

# remove one guard at a time and see its tests fail: just mutate [WORD...]
[group('build')]
[no-exit-message]
[positional-arguments]
mutate *arguments: _setup
    @exec {{ quote(python) }} -m tools mutate "$@"

# generate a working service: just new-service NAME [--database postgres|mongo]
[group('build')]
[no-exit-message]
[positional-arguments]
new-service *arguments: _setup
    @exec {{ quote(python) }} -m tools new-service "$@"

# remove a service that no other service uses
[group('build')]
[no-exit-message]
[positional-arguments]
remove-service *arguments: _setup
    @exec {{ quote(python) }} -m tools remove-service "$@"

# format, lint, types, imports, language, contracts, drift of gen/
[group('build')]
[no-exit-message]
check: _setup
    @exec {{ quote(python) }} -m tools check

# compare proto/ with a revision, or two descriptor sets: just breaking main
[group('build')]
[no-exit-message]
[positional-arguments]
breaking *arguments: _setup
    @exec {{ quote(python) }} -m tools.contracts.breaking "$@"

# send random bytes and JSON to the edges: just fuzz [SECONDS]
[group('build')]
[no-exit-message]
fuzz seconds="300": _setup
    @POSTBUS_FUZZ_SECONDS={{ quote(seconds) }} exec {{ quote(python) }} -m pytest -q tests/contract/test_fuzz.py

# inject faults under load for ten minutes, or all and write docs/faults.md: just chaos [--all] [ROW...]
[group('build')]
[no-exit-message]
[positional-arguments]
chaos *arguments: _setup
    @exec {{ quote(python) }} -m tests.faults.chaos "$@"

# run the official conformance suite of the Connect protocol, with the Go toolchain
[group('build')]
[no-exit-message]
conformance: _setup
    @exec {{ quote(python) }} -m tools test tests/conformance --long -q

# measure Postbus beside its rivals: just bench [SUITE...]
[group('build')]
[no-exit-message]
[positional-arguments]
bench *arguments: _setup
    @exec {{ quote(python) }} -m bench "$@"

# lock all dependencies, with hashes
[group('build')]
[no-exit-message]
[positional-arguments]
lock *arguments:
    @exec python3 -m tools.lock "$@"

# write the digests of images and actions beside their versions
[group('build')]
[no-exit-message]
pin: _setup
    @exec {{ quote(python) }} -m tools pin

# write a software bill of materials (CycloneDX) for each service to dist/sbom
[group('build')]
[no-exit-message]
sbom: _setup
    @exec {{ quote(python) }} -m tools sbom

# check licences and known vulnerabilities of the services' dependencies
[group('build')]
[no-exit-message]
audit: _setup
    @exec {{ quote(python) }} -m tools audit

# start RabbitMQ, PostgreSQL and MongoDB until `just down`: just up [--rabbitmq-nodes 3]
[group('servers')]
[no-exit-message]
[positional-arguments]
up *arguments: _setup
    @exec {{ quote(python) }} -m tools up "$@"

# stop the servers
[group('servers')]
[no-exit-message]
down: _setup
    @exec {{ quote(python) }} -m tools down

# show the servers, their addresses and the commands that use them
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

# migrate the databases
[group('data')]
[no-exit-message]
migrate: _setup
    @exec {{ quote(python) }} -m tools migrate

# add sample users and posts to a running system
[group('data')]
[no-exit-message]
seed: _setup
    @exec {{ quote(python) }} -m tools seed

# correct derived data and report each correction
[group('data')]
[no-exit-message]
repair: _setup
    @exec {{ quote(python) }} -m tools repair

# show dead letters and delayed events: just dlq [show|replay|drop|release|remove] [QUEUE] [ID...]
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

# sign access tokens with the next key, and generate a new next key
[group('data')]
[no-exit-message]
rotate-keys: _setup
    @exec {{ quote(python) }} -m tools rotate-keys

_setup:
    @python3 -m tools.setup
