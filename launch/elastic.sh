#!/usr/bin/env bash
# Replicas that train together, each in a torchrun of its own, and go on without those that are lost: --help
set -euo pipefail

python=${PYTHON:-python}
here=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
PYTHONPATH=$here${PYTHONPATH:+:$PYTHONPATH} exec "$python" -m ddp_agent.elastic "$@"
