#!/usr/bin/env bash
# Before the first real run: a smoke test of one machine, or of several that are to train together.
set -euo pipefail

usage() {
    cat <<'USAGE'
usage: launch/check.sh [train.py's arguments]

Starts the ranks of a run, and checks within a minute or two that they see each other, have the same Python and torch,
a GPU each, clocks that agree, a disk that all nodes see, and file locks on it. It measures the rate and the latency
between ranks. Its last line says whether a run can start; the exit code is 0 if so.

  launch/check.sh                                                         # this machine
  launch/check.sh device=cpu                                              # without a GPU
  NNODES=2 NODE_RANK=0 MASTER_ADDR=10.0.0.1 launch/check.sh               # on each of several machines
  sbatch launch/slurm.sbatch --check                                      # under Slurm; read slurm-<job>.log
  launch/check.sh data_root=/data sync=diloco                             # the job's own arguments may stay

Of the arguments, device= and data_root= are used, and every node must have what data_root= names. The disk that is
checked is that of RUN_DIR, or of outputs/ in the current folder. launch/multinode.sh --help explains the other
variables. CHECK_TIMEOUT: seconds until the test is given up (default: 300).
USAGE
}

case ${1-} in
    -h | --help)
        usage
        exit 0
        ;;
esac

here=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
if [[ -z ${NNODES-}${PET_NNODES-} ]]; then
    if ((${SLURM_NNODES:-1} > 1)); then
        echo "found a Slurm job of $SLURM_NNODES nodes, expected: sbatch launch/slurm.sbatch --check" >&2
        exit 2
    fi
    export NNODES=1 RDZV_ENDPOINT=127.0.0.1:0
else
    echo "node ${NODE_RANK:-${PET_NODE_RANK:-?}} of ${NNODES:-$PET_NNODES} waits for the others"
fi

limit_s=${CHECK_TIMEOUT:-300}
result=$(mktemp)
trap 'rm -f -- "$result"' EXIT
code=0
DDP_AGENT_CHECK_RESULT=$result timeout --foreground "$limit_s" "$here/multinode.sh" --check "$@" || code=$?

if [[ -s $result ]]; then # the ranks of this node came to a result, whatever torchrun says of them
    exit "$(<"$result")"
elif ((code == 124)); then
    echo "FAILED: no result within $limit_s s. A node did not come, or cannot be reached." >&2
elif ((code != 2)); then # 2: refused, in words of its own
    echo "FAILED: the ranks could not start together (exit code $code)." >&2
fi
if ((code != 2)); then
    echo "See: one command on every node, NODE_RANK and MASTER_ADDR; open ports between the nodes; a host name that" >&2
    echo "resolves to an address which the others reach, or GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME." >&2
fi
exit "$((code == 2 ? 2 : 1))"
