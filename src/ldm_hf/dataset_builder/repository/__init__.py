"""Data folders as repositories: describing, verifying, replaying, merging, publishing and converting them."""
