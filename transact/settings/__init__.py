"""Every setting, described: for `--help` and for docs/config/."""
