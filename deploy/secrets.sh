#!/bin/sh
# Makes what docker-compose.yml needs to know and nobody else: ./secrets, one file a secret. What is there already is kept,
# so it may be run again. To change one, see docs/observability.md.
set -eu
cd "$(dirname "$0")/.."

# Nobody but you gets into the directory. In it the files can be read by all: Compose hands them to containers as they
# are, and each container has a user of its own.
mkdir -p secrets
chmod 0700 secrets

put() { # put <name>: its content from standard input, unless there is such a secret
  if [ -s "secrets/$1" ]; then
    cat > /dev/null
  else
    rm -f "secrets/$1"
    (umask 022 && cat > "secrets/$1")
    chmod 0444 "secrets/$1"
    echo "made secrets/$1"
  fi
}

random() { # 192 bits in hex
  od -An -v -tx1 -N24 /dev/urandom | tr -d ' \n'
}

for name in postgres_password tracekit_db_password grafana_db_password grafana_admin_password approval_secret \
  operator_token alertmanager_token prometheus_token ntfy_token; do
  random | put "$name"
done
{ printf 'host=postgres dbname=tracekit user=tracekit password=' && cat secrets/tracekit_db_password; } | put tracekit_dsn
