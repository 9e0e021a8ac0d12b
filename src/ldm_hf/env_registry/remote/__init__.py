"""The host's side of isolated environments: vector environments over pools of worker processes."""
