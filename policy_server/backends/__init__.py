"""Backends: what evaluates the network. One file each, behind the protocol in `protocol`."""
