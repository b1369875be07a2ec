#!/usr/bin/env bash
# One machine: one rank per GPU, or two ranks on CPU.
set -euo pipefail

usage() {
    cat <<'USAGE'
usage: launch/local.sh [--nproc N] [--max-restarts N] [--] [train.py's arguments]

  launch/local.sh sync=local_sgd sync.period=16
  launch/local.sh --nproc 4 --max-restarts 3 sync=diloco run_name=long
  launch/local.sh -m sync=allreduce,local_sgd seed=0,1,2

  --nproc N         ranks (default: the GPUs, or 2 without any)
  --max-restarts N  times that all ranks are started again after one fails (default: 0)

PYTHON chooses the interpreter (default: python). All other arguments go to train.py; see train.py --help.
USAGE
}

python=${PYTHON:-python}
nproc=
max_restarts=0
while (($#)); do
    case $1 in
        --nproc | --max-restarts)
            if (($# < 2)); then
                echo "$1: expected a number" >&2
                exit 2
            fi
            if [[ $1 == --nproc ]]; then nproc=$2; else max_restarts=$2; fi
            shift 2
            ;;
        -h | --help)
            usage
            exit 0
            ;;
        --)
            shift
            break
            ;;
        *) break ;;
    esac
done

nproc=${nproc:-$("$python" -c 'import torch; print(torch.cuda.device_count() or 2)')}
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} # because several ranks share the cores

if [[ -z ${DDP_AGENT_SECRET-} ]]; then # of this run: see "Ports" in SECURITY.md
    DDP_AGENT_SECRET=$(od -An -N16 -tx1 /dev/urandom | tr -d ' \n')
    export DDP_AGENT_SECRET
fi

train=$(dirname -- "${BASH_SOURCE[0]}")/../train.py
exec "$python" -m torch.distributed.run --standalone --nproc_per_node="$nproc" \
    --max-restarts="$max_restarts" --signals-to-handle=SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1 "$train" "$@"
