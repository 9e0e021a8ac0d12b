"""The command line: one file per group of commands, which read arguments, call the package and print."""
