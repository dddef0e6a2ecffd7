"""What each command takes, apart from what it does: `--help` and mistakes are answered before anything heavy loads.

A file for each command, with `read(arguments)`, whose result the command's `execute` takes. Nothing here imports
torch, transformers or datasets.
"""
