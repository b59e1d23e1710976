"""The agents that the doctor asks on other hosts."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from typing import IO, cast

import pytest

from launcher.cluster.model import Host
from launcher.control.checkup import HostAgent
from launcher.errors import HostError

# Answers each request with its own name, the first one late.
SLOW_AT_FIRST = """
import json, sys, time
for line in sys.stdin:
    asked = json.loads(line)["do"]
    time.sleep(1.0 if asked == "listen" else 0.0)
    print(json.dumps({"doctor": {"of": asked}}), flush=True)
"""


def test_a_late_answer_is_not_taken_for_that_to_the_next_question() -> None:
    with tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen(
            (sys.executable, "-c", SLOW_AT_FIRST), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        agent = HostAgent(Host(name="a", address="10.0.0.1", devices=()), process, cast("IO[str]", process.stdin), said)
        assert agent.ask("time", within_s=60.0) == {"of": "time"}
        with pytest.raises(HostError, match=r"no answer within 0\.1 s"):
            agent.ask("listen", within_s=0.1)
        with pytest.raises(HostError, match=r"no answer within 0\.1 s"):
            agent.ask("reach", within_s=60.0)
        process.kill()
        process.communicate()
