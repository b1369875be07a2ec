"""Emulated network: several nodes on one machine, joined by links of a given rate.

| module      | content                                                                 |
|-------------|-------------------------------------------------------------------------|
| `command`   | the command line, and the checks before anything is made                |
| `lab`       | the namespaces, the links between the nodes, and the run inside of them |
| `job`       | a command started on every node at once, and its exit code              |
| `processes` | signals, exit codes and the system calls that Python has no function for |

The folder imports the standard library only: `sudo launch/netlab.py` runs under the interpreter of root, which has
neither torch nor Hydra.
"""
