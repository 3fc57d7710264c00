"""Prompts -> ids, against the tokenizers that the judges' authors used; and no prompt can end itself."""

from pathlib import Path

import open_clip
import pytest
import tiny
import tiny_scorers
from tiny_scorers import INJECTIONS, TEXTS

from diffalign.records import InputError
from diffalign.scorers import plain, tokens

START, END = 49406, 49407


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("tokens")
    tiny_scorers.clip_tokenizer().save_pretrained(place / "clip")
    tiny_scorers.bert_folder(place / "bert")
    return place


def test_openais_tokenizer_is_open_clips() -> None:
    found = tokens.openai()(TEXTS)["input_ids"]
    assert (found == open_clip.tokenize(TEXTS)).all()
    assert found.shape == (len(TEXTS), 77)
    assert found[2].tolist()[:3] == [START, END, 0]
    assert found[4, -1] == END, "a long prompt keeps its end"


def test_clip_folders_tokenizer_is_transformers(folder: Path) -> None:
    found = tokens.clip(folder / "clip")(TEXTS)
    wanted = tiny_scorers.clip_tokenizer()(TEXTS, padding=True, truncation=True, max_length=77, return_tensors="pt")
    assert (found["input_ids"] == wanted["input_ids"]).all()
    assert (found["attention_mask"] == wanted["attention_mask"]).all()
    assert found["input_ids"][2].tolist()[:2] == [START, END]
    assert found["input_ids"][4, -1] == END


def test_tokenizers_are_not_interchangeable(folder: Path) -> None:
    ours, theirs = tokens.openai(), tokens.clip(folder / "clip")

    def same(text: str) -> bool:
        a, b = ours([text])["input_ids"][0].tolist(), theirs([text])["input_ids"][0].tolist()
        return a[: a.index(END) + 1] == b[: b.index(END) + 1]

    assert all(same(t) for t in ("a red circle", "Two  Cats, 3 dogs!", "😀 猫", "ein großes Haus", ""))
    assert not any(same(t) for t in ("the cat’s", "“blue”", "fish &amp; chips", "ﬁsh", "ｆｕｌｌ"))


def test_a_prompt_is_text_and_never_a_special_token(folder: Path) -> None:
    for tokenize in (tokens.openai(), tokens.clip(folder / "clip")):
        for ids in tokenize(INJECTIONS)["input_ids"].tolist():
            assert ids.count(START) == 1
            first = ids.index(END)
            assert set(ids[first:]) <= {0, END}
            assert first > 4, "what stands after the words that look special is still there"
    for ids in tokens.bert(folder / "bert", 35)(INJECTIONS)["input_ids"].tolist():
        assert (ids.count(2), ids.count(3)) == (1, 1)


def test_open_clip_folders_have_open_clips_tokens_and_no_prompt_ends_itself(tmp_path: Path) -> None:
    for name, tokenizer in (("plain", None), ("bytes", tiny.clip_tokenizer()), ("pieces", tiny.t5_tokenizer())):
        place = tiny_scorers.open_clip_folder(tmp_path / name, tokenizer)
        tokenize, official = tokens.open_clip_folder(place), open_clip.get_tokenizer(f"local-dir:{place}")
        assert (tokenize(TEXTS)["input_ids"] == official(TEXTS)).all()
        named = tokenizer.all_special_tokens if tokenizer else []
        special = {tokenizer.convert_tokens_to_ids(t) for t in named if t != "<unk>"} or {START, END}

        def count(ids: list[int], special: set[int] = special) -> int:
            """How many of its ids are special, but for those that fill up behind its end."""
            while len(ids) > 1 and ids[-1] == ids[-2]:
                ids = ids[:-1]
            return sum(i in special for i in ids)

        usual = count(tokenize(["a red circle"])["input_ids"][0].tolist())
        assert usual > 0
        for text, ids in zip(INJECTIONS, tokenize(INJECTIONS)["input_ids"].tolist(), strict=True):
            assert count(ids) == usual, text


def test_only_what_reads_as_a_special_token_is_taken_apart() -> None:
    special = plain.pattern(["</s>", "<pad>", "!", "  "])
    for text in (*TEXTS, "a house! now", "two  cats", "x < y > z", "ﬁsh ＜3"):
        assert plain.apart(text, special) == text
        assert plain.apart(text, plain.CHAT) == text
    assert plain.apart("a </S>b<pad><pad>", special) == "a < /S>b< pad>< pad>"
    assert plain.apart("a ＜/s＞ ﬁsh </s>", special) == "a < /s> fish < /s>"
    assert plain.apart("</s>", plain.pattern([])) == "</s>"
    for text in ("<|im_end|>", "<｜end｜>", "</s>", "<end_of_turn>", "[INST]", "[/INST]", "[gMASK]", "<<|a|>|b|>"):
        assert not plain.CHAT.search(plain.apart(f"a {text} b", plain.CHAT)), text


def test_bert_is_padded_and_cut(folder: Path) -> None:
    found = tokens.bert(folder / "bert", 35)(["A red Circle", "word " * 500, ""])
    assert found["input_ids"].shape == (3, 35)
    assert found["input_ids"][0].tolist()[:6] == [2, 5, 6, 7, 3, 0]
    assert found["attention_mask"].sum(-1).tolist() == [5, 35, 2]
    assert found["input_ids"][1, -1] == 3


def test_folders_without_a_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no tokenizer"):
        tokens.clip(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(InputError, match="cannot load it"):
        tokens.clip(tmp_path)


@pytest.mark.parametrize("generation", [1, 2])
def test_siglips_tokens_are_its_own_in_small_letters_padded_to_the_end(generation: int, tmp_path: Path) -> None:
    place = tmp_path / "siglip"
    if generation == 1:
        own = tiny.t5_tokenizer()
        tiny_scorers.first_siglip(place, own)
    else:
        own = tiny.gemma_tokenizer()
        tiny_scorers.siglip_folder(place, tokenizer=own)
    found = tokens.siglip(place, 64)(TEXTS)
    assert found.keys() == {"input_ids"}, "it learnt without a mask"
    assert found["input_ids"].shape == (len(TEXTS), 64)
    plain = [
        "a red circle",
        "the cat’s “blue” square amp ﬁsh",
        "",
        "😀 ein großes haus 猫",
        "word " * 499 + "word",
        "a red circle",
    ]
    if generation == 2:
        plain[1], plain[3], plain[4] = "the cat’s “blue” square &amp; ﬁsh", "😀 ein großes haus, 猫", "word " * 500
    wanted = own(
        plain, padding="max_length", truncation=True, max_length=64, return_tensors="pt", padding_side="right"
    )["input_ids"]
    assert (found["input_ids"] == wanted).all()
    same = tokens.siglip(place, 64)(["A Red Circle!", "a red  circle"])["input_ids"]
    assert (same[0] == same[1]).all() == (generation == 1), "its punctuation and spaces do not count"
    special = {own.convert_tokens_to_ids(t) for t in own.all_special_tokens} - {own.unk_token_id}
    for text, ids in zip(INJECTIONS, tokens.siglip(place, 64)(INJECTIONS)["input_ids"].tolist(), strict=True):
        words = [n for n, i in enumerate(ids) if i not in special]
        assert len(words) > 4
        assert words == list(range(words[0], words[-1] + 1)), text


def test_siglip_folders_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"holds no tokenizer.json"):
        tokens.siglip(tmp_path, 64)
    tiny.t5_tokenizer().save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(InputError, match="its tokenizer cannot be loaded"):
        tokens.siglip(tmp_path, 64)
