#!/usr/bin/env bash
# Join this machine to a Ray cluster, in the foreground: cluster/local/worker.sh HEAD_ADDRESS:PORT [OPTIONS OF `ray start`]
#
#   NODE_IP        address by which the other machines reach this one (required)
#   METRICS_PORT   for Prometheus; default 8080
#   AGENT_PORT     default 52365
#
# Needs the head's token, in RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH or ~/.ray/auth_token. Ctrl-C or SIGTERM ends the node.
set -euo pipefail

head="${1:?the head is missing: cluster/local/worker.sh HEAD_ADDRESS:PORT}"
shift
export RAY_AUTH_MODE=token
if [[ -z "${RAY_AUTH_TOKEN:-}" ]]; then
  export RAY_AUTH_TOKEN_PATH="${RAY_AUTH_TOKEN_PATH:-$HOME/.ray/auth_token}"
  if [[ ! -s "$RAY_AUTH_TOKEN_PATH" ]]; then
    echo "no token: copy the head's to $RAY_AUTH_TOKEN_PATH" >&2
    exit 1
  fi
  [[ ! -O "$RAY_AUTH_TOKEN_PATH" ]] || chmod 600 "$RAY_AUTH_TOKEN_PATH"
fi

exec ray start --address="$head" --block \
  --node-ip-address="${NODE_IP:?the address of this machine is missing}" \
  --dashboard-agent-listen-port="${AGENT_PORT:-52365}" \
  --metrics-export-port="${METRICS_PORT:-8080}" --disable-usage-stats "$@"
