"""What a process does without the streams that it is used to."""

from __future__ import annotations

import subprocess
import sys


def test_a_process_without_a_standard_output_ends_with_its_own_code() -> None:
    """As under a service manager or `>&-`: Python has no stream there."""
    code = "from transact.errors import leave; leave(7)"
    shell = 'exec "$0" -c "$1" >&- 2>&-'
    assert subprocess.run(["sh", "-c", shell, sys.executable, code], check=False).returncode == 7
