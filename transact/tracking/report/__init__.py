"""report.html: what a run, or a sweep, has done so far, in one file that needs no network."""
