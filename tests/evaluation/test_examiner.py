"""The examiner on servers that do what is known, and on our own."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path

import blake3
import numpy as np
import pytest
import soundfile
import sphn
from aiohttp import web
from aiohttp.test_utils import TestServer

from ttt_moshi.cli.main import main
from ttt_moshi.evaluation import EvaluationError
from ttt_moshi.evaluation.examiner import PACES, Exchange, Turn, examine, score_turns
from ttt_moshi.evaluation.tasks.examiner import find_tasks
from ttt_moshi.inference import InferenceError
from ttt_moshi.inference.client import call

FRAME, RATE = 1920, 24_000
RNG = np.random.default_rng(0)
TURN = (0.1 * RNG.standard_normal(10 * FRAME)).astype(np.float32)  # 0.8 s
LEAD = 2
"""frames: what a line without delay costs"""

Plan = Callable[[list[bool]], str | None]
"""what a model says to a frame, given which of the frames so far were loud: a piece of text and noise, None silence"""


def app_of(plan: Plan, delay: int = 1) -> web.Application:
    """A server with moshi's protocol that answers as planned, from the frame after `delay` on."""

    async def chat(request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        reader, writer = sphn.OpusStreamReader(RATE), sphn.OpusStreamWriter(RATE)
        noise = (0.1 * np.random.default_rng(1).standard_normal(FRAME)).astype(np.float32)
        heard, loud, replies = np.zeros(0, np.float32), [], []
        await socket.send_bytes(b"\x00")
        async for message in socket:
            heard = np.concatenate([heard, reader.append_bytes(message.data[1:])])
            while len(heard) >= FRAME:
                loud.append(float(np.abs(heard[:FRAME]).mean()) > 0.01)
                heard = heard[FRAME:]
                replies.append(plan(loud))
                if len(replies) > delay:
                    piece = replies[len(replies) - 1 - delay]
                    sound = noise if piece is not None else 0 * noise
                    await socket.send_bytes(b"\x01" + bytes(writer.append_pcm(sound)))
                    if piece:
                        await socket.send_bytes(b"\x02" + piece.encode())
        return socket

    app = web.Application()
    app.router.add_get("/api/chat", chat)
    return app


def examined(plan: Plan, pace: str, turns: list[Turn], delay: int = 1) -> Exchange:
    async def whole() -> Exchange:
        async with TestServer(app_of(plan, delay)) as site, call(str(site.make_url("/"))) as line:
            return await examine(line, turns, PACES[pace])

    return asyncio.run(asyncio.wait_for(whole(), 120))


def since(loud: list[bool], what: bool) -> int:
    """Frames at the end of `loud` that are `what`."""
    return next((i for i, one in enumerate(reversed(loud)) if one != what), len(loud))


def answers(after: int, frames: int = 15) -> Plan:
    """Says a word every third frame, from so many frames after the user's end on."""

    def plan(loud: list[bool]) -> str | None:
        quiet = since(loud, False) - 1
        return (" word" if quiet % 3 == after % 3 else "") if any(loud) and after <= quiet < after + frames else None

    return plan


def test_a_planted_delay_of_240_ms_is_a_latency_of_240_ms_and_the_line_s():
    found = examined(answers(after=3), "slow", [Turn(TURN), Turn(TURN)])
    rows = score_turns(found, [["word"], ["another"]])
    for row, known in zip(rows, (1.0, 0.0), strict=True):
        assert row == {
            "answered": 1.0,
            "taken": 1.0,
            "interrupted": 0.0,
            "latency": pytest.approx(0.24 + 0.08 * LEAD),
            "known": known,
        }
    # A second after the model has fallen silent the next turn begins: its 15 frames, the one into which Opus, which is
    # 6.5 ms late, smears the last of them, and 13 of silence.
    first, second = found.turns
    assert second.start - first.end == pytest.approx(0.08 * (3 + LEAD + 15 + 1 + 13))
    assert len(found.said) == len(found.heard) and [word.text for word in found.words] == ["word"] * 10
    place = slice(round(first.start * RATE), round(first.end * RATE))
    np.testing.assert_array_equal(found.said[place], TURN)
    loud = np.flatnonzero(np.abs(found.heard) > 0.01)[0] / RATE
    assert loud == pytest.approx(first.end + 0.24 + 0.08 * LEAD, abs=0.01)


@pytest.mark.parametrize("pace, patience", [pytest.param("slow", 100, marks=pytest.mark.slow), ("fast", 38)])
def test_a_model_that_says_nothing_is_waited_for_and_takes_no_turn(pace, patience):
    found = examined(lambda loud: None, pace, [Turn(TURN)])
    assert found.turns[0].start == pytest.approx(0.08 * (LEAD + 13))  # a second, and the line
    assert score_turns(found, [()]) == [{"answered": 0.0, "taken": 0.0, "interrupted": 0.0}]
    assert len(found.said) / RATE - found.turns[-1].end == pytest.approx(0.08 * patience)


def test_a_given_time_is_kept_whatever_happens():
    assert examined(lambda loud: "", "fast", [Turn(TURN, at=2.0)]).turns[0].start == pytest.approx(2.0)


def test_who_speaks_into_a_turn_interrupts_it():
    def rude(loud: list[bool]) -> str | None:
        return " me" if loud[-1] and since(loud, True) <= 8 else None

    (row,) = score_turns(examined(rude, "fast", [Turn(np.tile(TURN, 2))]), [()])
    assert row["interrupted"] == 1.0 and row["answered"] == 0.0
    # A backchannel is none.
    (row,) = score_turns(examined(lambda x: " hm" if since(x, True) == 3 else None, "fast", [Turn(TURN)]), [()])
    assert row["interrupted"] == 0.0 and row["taken"] == 0.0


def test_the_quick_examiner_breaks_in_and_the_patient_one_waits():
    """On a model that begins a second after what it hears, and ends 3.8 s later or when it has heard 0.4 s of more."""

    def talks(loud: list[bool]) -> str | None:
        return " so" if 1 <= since(loud, True) <= 5 or (any(loud) and 14 <= since(loud, False) <= 60) else None

    quick = examined(talks, "fast", [Turn(TURN), Turn(TURN)])
    first, second = quick.turns
    assert second.start - first.end == pytest.approx(0.08 * (LEAD + 13 + 25))
    rows = score_turns(quick, [(), ()])
    assert rows[1]["stop_latency"] == pytest.approx(0.08 * (5 + LEAD), abs=0.041)
    patient = examined(talks, "slow", [Turn(TURN), Turn(TURN)])
    assert patient.turns[1].start - patient.turns[0].end == pytest.approx(0.08 * (LEAD + 60 + 1 + 13))


def test_a_model_that_never_ends_is_not_waited_for_for_ever(monkeypatch):
    monkeypatch.setattr("ttt_moshi.evaluation.examiner.LONGEST_SEC", 4.0)
    endless = examined(lambda loud: " so", "slow", [Turn(TURN)])
    assert endless.turns[0].start == pytest.approx(0.08 * LEAD + 4.0)


def test_a_server_that_needs_more_frames_is_given_them(monkeypatch):
    monkeypatch.setattr("ttt_moshi.inference.client.FIRST_SECONDS", 0.2)
    found = examined(answers(after=3), "slow", [Turn(TURN)], delay=4)
    assert score_turns(found, [()])[0]["latency"] == pytest.approx(0.24 + 0.08 * 5)


def test_nobody_there_another_s_door_and_an_end_are_one_line_each():
    async def said_to(address: str) -> str:
        with pytest.raises(InferenceError) as caught:
            async with call(address) as line:
                await examine(line, [Turn(TURN)], PACES["fast"])
        return str(caught.value)

    async def whole() -> None:
        async def hangs_up(request: web.Request) -> web.WebSocketResponse:
            socket = web.WebSocketResponse()
            await socket.prepare(request)
            await socket.send_bytes(b"\x00")
            await socket.receive()
            await socket.close(code=1013, message=b"too busy")
            return socket

        app = web.Application()
        app.router.add_get("/api/chat", hangs_up)
        async with TestServer(app) as site:
            address = str(site.make_url("/"))
            assert "has ended the conversation" in await said_to(address)
        assert f"nobody to talk with at {address}" in await said_to(address)
        async with TestServer(web.Application()) as site:
            assert "turns visitors away: 404" in await said_to(str(site.make_url("/")))
        assert "is no address of a server" in await said_to("localhost:8998")

    asyncio.run(asyncio.wait_for(whole(), 60))


def write_task(root: Path, family: str, id: str, turns: list[dict], **facts) -> Path:
    folder = root / "examiner" / family / id
    folder.mkdir(parents=True)
    soundfile.write(folder / "0.wav", TURN, RATE)
    (folder / "task.json").write_text(json.dumps({"turns": turns, **facts}))
    return folder


def evaluate(material, root: Path, out: Path, *options: str) -> int:
    base = ["eval", "--checkpoint_dir", "base", "--hf_repo_id", str(material.base_model), "--dtype", "float32"]
    return main([*base, "--tasks", "examiner", "--data_root", str(root), "--out", str(out), *options])


def test_tasks_that_cannot_be_used_are_refused(tiny_material, tmp_path, capsys):
    for number, (turns, complaint) in enumerate(
        (
            ([], "has no turns"),
            ([{"audio": "1.wav"}], "turn 0: there is no"),
            ([{"text": "x"}], "task.json lacks 'audio'"),
            ([{"audio": "0.wav", "at": -1}], "turn 0: `at` is -1, and no time in seconds from 0 to 3600"),
            ([{"audio": "0.wav", "at": 5000.0}], "turn 0: `at` is 5000, and no time"),
            ([{"audio": "0.wav", "at": float("nan")}], "turn 0: `at` is nan"),
            ([{"audio": "0.wav", "at": t} for t in (1, None, 0.5)], "turn 2: `at` is 0.5, and a turn before it"),
            ([{"audio": "0.wav", "expects": ["The"]}], "task.json: `expects` holds 'The'"),
            ([{"audio": "0.wav", "expects": None}], "`expects` holds None, and is a list of texts"),
        )
    ):
        root = tmp_path / str(number)
        write_task(root, "daily", "a", turns)
        assert evaluate(tiny_material, root, tmp_path / "out") == 2
        assert complaint in " ".join(capsys.readouterr().err.split())
    assert evaluate(tiny_material, tmp_path, tmp_path / "out") == 2
    assert "no staged tasks: expected" in " ".join(capsys.readouterr().err.split())


def test_two_tasks_of_one_name_are_refused(tmp_path):
    for family, id in (("daily", "a-b"), ("daily-a", "b")):
        write_task(tmp_path, family, id, [{"audio": "0.wav"}])
    with pytest.raises(EvaluationError, match=r"daily/a-b and .*daily-a/b would both be called daily-a-b"):
        find_tasks(tmp_path)


def test_one_expected_answer_is_a_list_of_one(tmp_path):
    expected = ({"expects": "Paris"}, {"expects": ["Paris", "Rome"]}, {}, {"expects": []})
    write_task(tmp_path, "daily", "a", [{"audio": "0.wav", **own} for own in expected])
    (task,) = find_tasks(tmp_path)
    assert [stage.expects for stage in task.stages] == [("Paris",), ("Paris", "Rome"), (), ()]


def test_the_command_holds_what_the_server_says(tiny_material, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("ttt_moshi.evaluation.examiner.LONGEST_SEC", 1.0)  # the tiny model never falls silent
    write_task(tmp_path, "daily", "a", [{"audio": "0.wav", "text": "who are you"}])
    assert evaluate(tiny_material, tmp_path, tmp_path / "a") == 0
    task = json.loads((tmp_path / "a/results.json").read_text())["tasks"]["examiner"]
    assert set(task["examined"]) == {"slow", "fast", "daily, slow", "daily, fast"}
    # Two conversations of one task are one item.
    assert (task["n"], task["unit_of_n"], task["conversations"]) == (1, "tasks", 2)
    assert task["stages"][0]["answered"]["n"] == 1
    samples = [json.loads(line) for line in (tmp_path / "a/samples/examiner.jsonl").read_text().splitlines()]
    assert [(one["id"], one["item"]) for one in samples] == [("daily-a-slow", "daily-a"), ("daily-a-fast", "daily-a")]
    assert soundfile.read(tmp_path / "a/conversations/examiner/daily-a-slow/output.wav")[0].any()
    # Another type of the weights says something else, whatever the state id.
    (tmp_path / "a/results.json").unlink()
    assert evaluate(tiny_material, tmp_path, tmp_path / "a", "--dtype", "bfloat16") == 2
    assert "daily-a-slow holds another conversation (differs in dtype)" in " ".join(capsys.readouterr().out.split())
    said = (tmp_path / "a/conversations/examiner/daily-a-slow/output.wav").read_bytes()
    assert evaluate(tiny_material, tmp_path, tmp_path / "a", "--dtype", "bfloat16", "--overwrite") == 0
    assert (tmp_path / "a/conversations/examiner/daily-a-slow/output.wav").read_bytes() != said


def test_a_server_of_another_type_is_another_model(tiny_material, tmp_path, capsys):
    write_task(tmp_path, "daily", "a", [{"audio": "0.wav"}])
    weights = (tiny_material.base_model / "model.safetensors").read_bytes()
    facts = {"state_id": f"base:{blake3.blake3(weights).hexdigest()}"}

    async def hello(request: web.Request) -> web.Response:
        return web.json_response(facts)

    async def evaluated() -> str:
        app = web.Application()
        app.router.add_get("/api/hello", hello)
        async with TestServer(app) as site:
            address = str(site.make_url("/"))
            assert await asyncio.to_thread(evaluate, tiny_material, tmp_path, tmp_path / "a", "--server", address) == 2
        return " ".join(capsys.readouterr().out.split())

    assert "in a type that it does not tell, and the state base:" in asyncio.run(evaluated())
    facts["dtype"] = "bfloat16"
    assert "in bfloat16, and the state base:" in asyncio.run(evaluated())
    facts["dtype"] = "float32"
    assert "turns visitors away: 404" in asyncio.run(evaluated())  # the same model: it is called
