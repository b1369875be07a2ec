#!/usr/bin/env bash
# Start replicas that train together, each in a torchrun of its own, and continue without those that are lost: --help
set -euo pipefail

python=${PYTHON:-python}
here=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
PYTHONPATH=$here${PYTHONPATH:+:$PYTHONPATH} exec "$python" -m ddp_agent.elastic "$@"
