"""What people type: each command of `unime` is one file here, with a `main`."""
