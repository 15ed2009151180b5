"""Rewards: the protocol, the models behind each name, and weighted sums of them."""
