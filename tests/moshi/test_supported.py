"""What a model is, is said before any of its weights is read."""

from __future__ import annotations

import json

import pytest
from moshi.models.loaders import _lm_kwargs

from ttt_moshi.config import ModelPaths
from ttt_moshi.moshi import MoshiError, check_supported, load_trained, resolve_model

MOSHI = {**_lm_kwargs, "model_type": "moshi", "lm_gen_config": {"temp": 0.8}, "mimi_name": "mimi.safetensors"}

REFUSED = [
    ({"tts_config": {"audio_delay": 1.28}}, "text-to-speech"),
    ({"model_type": "tts", "dep_q": 16}, "text-to-speech"),
    ({"model_type": "moshi-vis"}, "MoshiVis"),
    ({"xa_dim": 1152}, "MoshiVis"),
    ({"dep_q": 17}, "17 of its 16"),
    ({"dep_q": "8"}, "count codebooks"),
    ({"conditioners": {"description": {}}, "fuser": {"sum": ["description"]}}, r"conditions \(description\)"),
    ({"quantize": True}, "quantised"),
    ({"speaker_card": 4}, "`speaker_card` is unknown"),
    ({"depformer_speaker": 4}, "`depformer_speaker` is unknown"),
    *(({key: None}, f"`{key}` is missing") for key in ("dim", "n_q", "dep_q", "delays", "text_card")),
]


def changed(change: dict) -> dict:
    """The configuration of Moshi with a change; None takes a key away."""
    config = {**MOSHI, **change}
    return {key: value for key, value in config.items() if key not in change or value is not None}


@pytest.mark.parametrize("purpose", ["train", "evaluate", "talk"])
@pytest.mark.parametrize(("change", "reason"), REFUSED, ids=str)
def test_the_reason_is_said_in_one_line(change, reason, purpose):
    with pytest.raises(MoshiError, match=reason) as error:
        check_supported(changed(change), purpose)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("purpose", ["train", "evaluate", "talk"])
@pytest.mark.parametrize(
    "change",
    [
        {},
        {"dep_q": 16},
        {"model_type": "stt", "dep_q": 0, "conditioners": {}, "stt_config": {"audio_delay_seconds": 0.5}},
        {"model_type": "personaplex"},
        {"model_type": "hibiki", "conditioners": {"description": {}}, "fuser": {"sum": ["description"]}},
        {"depformer_causal": True, "lora": False, "demux_second_stream": False},
        {"kv_repeat": 2, "extra_heads_dim": 6},
    ],
    ids=str,
)
def test_moshi_is_supported(change, purpose):
    check_supported(changed(change), purpose)
    check_supported(None, purpose)


def test_nothing_else_of_the_repository_is_needed_to_refuse_it(base_folder, tmp_path):
    """No weight is read, or fetched: the folder has none."""
    config = json.loads((base_folder / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "dep_q": config["n_q"] + 1}))
    with pytest.raises(MoshiError, match=r"config\.json: the model predicts 7 of its 6"):
        resolve_model(ModelPaths(hf_repo_id=str(tmp_path)))
    (tmp_path / "consolidated.safetensors").touch()
    with pytest.raises(MoshiError, match=r"config\.json: the model predicts 7 of its 6"):
        load_trained(tmp_path)
