"""Races: successive halving among the candidates of an environment, by runs that are continued."""
