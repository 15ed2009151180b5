#!/usr/bin/env bash
# Start the head of a Ray cluster on this machine, in the foreground: cluster/local/head.sh [OPTIONS OF `ray start`]
#
#   NODE_IP         address by which the other machines reach this one (default 127.0.0.1: only this machine)
#   HEAD_PORT       default 6379
#   DASHBOARD_PORT  port for job submission; default 8265, on NODE_IP
#   METRICS_PORT    for Prometheus; default 8080
#   AGENT_PORT, CLIENT_PORT   default 52365, 10001; change them if two Rays share a machine
#
# The cluster requires a token: the one in RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH or ~/.ray/auth_token, which this script makes if it
# does not exist. Anyone who has it can run any code on the cluster. Ctrl-C or SIGTERM ends the node.
set -euo pipefail
umask 077

export RAY_AUTH_MODE=token
if [[ -z "${RAY_AUTH_TOKEN:-}" ]]; then
  token="${RAY_AUTH_TOKEN_PATH:-$HOME/.ray/auth_token}"
  if [[ ! -s "$token" ]]; then
    mkdir -p "$(dirname "$token")"
    python -c 'import secrets; print(secrets.token_hex(32), end="")' > "$token"
  fi
  [[ ! -O "$token" ]] || chmod 600 "$token" # Ray itself may have written it readable for all
  export RAY_AUTH_TOKEN_PATH="$token"
  echo "token: $token (copy it to the other machines and to the users who may submit jobs)"
fi

ip="${NODE_IP:-127.0.0.1}"
echo "on the other machines:  NODE_IP=THEIR_ADDRESS cluster/local/worker.sh $ip:${HEAD_PORT:-6379}"
echo "jobs:                   ortho submit --address http://$ip:${DASHBOARD_PORT:-8265} VERB ..."

exec ray start --head --block \
  --node-ip-address="$ip" --port="${HEAD_PORT:-6379}" \
  --dashboard-host="$ip" --dashboard-port="${DASHBOARD_PORT:-8265}" \
  --dashboard-agent-listen-port="${AGENT_PORT:-52365}" --ray-client-server-port="${CLIENT_PORT:-10001}" \
  --metrics-export-port="${METRICS_PORT:-8080}" --disable-usage-stats "$@"
