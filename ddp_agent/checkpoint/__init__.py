"""Checkpoints that are complete or do not exist.

    checkpoints/step-00000120/{rank-0000.pt, rank-0001.pt, manifest.json}

Every rank writes its own state, because ranks differ between synchronisations. The files go into a scratch folder that
all ranks must see (on several nodes: a shared file system). After every file was read back unchanged, rank 0 writes the
manifest and renames the folder. A crash at any moment leaves the earlier checkpoints as they were. Reading trusts
nothing: sizes and hashes are compared first, then torch's loader for plain data reads the file.

A state consists of tensors, numbers, strings, None, and dicts, lists and tuples of these. Anything else (NumPy values,
paths, a `defaultdict`) would be refused by that loader, so saving refuses it. Loaded tensors are on the CPU and belong
to the caller. `Optimizer.load_state_dict` keeps references: give it a deep copy.

`folder` and the command `python -m ddp_agent.checkpoint` read no states and import no torch.
"""
