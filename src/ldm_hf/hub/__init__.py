"""Models on the Hub: loading them, their cards, publishing them; and the client that data sets are published with too."""
