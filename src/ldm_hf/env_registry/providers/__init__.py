"""Where environments run: in this process, in a virtual environment, in a container."""
