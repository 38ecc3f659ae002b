"""For every test."""

import signal

from hypothesis import HealthCheck, settings

# A shell that starts this suite in the background has it ignore Ctrl-C, and all processes that tests start would
# inherit that; some of them are there to be interrupted.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# A busy machine is no reason to fail, and no run differs from the one before: a failure can be had again.
settings.register_profile("same", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("same")
