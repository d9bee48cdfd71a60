"""How much capture may cost, and whether all is kept: what `--max-overhead` and `--keep` said, by the environment.

Standard library only, Python >= 3.8: every worker imports this.
"""

from __future__ import annotations

import os

# Share of the job's CPU time and of its loop's time that all of capture may cost. Each part's share of this stands in
# that part's module.
USUAL = 0.01
MAX_OVERHEAD, KEEP = "LOADERPROF_MAX_OVERHEAD", "LOADERPROF_KEEP"


def environment(share: float | None, keep: bool) -> dict[str, str]:
    """Return the environment variables that carry what the user asked for to the job and to the samplers beside it."""
    return {**({MAX_OVERHEAD: repr(share)} if share else {}), **({KEEP: "1"} if keep else {})}


def max_overhead() -> float:
    """Return the share of a job that all of capture may cost."""
    try:
        return max(1e-6, float(os.environ.get(MAX_OVERHEAD) or USUAL))
    except ValueError:
        return USUAL


def allowed(usual: float) -> float:
    """Return a part's share, which is `usual` where nothing was said."""
    return usual * max_overhead() / USUAL


def keeps_all() -> bool:
    """Return whether every batch is to have a record of its own, whatever that costs."""
    return bool(os.environ.get(KEEP))
