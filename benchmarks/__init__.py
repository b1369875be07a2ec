"""Benchmarks of this tree against plain torch, compared within one run: see `python -m benchmarks --help`.

| module        | content                                                           |
|---------------|-------------------------------------------------------------------|
| `sync`        | averaging a model once, and through every reducer                 |
| `step`        | a training step of the trainer and of a loop written by hand      |
| `overlap`     | throughput of modes that hide communication, on the ranks' link   |
| `modes`       | a training step in every mode                                     |
| `diagnostics` | the measurements of `consensus_every`                             |
| `checkpoint`  | checkpoints written before training continues, and beside it      |
| `rounds`      | timing in alternating rounds                                      |
| `outcome`     | the table, and the machine that it was measured on                |
| `yardsticks`  | plain collectives, and a counter of them                          |
| `bare`        | the loop written by hand                                          |
| `configured`  | the pieces that conf/ describes                                   |
"""
