"""Hints that name versions take them from the table."""

from __future__ import annotations

import io
import tokenize
from pathlib import Path

import launcher
from launcher.upstream.versions import SUPPORTED, pip_install

ROOT = Path(launcher.__file__).parent


def test_the_pair_of_what_is_installed_comes_first() -> None:
    assert pip_install() == f"pip install mindspore=={SUPPORTED.mindspore[0]} mindformers=={SUPPORTED.mindformers}"
    assert pip_install("2.7.1", None) == "pip install mindspore==2.7.1 mindformers==1.7.0"
    assert pip_install("2.7.1", "1.8.0") == "pip install mindspore==2.7.2 mindformers==1.8.0"
    assert pip_install("0.1", "0.1") == pip_install()


def test_no_hint_has_a_pin_of_its_own() -> None:
    for path in ROOT.rglob("*.py"):
        tokens = tokenize.generate_tokens(io.StringIO(path.read_text(encoding="utf-8")).readline)
        text = [token.string for token in tokens if token.type == tokenize.STRING]
        assert not [found for found in text if "mindspore==2" in found or "mindformers==1" in found], path
