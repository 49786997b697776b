"""How many examples property tests try: enough for a person who waits, or thoroughly.

``KVPROTO_EXAMPLES=thorough`` (CI) tries all that a test asks for; otherwise it is a tenth of them.
``KVPROTO_EXAMPLES=few`` is for a tool that runs the tests thousands of times to see them fail.
Nothing here depends on how fast the machine is.
"""

from __future__ import annotations

import os

from hypothesis import HealthCheck, Phase, settings

__all__ = ["FEW", "THOROUGH", "examples"]

THOROUGH = os.environ.get("KVPROTO_EXAMPLES") == "thorough"

FEW = os.environ.get("KVPROTO_EXAMPLES") == "few"

_FEWER = 10
_LEAST = 20
_FEWEST = 5


def examples(count: int = 100, *, steps: int = 50) -> settings:
    """Return hypothesis's settings for a property test.

    Args:
        count: Examples of a thorough run.
        steps: Steps of one example, for state machines.
    """
    if THOROUGH:
        tried = count
    elif FEW:
        tried = min(count, _FEWEST)
    else:
        tried = min(count, max(_LEAST, count // _FEWER))
    return settings(
        max_examples=tried,
        stateful_step_count=steps,
        # Where only the failure counts, no smaller example is looked for.
        phases=(Phase.explicit, Phase.generate) if FEW else tuple(Phase),
        # A person sees the same examples at every run; CI looks for new ones.
        derandomize=not THOROUGH,
        deadline=None,
        suppress_health_check=[
            HealthCheck.too_slow,
            HealthCheck.data_too_large,
            HealthCheck.large_base_example,
            HealthCheck.filter_too_much,
            # A suite that is inherited runs in more than one class, on purpose.
            HealthCheck.differing_executors,
        ],
    )
