"""The model: self-contained, imports nothing else of the package, and is published with a checkpoint as remote code."""
