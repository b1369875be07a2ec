#!/usr/bin/env bash
# Several machines: run this on each of them, with the same arguments.
set -euo pipefail

usage() {
    cat <<'USAGE'
usage: NNODES=N … launch/multinode.sh [train.py's arguments]      (on every node)

Static rendezvous: every node has its number, and node 0 its address.
  NNODES=2 NODE_RANK=0 MASTER_ADDR=10.0.0.1 launch/multinode.sh sync=diloco     # on 10.0.0.1
  NNODES=2 NODE_RANK=1 MASTER_ADDR=10.0.0.1 launch/multinode.sh sync=diloco     # on the other

c10d rendezvous: nodes find each other and are numbered as they come; a node may leave and come back.
  NNODES=2 RDZV_ENDPOINT=10.0.0.1:29400 RDZV_ID=run7 launch/multinode.sh sync=diloco

  NNODES          nodes; MIN:MAX for an elastic c10d run
  NODE_RANK       static: 0 to NNODES - 1
  MASTER_ADDR     static: an address of node 0 that the others reach
  MASTER_PORT     static: a free port there (default: 29500)
  RDZV_ENDPOINT   c10d: HOST:PORT, HOST being one of the nodes
  RDZV_ID         c10d: a name that only this run has (default: ddp_agent)
  NPROC_PER_NODE  ranks a node (default: its GPUs, or 2 without any)
  MAX_RESTARTS    how often ranks are started again after one fails (default: 0)
  PYTHON          the interpreter (default: python)

The run directory is written by rank 0; resuming and restarting need it on a disk that all nodes see.
The store listens without authentication: use a private network. When a machine has several networks, name the
one to use: GLOO_SOCKET_IFNAME (CPU), NCCL_SOCKET_IFNAME (GPU).
USAGE
}

refuse() {
    echo "$1" >&2
    echo "launch/multinode.sh --help explains the variables" >&2
    exit 2
}

case ${1-} in
    -h | --help)
        usage
        exit 0
        ;;
esac

python=${PYTHON:-python}
[[ -n ${NNODES-} ]] || refuse "NNODES: missing, expected the number of nodes"

if [[ -n ${RDZV_ENDPOINT-} ]]; then
    [[ -z ${NODE_RANK-} ]] || refuse "NODE_RANK and RDZV_ENDPOINT: set one, they are different rendezvous"
    rendezvous=(--rdzv-backend=c10d --rdzv-endpoint="$RDZV_ENDPOINT" --rdzv-id="${RDZV_ID:-ddp_agent}")
else
    [[ -n ${NODE_RANK-} ]] || refuse "NODE_RANK: missing, expected 0 to $((NNODES - 1)) (or set RDZV_ENDPOINT)"
    ((NODE_RANK >= 0 && NODE_RANK < NNODES)) || refuse "NODE_RANK: found $NODE_RANK, expected 0 to $((NNODES - 1))"
    [[ -n ${MASTER_ADDR-} ]] || refuse "MASTER_ADDR: missing, expected the address of node 0"
    rendezvous=(--node-rank="$NODE_RANK" --master-addr="$MASTER_ADDR" --master-port="${MASTER_PORT:-29500}")
fi

nproc=${NPROC_PER_NODE:-$("$python" -c 'import torch; print(torch.cuda.device_count() or 2)')}
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} # several ranks share the cores

train=$(dirname -- "${BASH_SOURCE[0]}")/../train.py
exec "$python" -m torch.distributed.run --nnodes="$NNODES" --nproc-per-node="$nproc" \
    --max-restarts="${MAX_RESTARTS:-0}" "${rendezvous[@]}" "$train" "$@"
