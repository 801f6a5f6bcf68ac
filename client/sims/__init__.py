"""Simulated robots; they need the extra `sim` (mujoco, metaworld) and nothing else imports them."""
