"""The dataset format: what files hold, and reading, writing and checking them."""
