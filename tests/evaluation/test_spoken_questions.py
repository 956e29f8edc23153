"""Spoken questions: the rules on answers by hand, every layout, and the command."""

import csv
import json
import sys

import numpy as np
import pytest
import soundfile

from tests.processes import ROOT, TORCHRUN
from ttt_moshi.cli.main import main
from ttt_moshi.evaluation import EvaluationError
from ttt_moshi.evaluation.judge import Judged, judge_answers
from ttt_moshi.evaluation.spoken_answers import chosen, contains, equals, normalised
from ttt_moshi.evaluation.tasks.spoken_questions import choice_questions, judged_questions, open_questions


def test_answers_are_compared_as_the_papers_do():
    assert normalised("The  Eiffel-Tower, in a  town!") == ("eiffeltower in town", "eiffel tower in town")
    assert contains("I think it is the Nile, isn't it?", ["nile"]) and not contains("Nilexa", ["Nile"])
    assert contains("William Shakespeare wrote it.", ["Bacon", "william shakespeare"]) and not contains("", ["x"])
    assert not contains("anything", ["the", ""])  # an answer of nothing but articles is none
    assert equals("The Nile.", ["nile"]) and not equals("It is the Nile.", ["nile"])


@pytest.mark.parametrize(("said", "answer"), [
    ("Coca-Cola", "coca cola"), ("Coca Cola", "Coca-Cola"), ("Eugene O'Neill", "eugene o neill"),
    ("Eugene ONeill", "Eugene O'Neill"), ("J.R.R. Tolkien", "j r r tolkien"), ("St. John’s", "st john s"),
])  # fmt: skip
def test_punctuation_may_part_words_or_not(said, answer):
    """TriviaQA publishes answers with spaces where punctuation was; SQuAD deletes it."""
    assert contains(f"It was {said}, of course.", [answer]) and equals(f"{said}.", [answer])
    assert not contains(f"It was {said}, of course.", [f"{answer} x"])


CHOICES = {"A": "a red car", "B": "two dogs", "C": "the sea"}


@pytest.mark.parametrize(("said", "letter"), [
    ("The answer is B.", "B"), ("option (C), since", "C"), ("B", "B"), ("It must be B, not the others.", "B"),
    ("A dog, so the answer is C", "C"), ("A dog does it", None), ("I see two dogs there", "B"), ("A or B", None),
    ("Two dogs by the sea", None), ("", None), ("a b c", None), ("answer: A. No, the answer is B", "B"),
])  # fmt: skip
def test_the_chosen_letter(said, letter):
    assert chosen(said, CHOICES) == letter


TEN = dict(zip("ABCDEFGHIJ", ("ant", "bee", "cow", "dog", "eel", "fox", "gnu", "hen", "ibis", "jay"), strict=True))


@pytest.mark.parametrize(("said", "letter"), [
    ("I don't know.", None), ("I'm not sure.", None), ("I’d say it is E", "E"), ("I think it is B.", "B"),
    ("As far as I can tell, C", "C"), ("The option I would take is D", "D"), ("The answer is I think B", "B"),
    ("I", "I"), ("The answer is I.", "I"), ("I think it is (I).", "I"), ("It must be I, because", "I"),
    ("I is right", "I"), ("I or B", None), ("I think it is an ibis", "I"), ("I think A or I", None),
])  # fmt: skip
def test_who_speaks_as_i_has_chosen_nothing_by_that(said, letter):
    assert chosen(said, TEN) == letter


def test_small_letters_are_said_by_capital_ones(tmp_path):
    small = {"a": "cat", "b": "dog"}
    for said, letter in (("It is a dog.", "b"), ("It is B.", "b"), ("a", None), ("The answer is A", "a"), ("b", None)):
        assert chosen(said, small) == letter
    sound(tmp_path / "spoken_choices" / "a.wav")
    lines = [{"audio": "a.wav", "choices": small, "answer": a} for a in "bB"]
    lines.append({"audio": "a.wav", "choices": ["cat", 2], "answer": "b"})
    (tmp_path / "spoken_choices" / "mine.jsonl").write_text("\n".join(map(json.dumps, lines)))
    found = choice_questions(tmp_path)
    assert [question.answers for question in found] == [("b",), ("b",), ("B",)]
    assert [chosen("It is B", question.choices) for question in found] == ["b", "b", "B"]
    assert found[2].choices == {"A": "cat", "B": "2"}


def sound(path, seconds=0.4):
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = 0.1 * np.random.default_rng(len(str(path))).standard_normal(round(seconds * 24_000))
    soundfile.write(path, noise, 24_000)
    return path


def openaudiobench(root, name, header, row):
    sound(root / name / "audios" / "1.wav")
    with (root / name / f"{name}.csv").open("w", newline="", encoding="utf-8-sig") as file:
        csv.writer(file).writerows([[*header, "audio_filename"], [*row, "1.wav"]])


@pytest.mark.parametrize(("name", "header", "row", "answers"), [
    ("llama_questions", ["Questions", "Answer"], ["Who; what?", "Paris, France"], ("Paris, France",)),
    ("web_questions", ["question", "answers"], ["Who?", "Ann; Bob"], ("Ann", "Bob")),
    ("trivia_qa", ["question", "answer_normalized_value", "answer_normalized_aliases"],
     ["Q", "nile", "the nile,al nil"], ("nile", "the nile", "al nil")),
])  # fmt: skip
def test_the_tables_of_openaudiobench_are_read(tmp_path, name, header, row, answers):
    openaudiobench(tmp_path / "eval_datas", name, header, row)
    (question,) = open_questions(tmp_path, name)
    assert question.answers == answers and question.text == row[0] and question.audio.is_file()
    question.audio.unlink()
    with pytest.raises(EvaluationError, match="lists 1 recordings that are not there"):
        open_questions(tmp_path, name)
    with pytest.raises(EvaluationError, match="no spoken questions: expected"):
        open_questions(tmp_path / "nowhere", name)


@pytest.mark.parametrize(("line", "complaint"), [
    ('{"audio": "a.wav", "choices": ["x", "y"], "answer": "C"}', "'C' is not one of the letters"),
    ('{"audio": "a.wav", "choices": ["x"], "answer": "A"}', "two or more choices"),
    ('{"audio": "a.wav", "answer": "A"}', "lacks 'choices'"),
    ('{"audio": "a.wav", "choices": ' + json.dumps(["x"] * 12) + ', "answer": "A"}', "12 choices are more than"),
    ('{"audio": "a.wav", "choices": {"a": "x", "A": "y"}, "answer": "A"}', "one letter twice"),
    ('{"audio": "a.wav", "choices": {"]": "x", "B": "y"}, "answer": "B"}', "no list of texts"),
    ('{"audio": "a.wav", "choices": {"AB": "x", "B": "y"}, "answer": "B"}', "no list of texts"),
    ('{"audio": "a.wav", "choices": "xy", "answer": "A"}', "no list of texts"),
    ('{"audio": "a.wav", "choices": ["x", null], "answer": "A"}', "holds None, and no text"),
    ('{"audio": "b.wav", "choices": ["x", "y"], "answer": "A"}', "not there"),
    ("nonsense", "line 1"),
    ("", "lists no questions"),
])  # fmt: skip
def test_lists_that_cannot_be_used_are_refused(tmp_path, line, complaint):
    sound(tmp_path / "spoken_choices" / "a.wav")
    (tmp_path / "spoken_choices" / "mmsu.jsonl").write_text(line + "\n")
    with pytest.raises(EvaluationError, match=complaint):
        choice_questions(tmp_path)


@pytest.mark.parametrize(("answers", "complaint"), [
    ([], "`answers` is empty"), ([""], "holds an empty text"), ("  ", "holds an empty text"),
    (["nile", "The"], "'The', which is nothing but articles"), (["?!"], "'[?]!', which is nothing but articles"),
    ([["Paris"]], "is a list of texts"), ({"Paris": 1}, "is a list of texts"), ([None], "is a list of texts"),
    ([True], "is a list of texts"), (None, "is a list of texts"), ([1.5], "is a list of texts"),
])  # fmt: skip
def test_answers_that_can_never_be_right_are_refused(tmp_path, answers, complaint):
    sound(tmp_path / "trivia_qa" / "a.wav")
    path = tmp_path / "trivia_qa" / "questions.jsonl"
    path.write_text(json.dumps({"audio": "a.wav", "answers": answers}))
    with pytest.raises(EvaluationError, match=rf"questions\.jsonl, line 1: .*{complaint}"):
        open_questions(tmp_path, "trivia_qa")


def test_one_answer_is_a_list_of_one(tmp_path):
    sound(tmp_path / "trivia_qa" / "a.wav")
    lines = [{"audio": "a.wav", "answers": answers} for answers in ("Paris", ["Paris", "The City"], [1969])]
    (tmp_path / "trivia_qa" / "questions.jsonl").write_text("\n".join(map(json.dumps, lines)))
    found = [question.answers for question in open_questions(tmp_path, "trivia_qa")]
    assert found == [("Paris",), ("Paris", "The City"), ("1969",)]
    assert not contains("a", found[0]) and contains("It is Paris.", found[0])


@pytest.mark.parametrize("cell", ["", " ;", "The; a", "?"])
def test_a_row_without_an_answer_is_refused(tmp_path, cell):
    openaudiobench(tmp_path, "web_questions", ["question", "answers"], ["Who?", cell])
    with pytest.raises(EvaluationError, match=r"web_questions\.csv, line 2: no answer in .* that could be said"):
        open_questions(tmp_path, "web_questions")


def test_a_reference_is_a_text(tmp_path):
    sound(tmp_path / "judged_answers" / "a.wav")
    path = tmp_path / "judged_answers" / "mine.jsonl"
    path.write_text('{"audio": "a.wav", "reference": 18}\n{"audio": "a.wav", "reference": ""}\n{"audio": "a.wav"}')
    assert [question.answers for question in judged_questions(tmp_path)] == [("18",), (), ()]
    path.write_text('{"audio": "a.wav", "reference": ["because"]}')
    with pytest.raises(EvaluationError, match=r"line 1: `reference` is \['because'\], and no text"):
        judged_questions(tmp_path)


JUDGE = """import json, sys
for line in sys.stdin:
    case = json.loads(line)
    print(json.dumps({"id": case["id"], "score": len(case["answer"]) + len(case["reference"])}))
"""


def test_a_judge_is_a_command(tmp_path):
    script = tmp_path / "judge.py"
    script.write_text(JUDGE)
    cases = [Judged("a", "q", "abc", "é"), Judged("b", "q", "", "")]
    assert judge_answers(f"{sys.executable} {script}", cases) == [4.0, 0.0]
    script.write_text("import sys; sys.exit('no key')")
    with pytest.raises(EvaluationError, match="ended with status 1: no key"):
        judge_answers(f"{sys.executable} {script}", cases)
    for output, complaint in (("x", "a line"), ('{"id": "a", "score": 1}', "not rated 1 answers"),
                              ('{"id": "a", "score": NaN}', "not rated 2 answers")):  # fmt: skip
        script.write_text(f"print({output!r})")
        with pytest.raises(EvaluationError, match=complaint):
            judge_answers(f"{sys.executable} {script}", cases)
    with pytest.raises(EvaluationError, match="cannot be run"):
        judge_answers("no-such-judge", cases)


def test_a_file_of_ratings_is_a_judge(tmp_path):
    cases, ratings = [Judged("a", "q", "", "x"), Judged("b", "q", "", "y")], tmp_path / "ratings.jsonl"
    ratings.write_text('\ufeff{"id": "b", "score": 1}\n\n{"id": "a", "score": 4.5, "why": "\u2028"}\n', "utf-8")
    assert judge_answers(str(ratings), cases) == [4.5, 1.0]
    for content, complaint in (
        ('{"id": "a", "score": 1}', "not rated 1 answers .b"),
        ('{"id": "a", "score": 1}\n' * 2, "has rated a more than once"),
        ('{"id": "a", "score": 1' + 400 * "0" + "}", "a line"),
        ("{", "a line"),
    ):
        ratings.write_text(content)
        with pytest.raises(EvaluationError, match=complaint):
            judge_answers(str(ratings), cases)
    with pytest.raises(EvaluationError, match="cannot read"):
        judge_answers(str(tmp_path / "none.jsonl"), cases)


RANK_PROGRAM = """
import sys, torch.distributed as dist
from ttt_moshi.evaluation import EvaluationError
from ttt_moshi.evaluation.judge import Judged, judge_answers
from ttt_moshi.evaluation.scoring.ranks import Ranks
rank, meet, judge = int(sys.argv[1]), *sys.argv[2:]
dist.init_process_group("gloo", init_method="file://" + meet, rank=rank, world_size=2)
for id in ("a", "b"):
    try:
        print(Ranks(rank, 2).on_main(lambda: judge_answers(judge, [Judged(id, "", "", "")])))
    except EvaluationError as error:
        print(error)
"""

ONCE = """
import json, random, sys
from pathlib import Path
with Path(__file__).with_name("calls").open("a") as file:
    file.write("called\\n")
for line in sys.stdin:
    case = json.loads(line)
    if case["id"] == "b":
        sys.exit("no key")
    print(json.dumps({"id": case["id"], "score": random.random()}))
"""


def test_what_one_process_judges_all_know(tmp_path, warm):
    (tmp_path / "judge.py").write_text(ONCE)
    judge = f"{sys.executable} {tmp_path / 'judge.py'}"
    both = [warm.start(["-c", RANK_PROGRAM, rank, tmp_path / "meet", judge]) for rank in range(2)]
    assert [process.wait() for process in both] == [0, 0]
    (score, failure), others = (process.stdout.splitlines()[-2:] for process in both)  # after Gloo's own
    assert [score, failure] == others and 0 <= json.loads(score)[0] < 1 and failure.endswith("with status 1: no key")
    assert (tmp_path / "calls").read_text() == "called\n" * 2


def test_several_processes_ask_a_judge_once(tiny_material, tmp_path, warm):
    sound(tmp_path / "judged_answers" / "a.wav")
    line = {"audio": "a.wav", "question": "Why?", "reference": "because"}
    (tmp_path / "judged_answers" / "mine.jsonl").write_text(2 * (json.dumps(line) + "\n"))
    (tmp_path / "judge.py").write_text(ONCE)
    options = [
        "--checkpoint_dir", "base", "--hf_repo_id", tiny_material.base_model, "--dtype", "float32", "--device", "cpu",
        "--data_root", tmp_path, "--out", tmp_path / "out", "--tasks", "judged_answers", "--answer_seconds", "0.4",
        "--judge", f"{sys.executable} {tmp_path / 'judge.py'}",
    ]  # fmt: skip
    done = warm.run([*TORCHRUN, 2, ROOT / "eval_from_checkpoint.py", *options])
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "out/results.json").read_text())["tasks"]["judged_answers"]["n"] == 2
    assert (tmp_path / "calls").read_text() == "called\n"


def ask(material, out, *options) -> int:
    base = ["eval", "--checkpoint_dir", "base", "--hf_repo_id", str(material.base_model), "--dtype", "float32"]
    return main([*base, "--out", str(out), "--tasks", "trivia_qa,spoken_choices,judged_answers", *options])


def test_the_command_asks_and_keeps_what_was_said(tiny_material, tmp_path, capsys):
    root, out = tmp_path / "bench", tmp_path / "out"
    for folder, line in (
        ("trivia_qa", {"question": "Who?", "answers": ["zzz"]}),
        ("spoken_choices", {"choices": ["x", "y"], "answer": "B"}),
        ("judged_answers", {"question": "Why?", "reference": "because"}),
    ):
        sound(root / folder / "a.wav")
        name = "questions" if folder == "trivia_qa" else "mine"
        (root / folder / f"{name}.jsonl").write_text(json.dumps({"audio": "a.wav", **line}) + "\n")
    script = tmp_path / "judge.py"
    script.write_text(JUDGE)
    options = ["--data_root", str(root), "--answers", "2", "--answer_seconds", "1.2"]
    assert ask(tiny_material, out, *options) == 1  # no judge
    tasks = json.loads((out / "results.json").read_text())["tasks"]
    assert tasks["trivia_qa"]["value"] == 0.0 and tasks["trivia_qa"]["best_of"] == {"1": 0.0, "2": 0.0}
    assert tasks["spoken_choices"]["chance"] == 0.5 and "--judge" in tasks["judged_answers"]["reason"]
    (case,) = [json.loads(line) for line in (out / "conversations/judged_answers/to_judge.jsonl").open()][:1]
    assert case["id"] == "mine-1-0" and case["reference"] == "because" and case["question"] == "Why?"
    (sample,) = [json.loads(line) for line in (out / "samples" / "trivia_qa.jsonl").read_text().splitlines()]
    first = out / sample["conversations"][0]
    assert len(sample["said"]) == 2 and soundfile.info(first / "output.wav").frames == round(1.6 * 24_000)
    # With what it said as the right answer, the same conversations are right.
    made = (first / "output.wav").stat().st_mtime_ns
    words = json.loads((first / "output.json").read_text())["alignments"]
    words[:] = [["Nile", [0.9, 1.0], "SPEAKER_MAIN"]]
    (first / "output.json").write_text(json.dumps({"alignments": words}))
    line = {"audio": "a.wav", "question": "Who?", "answers": ["the Nile"]}
    (root / "trivia_qa" / "questions.jsonl").write_text(json.dumps(line) + "\n")
    assert ask(tiny_material, out, *options, "--judge", f"{sys.executable} {script}", "--overwrite") == 0
    tasks = json.loads((out / "results.json").read_text())["tasks"]
    assert tasks["trivia_qa"]["value"] == 0.5 and tasks["trivia_qa"]["best_of"] == {"1": 1.0, "2": 1.0}
    assert tasks["trivia_qa"]["nothing_else"] == 0.5 and tasks["judged_answers"]["value"] >= len("because")
    assert (first / "output.wav").stat().st_mtime_ns == made
    page = (out / "report.html").read_text()
    assert f'src="{sample["conversations"][0]}/output.wav"' in page and "Nile" in page
    capsys.readouterr()
    for words, complaint in (
        (["--answers", "0"], "not a whole number greater than 0"),
        (["--answer_seconds", "-1"], "--answer_seconds must be"),
        (["--answer_seconds", "nan"], "--answer_seconds must be"),
        (["--judge", ""], "--judge is empty"),
        (["--ttt", "off"], "`trivia_qa`: `--ttt off` is about a model that reads"),
        (["--user", "absent"], "`--user absent` is about a model that reads"),
    ):
        assert ask(tiny_material, tmp_path / "no", *words) == 2
        assert complaint in capsys.readouterr().err


def test_other_ratings_of_the_same_answers_replace_none_unasked(tiny_material, tmp_path, capsys):
    sound(tmp_path / "judged_answers" / "a.wav")
    (tmp_path / "judged_answers" / "mine.jsonl").write_text('{"audio": "a.wav", "question": "Why?"}\n')
    ratings, out = tmp_path / "ratings.jsonl", tmp_path / "out"

    def rated(line: str, *more: str) -> int:
        ratings.write_text(line)
        base = ["eval", "--checkpoint_dir", "base", "--hf_repo_id", str(tiny_material.base_model), "--dtype", "float32"]
        words = ["--data_root", str(tmp_path), "--answer_seconds", "0.4", "--judge", str(ratings), "--out", str(out)]
        return main([*base, *words, "--tasks", "judged_answers", *more])

    def value() -> float:
        return json.loads((out / "results.json").read_text())["tasks"]["judged_answers"]["value"]

    assert rated('{"id": "mine-1-0", "score": 3}') == 0 and value() == 3
    assert rated('{"id": "mine-1-0", "score": 3}') == 0
    assert rated('{"id": "mine-1-0", "score": 1}') == 2 and value() == 3
    assert "the same answers were rated otherwise there" in capsys.readouterr().err
    assert rated('{"id": "mine-1-0", "score": 1}', "--overwrite") == 0 and value() == 1
    for line, complaint in (
        ("[" * 100_000, "is nested too deeply"),
        ("{}", "lacks 'id'"),
        ("3", "holds something else"),
    ):
        assert rated(line) == 2 and value() == 1
        assert f"one of its lines {complaint}" in " ".join(capsys.readouterr().out.split())


def test_a_table_names_recordings_of_its_own_folder_only(tmp_path):
    sound(tmp_path / "a.wav")
    (tmp_path / "trivia_qa").mkdir()
    table = tmp_path / "trivia_qa" / "trivia_qa.csv"
    columns = "question,answer_normalized_value,answer_normalized_aliases,audio_filename\n"
    table.write_text(f"{columns}Who?,me,,../../a.wav\n")
    with pytest.raises(EvaluationError, match=r"the path \.\./\.\./a\.wav leaves the folder"):
        open_questions(tmp_path, "trivia_qa")
