from collections import deque
from typing import Any

def use_plans(table: list[tuple[int, int, bool, bool, int] | None]) -> None: ...
def take_runs(
    pending: deque[Any],
    unsent: int,
    touched: dict[Any, None],
    data: bytes,
    at: int,
    end: int,
) -> int: ...

class Run: ...

class Pipe:
    def __init__(self, fleet: Any, lane: int, outlet: Any) -> None: ...
