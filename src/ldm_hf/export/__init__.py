"""A trained model outside Python: its step as ONNX, and a page on which it acts in a browser."""
