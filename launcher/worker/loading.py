"""Check in the rank itself that a checkpoint was loaded completely: MindFormers only logs what it did not load."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Any

from launcher.errors import CheckpointError
from launcher.upstream.patching import replace_everywhere

_SHOWN = 3


class Loads:
    """The parameters that no call of loading ``source`` into the network has set.

    ``source``: a base, or with ``resumed`` the checkpoint from which a run goes on; "" when there is none.
    """

    def __init__(self, source: str, *, resumed: bool) -> None:
        self._source, self._resumed = source, resumed
        self._calls = 0
        self._left: dict[str, None] = {}
        self._loaded: set[str] = set()

    def note(self, left: Iterable[str], loaded: Iterable[str]) -> None:
        """Add the names that one call did not load and those it did: network and optimizer may be loaded separately."""
        self._calls += 1
        self._left |= dict.fromkeys(left)
        self._loaded |= set(loaded)

    def check(self) -> None:
        """Raise CheckpointError unless every initial value of the network came from the source.

        A base has neither LoRA's adapters nor the optimizer's states; the checkpoint of a resumed run has both.
        Counters, which have no dot in their names, may be missing.
        """
        if not self._source:
            return
        from launcher.models import names  # with numpy, which a scheduler does without

        wanted = (name for name in self._left if names.is_weight(name) or (self._resumed and "." in name))
        # One call may leave what another one loads: only what none has loaded is missing.
        left = [name for name in wanted if name not in self._loaded]
        if not self._calls:
            raise CheckpointError(f"MindFormers loaded nothing of {self._source}", hint="launcher doctor")
        if left:
            more = f" and {len(left) - _SHOWN} more" if len(left) > _SHOWN else ""
            raise CheckpointError(
                f"{len(left)} parameters are not in {self._source} and would begin at random: "
                f"{', '.join(left[:_SHOWN])}{more}",
                hint="launcher doctor SPEC holds the base against the spec",
            )


def watch_loads(source: str, *, resumed: bool) -> Loads:
    """Record every later call of ``mindspore.load_param_into_net``, which returns the names it did not load.

    All ways to load in MindFormers end in this function (mindformers 1.6 to 1.9: trainer/utils.py load_ckpt,
    utils/load_checkpoint_utils.py; mindspore 2.9, load_distributed_checkpoint); some modules hold it by name.
    """
    import mindspore

    loads = Loads(source, resumed=resumed)
    original = mindspore.load_param_into_net

    @functools.wraps(original)
    def counted(net: Any, parameter_dict: Any, *args: Any, **kwargs: Any) -> tuple[list[str], list[str]]:
        left, unused = original(net, parameter_dict, *args, **kwargs)
        loads.note(left, set(parameter_dict) - set(unused))
        return left, unused

    replace_everywhere(original, counted)
    return loads
