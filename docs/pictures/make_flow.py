"""Draws flow.svg: what goes in, the three commands, what comes out. `python docs/pictures/make_flow.py`"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

WIDTH, HEIGHT = 900, 290
COMMAND, FILE, INK, MUTED = "#dbeafe", "#f4f4f5", "#18181b", "#52525b"


@dataclass(frozen=True, kw_only=True)
class Box:
    """A rectangle with a title and lines below it; commands are blue, files grey."""

    x: int
    y: int
    title: str
    lines: tuple[str, ...]
    command: bool = False
    width: int = 158
    height: int = 78

    def svg(self) -> str:
        """Return the rectangle and its text."""
        font = 'font-family="monospace" font-weight="bold"' if self.command else 'font-weight="bold"'
        texts = [f'<text x="{self.x + 10}" y="{self.y + 22}" font-size="14" {font} fill="{INK}">{self.title}</text>']
        for number, line in enumerate(self.lines):
            y = self.y + 42 + 17 * number
            texts.append(f'<text x="{self.x + 10}" y="{y}" font-size="12" fill="{MUTED}">{line}</text>')
        return (
            f'<rect x="{self.x}" y="{self.y}" width="{self.width}" height="{self.height}" rx="8" '
            f'fill="{COMMAND if self.command else FILE}" stroke="{MUTED}"/>' + "".join(texts)
        )


BOXES = (
    Box(x=20, y=56, title="raw data", lines=("JSON, JSON Lines:", "questions, answers")),
    Box(x=20, y=164, title="run spec, base", lines=("YAML; LLaMA from", "Hugging Face")),
    Box(
        x=254, y=110, title="submit", lines=("checks, plans, tokenizes,", "trains, supervises"), command=True, width=180
    ),
    Box(x=488, y=20, title="jobs/ID", lines=("rank table, YAML, logs,", "a checkpoint per rank"), width=180),
    Box(x=488, y=110, title="merge-ckpt", lines=("shards to one model,", "LoRA folded in"), command=True, width=180),
    Box(x=488, y=200, title="merged model", lines=("for MindFormers, or", "transformers, PEFT, vLLM"), width=180),
    Box(x=722, y=110, title="infer", lines=("answers; also chat,", "eval, serve"), command=True),
)
# From (x, y) to (x, y).
ARROWS = (
    ((178, 95), (254, 135)),
    ((178, 203), (254, 163)),
    ((434, 135), (488, 72)),
    ((578, 98), (578, 110)),
    ((578, 188), (578, 200)),
    ((668, 239), (722, 172)),
)


def flow() -> str:
    """Return the whole picture."""
    arrows = "".join(
        f'<line x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}" stroke="{INK}" stroke-width="1.6" marker-end="url(#tip)"/>'
        for (x1, y1), (x2, y2) in ARROWS
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" role="img" '
        'aria-label="raw data and a run spec go into launcher submit, its job into merge-ckpt, its model into infer">\n'
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        f'<path d="M0 0 L8 4 L0 8 z" fill="{INK}"/></marker></defs>\n'
        f'<rect width="{WIDTH}" height="{HEIGHT}" rx="10" fill="#ffffff"/>\n'
        + "\n".join(box.svg() for box in BOXES)
        + f"\n{arrows}\n</svg>\n"
    )


if __name__ == "__main__":
    Path(__file__).with_name("flow.svg").write_text(flow())
