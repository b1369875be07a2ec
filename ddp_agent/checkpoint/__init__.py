"""Checkpoints that are whole or do not exist.

    checkpoints/step-00000120/{rank-0000.pt, rank-0001.pt, manifest.json}

Every rank writes its own state, because between syncs everything differs, into a scratch directory that all
ranks must see (on several nodes: a shared file system). Only when every file has been read back as it was
meant does rank 0 write the manifest and rename the directory, so a crash at any moment leaves the earlier
checkpoints as they were. Reading trusts nothing: sizes and hashes first, then torch's loader for plain data.

A state is made of tensors, numbers, strings, None, and dicts, lists and tuples of these. Anything else (NumPy
values, paths, a `defaultdict`) would be refused by that loader, so it is refused on saving already. Tensors
come back on the CPU and are the caller's; `Optimizer.load_state_dict` keeps references: give it a deep copy.

What is read without torch (`folder`, and `python -m ddp_agent.checkpoint`) does not wait for it.
"""
