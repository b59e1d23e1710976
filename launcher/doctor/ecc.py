"""Check of the cards' memory errors, by ``npu-smi info -t ecc``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor

from launcher.cluster.discover.host import Card
from launcher.cluster.discover.npu_smi import parse_fields
from launcher.cluster.discover.programs import run_program
from launcher.doctor.findings import Finding, failed, passed, warned

_AT_A_TIME = 4
_TIMEOUT_S = 10.0
# Fewer pages than this are replaced without loss; a card with more of them wears out.
_PAGES = 64


def check_ecc(cards: tuple[Card, ...]) -> Iterator[Finding]:
    """Check that no card has uncorrectable memory errors, or pages that wait for a restart to be replaced."""
    with ThreadPoolExecutor(max_workers=_AT_A_TIME) as pool:
        counts = dict(zip(cards, pool.map(_counts, cards), strict=True)) if cards else {}
    known = {card: found for card, found in counts.items() if found}
    found = [finding for card, count in known.items() if (finding := _judged(card, count))]
    yield from sorted(found, key=lambda finding: finding.status)
    if known and not found:
        yield passed("ecc", f"{len(known)} cards without uncorrectable memory errors")


def _counts(card: Card) -> dict[str, int]:
    """Return the counters of one card; none where npu-smi has none, as for some products and in containers."""
    if card.chip is None:
        return {}
    ids = ("-i", str(card.chip.npu_id), "-c", str(card.chip.chip_id))
    fields = parse_fields(run_program("npu-smi", "info", "-t", "ecc", *ids, timeout_s=_TIMEOUT_S).stdout)
    return {key: int(value) for key, value in fields.items() if "Bit" in key and value.isdecimal()}


def _judged(card: Card, counts: Mapping[str, int]) -> Finding | None:
    """Return the finding on one card: uncorrected errors since its reset fail, those of its past life warn."""
    chip = card.chip
    ids = f"-i {chip.npu_id} -c {chip.chip_id}" if chip else ""
    fix = f"npu-smi info -t ecc {ids}; use other cards"
    now = _sum(counts, "Double Bit Error Count")
    if now:
        what = f"card {card.device_id}: {now} uncorrectable memory errors since its reset (HBM ECC)"
        return failed("ecc", what, f"{fix}, and have this one looked at")
    waiting = _sum(counts, "Next-Isolated Pages Count")
    if waiting:
        what = f"card {card.device_id}: {waiting} bad pages are replaced at the next reset"
        return warned("ecc", what, f"reboot when no job runs; {fix} until then")
    pages = _sum(counts, "Isolated Pages Count")
    if pages >= _PAGES:
        return warned("ecc", f"card {card.device_id}: {pages} bad pages were replaced", f"{fix} for long jobs")
    return None


def _sum(counts: Mapping[str, int], name: str) -> int:
    """Return the sum of the counters "<memory> <kind> Bit <name>"; "Isolated" is not "Next-Isolated"."""
    return sum(count for key, count in counts.items() if key.endswith(f" {name}"))
