"""Frozen, framework-free truth: what a problem becomes once it is compiled."""
