"""Denoising networks. One file each, behind the protocol in `models.networks.protocol`."""
