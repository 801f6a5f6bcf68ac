"""Simulated robots, one a package; they need the extra `sim` and nothing of the client needs them.

`client.sims.simulation` says what such a robot must offer, `client.sims.real_time` lets a control
loop drive one in wall-clock time.
"""
