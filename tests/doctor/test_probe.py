"""The probe for slow ranks: two rounds of pairs, real on CPU ranks, and a script for cards."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
from support.fake_host import CHECKOUT, FakeHost, info_hbm, run_launcher

from launcher.doctor.probe import Measured, Round, first_waves, probe_finding, second_waves, slow_ranks


def simulated(
    waves: tuple[tuple[tuple[int, int], ...], ...], product: dict[int, float], link: dict[int, float]
) -> Round:
    """A round of ranks whose product takes 10 ms and whose exchange takes 2 ms, but for those named."""
    ranks = sorted({rank for wave in waves for pair in wave for rank in pair})
    own = {rank: product.get(rank, 0.010) for rank in ranks}
    partner = {a: b for wave in reversed(waves) for pair in wave for a, b in (pair, pair[::-1])}
    whole = {rank: max(own[rank], own[partner[rank]]) + max(link.get(r, 0.002) for r in (rank, partner[rank]))
             for rank in ranks}  # fmt: skip
    return Round(waves=waves, measured={r: Measured(product_s=own[r], whole_s=whole[r]) for r in ranks})


def probed(ranks: int, product: dict[int, float] | None = None, link: dict[int, float] | None = None) -> list[Round]:
    first = simulated(first_waves(range(ranks)), product or {}, link or {})
    return [first, simulated(second_waves(first), product or {}, link or {})]


def test_the_slow_meet_the_fast_in_the_second_round() -> None:
    first, second = probed(8, product={2: 0.05})

    assert first.waves == (((0, 1), (2, 3), (4, 5), (6, 7)),)
    assert {frozenset(pair) for pair in second.waves[0]} == {
        frozenset(pair) for pair in ((0, 3), (1, 2), (4, 7), (5, 6))
    }


def test_of_an_odd_number_one_has_a_second_turn() -> None:
    first, second = probed(5)

    assert first.waves == (((0, 1), (2, 3)), ((4, 0),))
    assert second.waves == (((0, 4), (1, 3)), ((2, 0),))
    assert set(second.measured) == set(range(5))


@pytest.mark.parametrize("ranks", [2, 3, 4, 5, 8, 16, 33])
@pytest.mark.parametrize("place", [0, 1, -1])
def test_the_one_with_a_slow_product_is_found(ranks: int, place: int) -> None:
    slow = range(ranks)[place]

    assert slow_ranks(probed(ranks, product={slow: 0.05})) == (slow,)
    assert slow_ranks(probed(ranks)) == ()


@pytest.mark.parametrize("ranks", [4, 5, 8, 16])
def test_the_one_with_a_slow_link_is_found(ranks: int) -> None:
    rounds = probed(ranks, link={1: 0.05})

    assert slow_ranks(rounds) == (1,)
    assert (
        "its matrix product is as fast as that of others (10.0 ms), its exchange is not"
        in probe_finding(rounds, "CPU ranks", "top").what
    )


def test_two_of_eight_are_found() -> None:
    assert slow_ranks(probed(8, product={2: 0.05, 5: 0.06})) == (2, 5)


def test_the_finding_has_a_table() -> None:
    finding = probe_finding(probed(4, product={2: 0.05}), "CPU ranks", "top")

    assert (finding.status, finding.fix) == ("fail", "top")
    assert finding.what == ("rank 2 is slow in both rounds: its matrix product takes 50.0 ms, that of others 10.0 ms")
    assert finding.table == (
        "rank       with   product      pair     with   product      pair",
        "0             1   10.0 ms   12.0 ms        3   10.0 ms   12.0 ms",
        "1             0   10.0 ms   12.0 ms        2   10.0 ms   52.0 ms",
        "2             3   50.0 ms   52.0 ms        1   50.0 ms   52.0 ms  slow",
        "3             2   10.0 ms   52.0 ms        0   10.0 ms   12.0 ms",
    )


# Rank 2 is stopped for two thirds of the time, as a CPU limit does it.
SLOWED = """
import os, subprocess, sys
if sys.orig_argv[2:4] == ["launcher.worker.probe_rank", "2"]:
    limit = (
        "import ctypes, os, signal, sys, time; ctypes.CDLL(None).prctl(1, 9)\\nwhile True:\\n"
        " os.kill(int(sys.argv[1]), signal.SIGSTOP); time.sleep(0.02)\\n"
        " os.kill(int(sys.argv[1]), signal.SIGCONT); time.sleep(0.01)"
    )
    subprocess.Popen((sys.executable, "-S", "-c", limit, str(os.getpid())), stdin=-3, stdout=-3, stderr=-3)
"""


@pytest.mark.slow
def test_a_rank_that_is_held_up_is_found_for_real(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(SLOWED)
    env = {**os.environ, "PYTHONPATH": f"{tmp_path}:{CHECKOUT}"}
    said: list[str] = []
    for _ in range(3):  # other programs may hold up a rank beside it, in one run or in two
        done = run_launcher("doctor", "--probe", "--cards", "4", "--format", "json", cwd=tmp_path, env=env)
        assert done.returncode == 1, done
        said.append(json.loads(done.stdout)["what"])
        if said[-1].startswith("rank 2 is slow in both rounds: its matrix product takes"):
            return
    pytest.fail(str(said))


@pytest.mark.slow
def test_ranks_that_are_alike_pass(tmp_path: Path) -> None:
    done = run_launcher("doctor", "--probe", "--cards", "2", cwd=tmp_path)

    assert done.stdout.startswith("pass  probe           none of 2 CPU ranks is slow in both rounds"), done


def test_one_rank_has_nobody_to_be_compared_with(tmp_path: Path) -> None:
    done = run_launcher("doctor", "--probe", "--cards", "1", cwd=tmp_path)

    assert (done.returncode, "it takes 2 at least" in done.stderr) == (2, True), done


def test_for_cards_a_script_is_written_and_nothing_is_run(tmp_path: Path) -> None:
    host = FakeHost(root=tmp_path).devices([0, 1, 2, 3]).npu_smi(info=info_hbm(4))
    done = host.run("doctor", "--probe", "--cards", "4")

    assert done.returncode == 0, done
    assert "not yet run on Ascend" in done.stdout
    assert f"bash {tmp_path}/probe/run_0.sh" in done.stdout
    script = (tmp_path / "probe" / "run_0.sh").read_text()
    assert "export ASCEND_RT_VISIBLE_DEVICES=0,1,2,3" in script
    assert "msrun --worker_num=4 --local_worker_num=4" in script
    subprocess.run(("/bin/bash", "-n", tmp_path / "probe" / "run_0.sh"), check=True)
    program = (tmp_path / "probe" / "probe_rank.py").read_text()
    assert "RANKS = 4" in program
    assert 'device_target="Ascend"' in program
    again = host.run("doctor", "--probe", "--cards", "4")
    assert "is there already" in again.stderr
