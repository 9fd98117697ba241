"""The control plane: the process that serves the computed tree, `/.zcfs/`.

The daemon starts it (`python -m zcfs.fs`), plays the kernel to it over a socket pair, and starts it
again when it dies. Only this package imports pyfuse3.

| module | what it owns |
|---|---|
| `__main__` | the process: arguments, signals, exit status |
| `serve` | the main loop: the FUSE session, the control client, and what ends them |
| `operations` | the FUSE operations: nodes, handles, errors |
| `guard` | what no handler may do: fail unseen, or take for ever |
| `tree` | names and nodeids |
| `contents` | what the files say |
| `control` | questions to the daemon |
| `metrics` | status and stats as Prometheus text |
| `faults` | files that fail on purpose, for tests |
| `log` | the log's form |
"""
