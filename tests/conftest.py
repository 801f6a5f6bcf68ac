"""Settings for all tests; imports nothing heavy: the client's tests need only the client."""

from hypothesis import settings

# how long an example takes is the machine's business, not the test's
settings.register_profile("project", deadline=None)
settings.load_profile("project")
