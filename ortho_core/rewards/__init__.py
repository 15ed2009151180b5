"""Rewards: the protocol, the model of each name, and weighted sums of rewards."""
