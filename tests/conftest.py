"""For every test."""

import signal

# A shell that starts this suite in the background has it ignore Ctrl-C, and all processes that tests start would
# inherit that; some of them are there to be interrupted.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
