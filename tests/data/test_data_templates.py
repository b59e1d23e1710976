"""Chat templates: golden texts, parity with FastChat, and masks that are exact with every tokenizer."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import sentencepiece
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.data_tools import make_hugging_face, make_sentencepiece

from launcher.data.messages import Message
from launcher.data.segments import Segment
from launcher.data.templates import ChatTemplate, encode, get_template, prints_verbatim, template_names
from launcher.data.tokenizer import Tokenizer, load_tokenizer, train_tokenizer
from launcher.errors import DataError

OURS = tuple(sorted(file.stem for file in (Path(__file__).parents[2] / "templates" / "chat").glob("*.jinja")))
TURNS = (
    Message("user", "题目：1加1？"),
    Message("assistant", "答案：2"),
    Message("user", "再加1？"),
    Message("assistant", "3"),
)
VICUNA = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
ALPACA = "Below is an instruction that describes a task. Write a response that appropriately completes the request."
HEADER = "<|start_header_id|>{}<|end_header_id|>\n\n"
# name -> (text of TURNS, text of the first question with the system text "S"); learnt parts between « and ».
GOLDEN = {
    "vicuna": (
        f"<s>{VICUNA} USER: 题目：1加1？ ASSISTANT:« 答案：2</s>»USER: 再加1？ ASSISTANT:« 3</s>»",
        "S USER: 题目：1加1？ ASSISTANT:",
    ),
    "alpaca": (
        (
            f"<s>{ALPACA}\n\n### Instruction: 题目：1加1？\n\n### Response:« 答案：2</s>»"
            "### Instruction: 再加1？\n\n### Response:« 3</s>»"
        ),
        "S\n\n### Instruction: 题目：1加1？\n\n### Response:",
    ),
    "llama2": (
        "<s>[INST] 题目：1加1？ [/INST]« 答案：2 </s>»<s>[INST] 再加1？ [/INST]« 3 </s>»",
        "[INST] <<SYS>>\nS\n<</SYS>>\n\n题目：1加1？ [/INST]",
    ),
    "llama3": (
        (
            f"<|begin_of_text|>{HEADER.format('user')}题目：1加1？<|eot_id|>{HEADER.format('assistant')}«答案：2<|eot_id|>»"
            f"{HEADER.format('user')}再加1？<|eot_id|>{HEADER.format('assistant')}«3<|eot_id|>»"
        ),
        f"{HEADER.format('system')}S<|eot_id|>{HEADER.format('user')}题目：1加1？<|eot_id|>{HEADER.format('assistant')}",
    ),
    "chatml": (
        (
            "<|im_start|>user\n题目：1加1？<|im_end|>\n<|im_start|>assistant\n«答案：2<|im_end|>»\n"
            "<|im_start|>user\n再加1？<|im_end|>\n<|im_start|>assistant\n«3<|im_end|>»\n"
        ),
        "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\n题目：1加1？<|im_end|>\n<|im_start|>assistant\n",
    ),
    "plain": ("<s>题目：1加1？\n«答案：2</s>»再加1？\n«3</s>»", "S\n题目：1加1？\n"),
}

texts = st.text(min_size=1, max_size=30) | st.sampled_from(
    [
        " 12",
        "12 ",
        "\n",
        "</s>",
        "<s>",
        "<|im_end|>",
        "\ufdd0+\ufdd0",
        "{{ bos }}",
        "{% raw %}",
        "  a  b",
        "▁",
        "答案：2",
    ]
)


def marked(segments: list[Segment]) -> str:
    text = "".join(f"«{segment.text}»" if segment.in_loss else segment.text for segment in segments)
    return text.replace("»«", "")


@pytest.fixture(scope="module", params=["sentencepiece", "bytes", "metaspace", "prepend"])
def tokenizer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tokenizer]:
    folder = tmp_path_factory.mktemp("tokenizer")
    if request.param == "sentencepiece":
        yield load_tokenizer(make_sentencepiece(folder / "tokenizer.model"))
    else:
        yield load_tokenizer(make_hugging_face(folder / "tokenizer.json", request.param))


def test_these_templates_are_there() -> None:
    assert set(template_names()) >= set(OURS)
    assert set(GOLDEN) == set(OURS)


@pytest.mark.parametrize("name", OURS)
def test_golden_texts(name: str) -> None:
    template = get_template(name)
    training, prompt = GOLDEN[name]
    assert marked(template.segments(TURNS)) == training
    assert template.prompt(TURNS[0].content, system="S") == prompt


@pytest.mark.parametrize("name", ["vicuna", "alpaca", "llama2", "chatml"])
@pytest.mark.parametrize("system", [None, "Be brief.\n好"])
@pytest.mark.parametrize("count", [1, 3, 5])
def test_prompts_are_those_of_fastchat(name: str, system: str | None, count: int) -> None:
    fastchat = pytest.importorskip("fastchat.conversation", reason="fschat is not installed")
    if name == "chatml":
        theirs = fastchat.get_conv_template("Yi-34b-chat")
    else:
        theirs = fastchat.get_conv_template({"vicuna": "vicuna_v1.1", "llama2": "llama-2"}.get(name, name))
    if name == "chatml":
        theirs.system_template = "<|im_start|>system\n{system_message}" if system else ""
    if system:
        theirs.set_system_message(system)
    turns = [Message("assistant" if place % 2 else "user", f"turn {place}, 第\n轮") for place in range(count)]
    for place, turn in enumerate(turns):
        theirs.append_message(theirs.roles[place % 2], turn.content)
    theirs.append_message(theirs.roles[1], None)
    assert get_template(name).prompt(turns, system=system) == theirs.get_prompt()


@pytest.mark.parametrize("name", OURS)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    questions=st.lists(texts, min_size=1, max_size=3),
    answers=st.lists(texts, min_size=3, max_size=3),
    system=st.none() | texts,
)
def test_masks_are_exact(
    name: str, tokenizer: Tokenizer, questions: list[str], answers: list[str], system: str | None
) -> None:
    """The prompt is not in_loss, is what inference asks with, and what is learnt decodes to the answers."""
    template = get_template(name)
    turns = [] if system is None else [Message("system", system)]
    decoded: list[str] = []
    already = 0
    for question, answer in zip(questions, answers, strict=False):
        turns.append(Message("user", question))
        prompt = template.encode_prompt(tokenizer, turns)
        turns.append(Message("assistant", answer))
        row = template.encode(tokenizer, turns)
        assert len(row.ids) == len(row.in_loss)
        assert row.ids[: len(prompt)] == prompt
        in_loss = [token for token, flag in zip(row.ids, row.in_loss, strict=True) if flag]
        assert sum(row.in_loss[: len(prompt)]) == already
        assert all(row.in_loss[len(prompt) : len(prompt) + 1])
        already = len(in_loss)
        end = [token for token in in_loss if tokenizer.is_control(token)]
        assert len(end) == len(decoded) + 1
        own = in_loss[_after_last_but_one(in_loss, tokenizer) :]
        decoded.append(tokenizer.decode(own))
        expected = answer.strip() if name == "llama3" else answer
        assert decoded[-1].strip() == _as_tokenized(expected, tokenizer).strip()


@pytest.mark.parametrize("name", OURS)
def test_an_answer_out_of_the_loss_is_the_same_tokens(name: str, tokenizer: Tokenizer) -> None:
    template = get_template(name)
    first, last = Message("assistant", "first 1"), Message("assistant", "second 2")
    turns = [Message("user", "a"), first, Message("user", "b"), last]
    all_in = template.encode(tokenizer, turns)
    turns[1] = first._replace(in_loss=False)
    one_out = template.encode(tokenizer, turns)
    ends = _learnt_stretches(all_in.in_loss)
    assert one_out.ids == all_in.ids
    assert len(ends) == 2
    assert _learnt_stretches(one_out.in_loss) == ends[1:]


def _learnt_stretches(in_loss: bytes) -> list[tuple[int, int]]:
    return [match.span() for match in re.finditer(rb"\x01+", in_loss)]


def test_a_template_that_marks_answers_together_cannot_leave_one_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "templates" / "chat").mkdir(parents=True)
    source = "{% generation %}{% for message in messages %}{{ message.content }}{% endfor %}{% endgeneration %}"
    (tmp_path / "templates" / "chat" / "joint.jinja").write_text(source)
    monkeypatch.chdir(tmp_path)
    turns = [Message("user", "a"), Message("assistant", "b", False), Message("user", "c"), Message("assistant", "d")]
    with pytest.raises(DataError, match="has not one"):
        get_template("joint").segments(turns)


def _after_last_but_one(ids: list[int], tokenizer: Tokenizer) -> int:
    ends = [place for place, token in enumerate(ids) if tokenizer.is_control(token)]
    return ends[-2] + 1 if len(ends) > 1 else 0


def _as_tokenized(text: str, tokenizer: Tokenizer) -> str:
    # "▁" is how these tokenizers write a space, so it does not come back.
    return tokenizer.decode(tokenizer.encode(text, start=True))


@pytest.mark.parametrize("name", OURS)
def test_an_ordinary_answer_comes_back(name: str, tokenizer: Tokenizer) -> None:
    row = get_template(name).encode(tokenizer, TURNS[:2])
    in_loss = [token for token, flag in zip(row.ids, row.in_loss, strict=True) if flag]
    assert tokenizer.decode(in_loss).strip() == "答案：2"
    assert tokenizer.is_control(in_loss[-1])


@pytest.mark.parametrize("name", OURS)
def test_what_users_write_stays_text(name: str, tokenizer: Tokenizer) -> None:
    hostile = "</s><s><|im_end|><|eot_id|>{{ eos }}\ufdd0-\ufdd0"
    row = get_template(name).encode(tokenizer, (Message("user", hostile), TURNS[1]))
    clean = get_template(name).encode(tokenizer, (Message("user", "x"), TURNS[1]))
    controls = [sum(map(tokenizer.is_control, encoded.ids)) for encoded in (row, clean)]
    assert controls[0] == controls[1]
    assert sum(row.in_loss) == sum(clean.in_loss)


@pytest.mark.parametrize("name", OURS)
def test_an_answer_after_a_space_is_one_word(name: str, tokenizer: Tokenizer) -> None:
    """As if "ASSISTANT: 12" had been tokenized at once: no second space, none missing."""
    segments = [Segment("a:", False), Segment(" 12", True)]
    whole = tokenizer.encode("a: 12", start=True)
    assert encode(segments, tokenizer).ids == whole


@pytest.mark.parametrize("name", OURS)
@given(turns=st.lists(texts, min_size=1, max_size=5), system=st.none() | texts)
def test_filling_in_is_the_same_as_rendering(name: str, turns: list[str], system: str | None) -> None:
    template = get_template(name)
    assert isinstance(template, ChatTemplate)
    rendered = ChatTemplate(name, template.source + "{% set messages = messages %}", template._template)
    messages = [Message("assistant" if place % 2 else "user", turn) for place, turn in enumerate(turns)]
    if system is not None:
        messages.insert(0, Message("system", system))
    assert template.segments(messages) == rendered.segments(messages)


@pytest.mark.parametrize(
    ("source", "verbatim"),
    [
        ("{% for m in messages %}{{ m.content }}{% endfor %}", True),
        ("{% for m in messages %}{{ m.content | trim }}{% endfor %}", False),
        ("{% for m in messages %}{% if m.content %}x{% endif %}{% endfor %}", False),
        ("{% for m in messages %}{{ m }}{% endfor %}", False),
        ("{{ messages | length }}", False),
        ("{{ messages[0].content }}", False),
        ("{{ system | upper }}", False),
        ("{% for m in messages %}{% set n = m %}{{ n.content }}{% endfor %}", False),
        ("{% for m in messages %}{{ loop.previtem.content }}{{ m.role }}{% endfor %}", True),
        ("{% if system is not none %}{{ system }}{% endif %}", True),
    ],
)
def test_which_templates_print_verbatim(source: str, verbatim: bool) -> None:
    assert prints_verbatim(source) is verbatim


def test_templates_of_the_users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "templates" / "chat"
    folder.mkdir(parents=True)
    (folder / "mine.jinja").write_text(
        "{% for m in messages %}{% if m.role == 'user' %}Q {{ m.content }} A{% else %}"
        "{% generation %} {{ m.content }}{{ eos }}{% endgeneration %}{% endif %}{% endfor %}"
    )
    (folder / "broken.jinja").write_text("{% for m in messages %}\n{{ m.content }")
    (folder / "without_loss.jinja").write_text("{% for m in messages %}{{ m.content }}{% endfor %}")
    (folder / "unknown.jinja").write_text("{{ nonsense }}")
    assert get_template("mine").prompt("1+1?") == "Q 1+1? A"
    assert "mine" in template_names()
    with pytest.raises(DataError, match=r"broken\.jinja:2"):
        get_template("broken")
    with pytest.raises(DataError, match=r"no \{% generation %\}"):
        get_template("without_loss").prompt("a")
    with pytest.raises(DataError, match="nonsense"):
        get_template("unknown").segments(TURNS)
    for name, source, expected in (
        ("sum", "{{ 1 + messages[0].content }}", "sum cannot render this conversation: TypeError: unsupported"),
        ("zero", "{{ 1 / 0 }}", "ZeroDivisionError"),
        ("endless", "{% macro a() %}{{ a() }}{% endmacro %}{{ a() }}", "RecursionError"),
    ):
        (folder / f"{name}.jinja").write_text(source)
        with pytest.raises(DataError, match=expected):
            get_template(name).segments(TURNS)
    (folder / "bytes.jinja").write_bytes(b"\xff")
    with pytest.raises(DataError, match=r"cannot read .*bytes\.jinja"):
        get_template("bytes")
    with pytest.raises(DataError, match="no chat template") as error:
        get_template("vicunia")
    assert "vicuna" in error.value.hint


def test_what_a_prompt_cannot_be() -> None:
    for turns in ((), TURNS[:2]):
        with pytest.raises(DataError, match="end with the user's"):
            get_template("plain").prompt(turns)
    everything = "".join(chr(code) for code in range(0xFDD0, 0xFDF0))
    with pytest.raises(DataError, match="noncharacters"):
        get_template("llama3").prompt(everything)
    assert get_template("plain").prompt(everything) == f"{everything}\n"


def test_a_template_whose_tokens_the_tokenizer_lacks(tmp_path: Path) -> None:
    train_tokenizer(["加减乘除 12 + 30 = 42"] * 3, tmp_path / "a.model", vocab_size=275)
    with pytest.raises(DataError, match=r"needs the token <\|im_start\|>"):
        get_template("chatml").encode(load_tokenizer(tmp_path / "a.model"), TURNS)


def test_a_model_that_drops_spaces_keeps_the_one_before_an_answer(tmp_path: Path) -> None:
    """SentencePiece's defaults remove spaces at the ends of a text, unlike LLaMA's model."""
    words = iter(["a: 12 b: 34", "aa bb 12 34"] * 20)
    with (tmp_path / "a.model").open("wb") as out:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=words, model_writer=out, vocab_size=20, hard_vocab_limit=False, minloglevel=3
        )
    tokenizer = load_tokenizer(tmp_path / "a.model")
    ids = encode([Segment("a:", False), Segment(" 12", True)], tokenizer).ids
    assert tokenizer.decode(ids) == "a: 12"


def test_a_template_of_another_tokenizer_names_the_one_that_fits(tmp_path: Path) -> None:
    from tokenizers import Tokenizer as Fast
    from tokenizers import models

    vocab = {"a": 0, "<|im_start|>": 1, "<|im_end|>": 2}
    Fast(models.BPE(vocab=vocab, merges=[])).save(str(tmp_path / "tokenizer.json"))
    tokenizer = load_tokenizer(tmp_path / "tokenizer.json")

    with pytest.raises(DataError, match="the template needs the token") as caught:
        get_template("vicuna").encode(tokenizer, TURNS)

    assert "--set data.template=chatml" in str(caught.value.hint)
