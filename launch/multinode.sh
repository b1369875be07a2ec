#!/usr/bin/env bash
# Several machines: run this script on each of them, with the same arguments.
set -euo pipefail

usage() {
    cat <<'USAGE'
usage: NNODES=N … launch/multinode.sh [--check] [train.py's arguments]      (on every node)

A run of several machines trains on GPUs. To train on CPU, type device=cpu. With --check no run is started, but a
smoke test: launch/check.sh --help.

Static rendezvous: every node is given its own number and the address of node 0.
  NNODES=2 NODE_RANK=0 MASTER_ADDR=10.0.0.1 launch/multinode.sh sync=diloco     # on 10.0.0.1
  NNODES=2 NODE_RANK=1 MASTER_ADDR=10.0.0.1 launch/multinode.sh sync=diloco     # on the other

c10d rendezvous: nodes are numbered in the order in which they arrive. A node may leave and return.
  NNODES=2 RDZV_ENDPOINT=10.0.0.1:29400 RDZV_ID=run7 launch/multinode.sh sync=diloco

  RUN_DIR         the run directory; a run that is there already is resumed from its newest checkpoint
  NNODES          number of nodes; MIN:MAX for an elastic c10d run
  NODE_RANK       static: 0 to NNODES - 1
  MASTER_ADDR     static: an address of node 0 that the other nodes reach
  MASTER_PORT     static: a free port of node 0 (default: 29500)
  RDZV_ENDPOINT   c10d: HOST:PORT, where HOST is one of the nodes
  RDZV_ID         c10d: a name that no other run has (default: ddp_agent)
  NPROC_PER_NODE  ranks per node (default: its GPUs, or 2 without any)
  MAX_RESTARTS    times that all ranks are started again after one fails (default: 0)
  PYTHON          the interpreter (default: python)

Defaults of NNODES, NODE_RANK, MASTER_ADDR, MASTER_PORT and NPROC_PER_NODE are torchrun's own PET_NNODES,
PET_NODE_RANK, PET_MASTER_ADDR, PET_MASTER_PORT and PET_NPROC_PER_NODE, which Kubeflow sets in its pods.

Resuming and restarting need the run directory on a disk that all nodes see, since every rank writes its part of a
checkpoint there. The store has no password, so use a private network. Where a machine has several networks, name
the one to use: GLOO_SOCKET_IFNAME (CPU), NCCL_SOCKET_IFNAME (GPU).
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

# Refuse a value that a pattern does not match as a whole: bash would take a word for 0 in its arithmetic.
expect() { [[ $2 =~ ^($3)$ ]] || refuse "$1: found $2, expected $4"; }

python=${PYTHON:-python}
project=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
program=("$project/train.py")
if [[ ${1-} == --check ]]; then
    shift
    program=(-m ddp_agent.distributed.smoke_test)
    export PYTHONPATH=$project${PYTHONPATH:+:$PYTHONPATH}
fi

NNODES=${NNODES:-${PET_NNODES-}}
[[ -n $NNODES ]] || refuse "NNODES: missing, expected the number of nodes"
expect NNODES "$NNODES" '[1-9][0-9]{0,4}(:[1-9][0-9]{0,4})?' "the number of nodes"
expect MAX_RESTARTS "${MAX_RESTARTS:-0}" '[0-9]{1,6}' "an integer >= 0"

if [[ -n ${RDZV_ENDPOINT-} ]]; then
    [[ -z ${NODE_RANK-} ]] || refuse "NODE_RANK and RDZV_ENDPOINT: set one, they are different rendezvous"
    rendezvous=(--rdzv-backend=c10d --rdzv-endpoint="$RDZV_ENDPOINT" --rdzv-id="${RDZV_ID:-ddp_agent}")
else
    expect NNODES "$NNODES" '[0-9]+' "an integer >= 1 (MIN:MAX needs RDZV_ENDPOINT)"
    NODE_RANK=${NODE_RANK:-${PET_NODE_RANK-}}
    MASTER_ADDR=${MASTER_ADDR:-${PET_MASTER_ADDR-}}
    [[ -n $NODE_RANK ]] || refuse "NODE_RANK: missing, expected 0 to $((NNODES - 1)) (or set RDZV_ENDPOINT)"
    expect NODE_RANK "$NODE_RANK" '0|[1-9][0-9]{0,4}' "0 to $((NNODES - 1))"
    ((NODE_RANK >= 0 && NODE_RANK < NNODES)) || refuse "NODE_RANK: found $NODE_RANK, expected 0 to $((NNODES - 1))"
    [[ -n $MASTER_ADDR ]] || refuse "MASTER_ADDR: missing, expected the address of node 0"
    port=${MASTER_PORT:-${PET_MASTER_PORT:-29500}}
    expect MASTER_PORT "$port" '[1-9][0-9]{0,4}' "a port, 1 to 65535"
    ((port <= 65535)) || refuse "MASTER_PORT: found $port, expected a port, 1 to 65535"
    rendezvous=(--node-rank="$NODE_RANK" --master-addr="$MASTER_ADDR" --master-port="$port")
fi

if [[ -n ${RUN_DIR-} ]]; then
    [[ $RUN_DIR != *[\'\\]* ]] || refuse "RUN_DIR: found $RUN_DIR, expected a path without ' and \\"
    set -- "$@" "hydra.run.dir='$RUN_DIR'"
    # Every attempt at a run adds itself to this file. Without it the run is new.
    DDP_AGENT_EARLIER_ATTEMPTS=$({ grep -o '"attempt"' -- "$RUN_DIR/attempts.json" || true; } 2>/dev/null | wc -l)
    export DDP_AGENT_EARLIER_ATTEMPTS
fi

nproc=${NPROC_PER_NODE:-${PET_NPROC_PER_NODE-}}
[[ -z $nproc ]] || expect NPROC_PER_NODE "$nproc" '[1-9][0-9]{0,3}|auto|gpu|cpu|xpu' "the ranks per node, an integer >= 1"
# A node without a GPU is most often one whose GPUs nobody asked the scheduler for. It would train on CPU unnoticed.
if [[ " $* " != *" device="* ]]; then
    nproc=${nproc:-$("$python" -c 'import torch; print(torch.cuda.device_count())')}
    [[ $nproc != 0 ]] || refuse "device: found no GPU on $(hostname), expected one: ask for it (Slurm: --gpus-per-node), \
or type device=cpu to train on CPU"
    set -- device=cuda "$@"
fi
nproc=${nproc:-$("$python" -c 'import torch; print(torch.cuda.device_count() or 2)')}
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} # because several ranks share the cores

exec "$python" -m torch.distributed.run --nnodes="$NNODES" --nproc-per-node="$nproc" \
    --max-restarts="${MAX_RESTARTS:-0}" --signals-to-handle=SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1 \
    "${rendezvous[@]}" "${program[@]}" "$@"
