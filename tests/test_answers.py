"""What is read in answers that contradict themselves, negate, quote, hedge or break off: a verdict, or none."""

import dataclasses

import numpy as np
import pytest

from diffalign.scorers import answers, questions
from diffalign.scorers.judge import Judge
from diffalign.scorers.server import Reply

NUMBERS = ("scale_5_text", "unifiedreward")


def read(name: str, text: str, **more: object) -> object:
    """What the shipped question reads in an answer; None where it cannot be read."""
    judge = Judge(dataclasses.replace(questions.read(name)[1], url="http://a/v1", model="m"))
    look = judge._verdict if judge.question.form in questions.TWO else lambda reply: judge._value(reply, 2)
    try:
        found = answers.readable(Reply(text, **more), look)
    except answers.Unreadable:
        return None
    return found if isinstance(found, str) else float(np.mean(found))


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("Final Score: 4", 4), ("Final Score:4", 4), ("Final Score: **4**", 4), ("**Final Score:** 4", 4),
        ("**Final Score: 4**", 4), ("### Final Score: `4`.", 4), ("Final Score is 4.", 4), ("Final Score：4", 4),
        ("Final score = 3.5", 3.5), ("final\nscore\n3", 3), ("It is fine.\n- Final Score: 4", 4),
        ("Final Score: 4/5", 4), ("Final Score: **4**/5", 4), ("Final Score: 4 / 5.", 4),
        ("Final Score: 4 out of 5", 4),
        ("Final Score: 4 (out of 5)", 4), ("Final Score: 4 stars of 5", 4),
        ("Final Score: 4\n- Alignment score: 5\n- Quality score: 2", 4),
        ("Final Score: 4 - Alignment score: 5 - Quality score: 2", 4),
        ("Final Score: 3. (A score 5 would need more.)", 3), ("Final Score: 2; score: 5 if it had wheels", 2),
        ("Alignment score: 5. Quality score: 2. Final Score: 3.", 3), ("So I give it the final score: 3!", 3),
        ("The hands are broken, so the final score is 2.", 2),
        ("<think>Final Score: 2? No.</think>Final Score: 4", 4), ("Final Score: 2?\nWait.\nFinal Score: 4", 4),
        ("Final Score: 2 at first.\nFinal Score: 4\n", 4), ("<answer>Final Score: 4</answer>", 4),
        ("Final Score: 8/10", None), ("Final Score: 4 out of 10", None), ("Final Score: 80/100", None),
        ("Final Score: 4-5", None), ("Final Score: 4 to 5", None), ("Final Score: 4 or 5", None),
        ("Final Score: 4,5", None), ("Final Score: 4.5.1", None), ("Final Score: 40%", None), ("Final Score: 4%", None),
        ("Final Score: 3½", None), ("Final Score: -3", None), ("Final Score: - 3", None), ("Final Score: .5", None),
        ("Final Score: 4+", None), ("Final Score: 4 - 1 = 3", None), ("Final Score: 4e0", None),
        ("Final Score: 6", None), ("Final Score: 0", None), ("Final Score: five", None), ("Final Score: N", None),
        ("Final Score: 4?", None), ("I would not give it a final score: 5.", None),
        ("A final score: 5 would be too much.", None), ("Final Score: 5, were it not for the hands", None),
        ("Final Score: 4. Final Score: 3.", None), ("Final Score: 4. Or rather, final score: 3 for the hands.", None),
        ("<think>Final Score: 4</think>", None), ("<think>Final Score: 4", None), ("4", None), ("", None),
        ("Final Score: 4-5\nScore: 4", None), ("Final Score: 4/5\nFinal Score: 4/10, I mean", None),
    ],
)  # fmt: skip
def test_final_scores(name: str, text: str, wanted: float | None) -> None:
    assert read(name, text) == wanted


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("Score: 4", 4), ("score = 4/5", 4), ("Overall score: 4. The light is good.", 4), ("Score: 4\nScore: 4", 4),
        ("Alignment score: 4", None), ("Alignment score: 5\nQuality score: 2", None), ("Score: 4. Score: 3.", None),
        ("Score: 4\nQuality score: 2", None), ("A score 5 would need more.", None), ("It is no score: 5.", None),
        ("Score: 8/10", None), ("Subscore: 4", None), ("underscore: 4", None), ("Score (1-5)", None),
    ],
)  # fmt: skip
def test_scores_that_are_not_called_final(text: str, wanted: float | None) -> None:
    assert read("scale_5_text", text) == wanted
    assert read("unifiedreward", text) is None, "that form asks for a final score"


def test_the_scale_is_the_question_s() -> None:
    assert [read("scale_10", f"Final Score: {text}") for text in ("8/10", "8 out of 10", "4/5", "8")] == [8, 8, None, 8]


@pytest.mark.parametrize(
    ("name", "text", "wanted"),
    [
        # half of "10"; half of "… is better in colour, but …"
        ("scale_10", "It is good.\nFinal Score: 1", None), ("scale_10", "Final Score: 7\nIt is go", 7),
        ("two_text", "Image A is better", None), ("two_text", "Image A is better.\nBut look", None),
        ("four", "Verdict: both good", None), ("llava_critic", r"\boxed{1}", None),
    ],
)  # fmt: skip
def test_answers_that_were_cut(name: str, text: str, wanted: float | None) -> None:
    assert read(name, text, finish="length") == wanted


# as the forms name the images: {0} the first, {1} the second
SENTENCES = [
    ("{0} is better.", "first"), ("**{1} is better.**", "second"), ("So {0} is better", "first"),
    ("I compared. {1} is better.", "second"), ("Both images are  equally good.", "tie"),
    ("{1} is dull, so {0} is better.", "first"), ("Overall, {1} is better!", "second"),
    ("<answer>{0} is better.</answer>", "first"),
    ("{0} is better in colour.\n{1} is better.", "second"),
    ("{0} is better?\n\nFinal verdict: {1} is better.\n---", "second"),
    ("<think>{0} is better.</think>\n{1} is better.", "second"),
    ("{0} is better. Yes, {0} is better lit. {0} is better.", "first"),
    ("It cannot be said that {0} is better. {1} is slightly better.", None), ("{1} is slightly better.", None),
    ("Neither {0} is better nor {1} is better.", None), ("It cannot be said that {0} is better.", None),
    ("It cannot be said, I think, that {0} is better.", None), ("I do not think {0} is better.", None),
    ("{0} is better. {1} is better.", None), ("{0} is better, {1} is better.", None),
    ("{0} is better? No: {1} is better.", None),
    ("{0} is better in colour, {1} is better overall.", None), ("{0} is better than nothing.", None),
    ("{0} is better lit.", None),
    ("{0} is better.\nNo, wait. {1} is slightly better.", None), ("{0} is better. Not really.", None),
    ("{0} is better?", None), ("Is it that {0} is better?", None), ("If it had hands, {0} is better.", None),
    ("{0} is better or {1} is better.", None), ("Some say {0} is better.", None), ("~~{0} is better.~~", None),
    ("Both images are equally good. {0} is better.", None), ("Not both images are equally good.", None),
    ("{0} isn't better.", None), ("{0} is not better.", None), ("<think>{0} is better.</think>", None),
    ("<think>{0} is better.", None),
    ("{0}", None), ("", None),
]  # fmt: skip


@pytest.mark.parametrize("name", ["two_text", "unifiedreward_pair"])
@pytest.mark.parametrize(("text", "wanted"), SENTENCES)
def test_sentences_about_two_images(name: str, text: str, wanted: str | None) -> None:
    assert read(name, text.format(*questions.read(name)[1].names)) == wanted


@pytest.mark.parametrize(
    ("name", "text", "wanted"),
    [
        ("two_text", r"\boxed{B}", "second"), ("two_text", r"The answer is $\boxed{1}$.", "first"),
        ("two_text", r"Image A is better: \boxed{B}", None), ("two_text", r"not \boxed{A}", None),
        ("llava_critic", r"<think>\boxed{1}? No.</think> $\boxed{Image 2}$", "second"),
        ("llava_critic", r"The better image is \boxed{\text{tie}}", "tie"), ("llava_critic", r"\boxed{**1**}", "first"),
        ("llava_critic", r"\boxed{1} or \boxed{2}", None), ("llava_critic", r"It is not \boxed{1}.", None),
        ("llava_critic", r"\boxed{1 or 2}", None), ("llava_critic", r"\boxed{1, 2}", None),
        ("llava_critic", r"\boxed{-1}", None),
        ("llava_critic", r"\boxed{12}", None), ("llava_critic", "\\boxed{1}\nNo: the other one.", None),
        ("llava_critic", "\\boxed{1}\n\\boxed{2}", "second"),
        ("llava_critic", r"\boxed{1}, but \boxed{2} has hands", None),
        ("four", "**Verdict:** A is better", "first"), ("four", "Verdict: **B is better**", "second"),
        ("four", "**Verdict: both bad**", "both_bad"), ("four", "My final verdict: Image A is better.", "first"),
        ("designsense", "Verdict: A is better in colour.\nVerdict: both good", "both_good"),
        ("four", "Verdict: A is better in colour, B is better in shape", None),
        ("four", "Verdict: A is better or B is better", None),
        ("four", "Verdict: not A is better", None), ("four", "The verdict is not: A is better", None),
        ("four", "I would not give the verdict: both good.", None), ("four", "Verdict: both good or both bad", None),
        ("four", "Verdict: A is better. Verdict: B is better.", None), ("four", "Verdict: both good?", None),
        ("four", "Verdict: A is better\nOr no, B.", None), ("four", "A is better", None),
    ],
)  # fmt: skip
def test_verdicts_in_other_forms(name: str, text: str, wanted: str | None) -> None:
    assert read(name, text) == wanted


def four(*marks: object) -> str:
    keys = ("prompt_following", "aesthetics", "fidelity", "harmlessness")
    return "{" + ", ".join(f'"{k}": {v}' for k, v in zip(keys, marks, strict=True)) + "}"


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (four(1, 2, 3, 4), 2.5), (f"```json\n{four(5, 5, 5, 5)}\n```", 5), ('{"marks": ' + four(1, 1, 1, 1) + "}", 1),
        (f"<think>{four(1, 1, 1, 1)}</think>{four(2, 2, 2, 2)}", 2), (f"{four(3, 3, 3, 3)}\n{four(3, 3, 3, 3)}", 3),
        (f"{four(1, 1, 1, 1)} or {four(5, 5, 5, 5)}", None), (four(1, 2, 3, '"4/5"'), None), (four(1, 2, 3, 8), None),
        (four(1, 2, 3, "null"), None), (four(1, 2, 3, "NaN"), None), (four(1, 2, 3, "true"), None),
        (four(1, 2, 3, "[4]"), None),
        (four(1, 2, 3, 4)[:-1] + ', "fidelity": 5}', None), (four(1, 2, 3, 4)[:-1], None),
        (f"<think>{four(1, 1, 1, 1)}", None), ('{"prompt_following": 4}', None),
    ],
)  # fmt: skip
def test_marks_of_aspects(text: str, wanted: float | None) -> None:
    assert read("aspects", text) == wanted


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("[1, 0.5]", 0.75), ("Here are the marks: [1, 0]", 0.5), ("```json\n[\n 1,\n 1\n]\n```", 1),
        ("[0, 0]\nBoth are missing.", 0),
        ("<think>[0, 0]</think>[1, 1]", 1), ("[1, 0]\n[1, 0]", 0.5), ("[1, 2] are the criteria.\n[1, 0]", None),
        ("Neither [1, 1] is met.", None), ("[0, 1]\nNo: [1, 1]", None), ("[1, 1] or [0, 0]", None), ("[1, 0, 1]", None),
        ("[1, true]", None), ('[1, "met"]', None), ("[1, 8]", None), ("[1", None), ("[1, NaN]", None),
        ("not [1, 1]", None),
    ],
)  # fmt: skip
def test_marks_of_a_rubric(text: str, wanted: float | None) -> None:
    assert read("rubric", text) == wanted


@pytest.mark.parametrize(
    ("name", "top", "wanted"),
    [
        ("yes_no", [("Yes", -0.7), ("No", -0.7)], 0.5), ("yes_no", [("Not", -0.1), ("No", -3.0)], None),
        ("yes_no", [("Yesterday", -0.1), ("Yes", -3.0)], None), ("yes_no", [("**", -0.1), ("Yes", -3.0)], None),
        ("yes_no", [("<think>", -0.0), ("Yes", -9.0)], None),
        ("scale_5", [("4", 0.0)], 4), ("scale_5", [("0", -0.1), ("4", -3.0)], None), ("scale_5", [("45", -0.1),
        ("4", -3.0)], None),
        ("scale_5", [("-", -0.1), ("4", -3.0)], None), ("scale_5", [("½", -0.1), ("4", -3.0)], None),
        ("two", [("A", -0.7), ("B", -0.7)], 0), ("two", [("Neither", -0.1), ("A", -3.0)], None),
        ("two", [("AB", -0.1), ("A", -3.0)], None),
    ],
)  # fmt: skip
def test_first_tokens(name: str, top: list[tuple[str, float]], wanted: float | None) -> None:
    found = read(name, "", first=tuple(top))
    assert found is None if wanted is None else found == pytest.approx(wanted)
