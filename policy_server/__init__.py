"""The server: a pure engine and planner, backends, and the ZeroMQ reactor around them."""
