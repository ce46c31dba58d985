"""How a command ends."""

DONE = 0
FAILED = 1  # the work failed; the same command goes on from the last finished stage
REFUSED = 2  # the request is wrong; nothing was written
