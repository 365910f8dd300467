"""What must not leave this machine, and what is no export."""

from __future__ import annotations

import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

sys.path.append(str(Path(__file__).parent))
from exported import VALUES, export, sealed  # pyright: ignore

from nlft.errors import NlftError
from nlft.parcel import is_local, pack

PREFIX = "base_model.model.model"


def refusal(folder: Path) -> str:
    with pytest.raises(NlftError) as caught:
        pack(folder)
    return str(caught.value)


def test_what_is_no_export(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for name, said in (("empty", "it has no nlft.json"), ("nowhere", "there is no such folder")):
        assert said in refusal(tmp_path / name) and "nlft export" in refusal(tmp_path / name)


def test_all_is_said_at_once(tmp_path: Path) -> None:
    made = export(tmp_path / "made")
    (made / "recipe.yaml").write_text("name: another\n")
    (made / "adapter_model.bin").write_bytes(b"pickle")
    (made / "notes.md").write_text("text")
    said = refusal(made).splitlines()
    assert len(said) == 3
    assert "recipe.yaml is not the file that was exported" in said[0] and "notes.md is not in nlft.json" in said[0]
    assert said[1].startswith("adapter_model.bin may be a pickle")
    assert said[2].startswith("notes.md is no file of an export")


def test_the_card_may_be_edited(tmp_path: Path) -> None:
    made = export(tmp_path / "made")
    (made / "README.md").write_text("# by hand\nNothing that asks for a desk-sized-thing-or-a-task-sk-short.\n")
    assert pack(made).files["README.md"] == (made / "README.md").stat().st_size


def test_a_licence_goes_along(tmp_path: Path) -> None:
    made = export(tmp_path / "made")
    (made / "LICENSE").write_text("Apache-2.0")
    assert pack(made).files["LICENSE"] == 10


def test_files_that_a_manifest_lists_are_refused_all_the_same(tmp_path: Path) -> None:
    made = export(tmp_path / "made")
    for name in ("optimizer.pt", "model.safetensors", "results/run.py"):
        (made / name).parent.mkdir(exist_ok=True)
        (made / name).write_bytes(b"x")
    said = refusal(sealed(made))
    assert "optimizer.pt may be a pickle" in said
    assert "model.safetensors is no file of an export" in said and "results/run.py is no file of an export" in said


def test_links(tmp_path: Path) -> None:
    made = export(tmp_path / "made")
    (made / "recipe.yaml").rename(made / "kept")
    (made / "recipe.yaml").symlink_to("kept")
    assert "recipe.yaml is a link" in refusal(made)
    other = export(tmp_path / "other")
    (tmp_path / "away").mkdir()
    (tmp_path / "away" / "summary.json").write_text("{}")
    (other / "results").symlink_to(tmp_path / "away", target_is_directory=True)
    assert "results is a link" in refusal(other)


SECRETS = {
    "Hugging Face": "hf_" + "aB3" * 11,
    "AWS": "AKIA" + "ABCD1234" * 2,
    "of AWS": "aws_secret_access_key = " + "abcdefgh/+" * 4,
    "GitHub": "ghp_" + "a1B2" * 9,
    "token of GitHub": "github_pat_" + "a1B2_" * 6,
    "OpenAI": "sk-proj-" + "a1B2" * 8,
    "Google": "AIza" + "a1B2c" * 7,
    "Slack": "xoxb-" + "12345-" * 4,
    "private key": "-----BEGIN OPENSSH PRIVATE KEY-----",
    "Authorization": "'Authorization': 'Bearer abcdefgh12345678'",
    "password": "https://alice:correct-horse@example.org/x",
}


@pytest.mark.parametrize("kind", SECRETS)
def test_secrets_are_named_by_place_and_never_quoted(tmp_path: Path, kind: str) -> None:
    made = export(tmp_path / "made")
    (made / "README.md").write_text(f"# card\n\nUse {SECRETS[kind]} here.\n")
    said = refusal(made)
    assert said.startswith("README.md, line 3: there seems to be") and kind in said
    assert SECRETS[kind] not in said
    (made / "README.md").write_text("# card\n")
    pack(made)


def test_secrets_in_results_and_in_notes_of_tensors(tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    made = export(tmp_path / "made")
    (made / "results").mkdir()
    table = pa.table({"prediction": ["fine", SECRETS["GitHub"]], "value": [0.0, 1.0]})
    pq.write_table(table, made / "results" / "items.parquet")
    path = made / "adapter_model.safetensors"
    save_file(load_file(path), path, metadata={"author": SECRETS["OpenAI"]})
    said = refusal(sealed(made)).splitlines()
    assert [line.split(":")[0] for line in said] == [
        "adapter_model.safetensors, note 'author'",
        "results/items.parquet, column prediction",
    ]


@pytest.mark.parametrize(
    "column",
    [
        pa.array([["fine", SECRETS["GitHub"]], None]),
        pa.array([{"a": [SECRETS["GitHub"]]}]),
        pa.array([[("key", SECRETS["GitHub"])]], pa.map_(pa.string(), pa.string())),
        pa.array([SECRETS["GitHub"]], pa.large_string()),
        pa.array([SECRETS["GitHub"].encode()]),
        pa.array([SECRETS["GitHub"]]).dictionary_encode(),
    ],
)
def test_secrets_in_columns_of_every_kind(tmp_path: Path, column: pa.Array) -> None:
    made = export(tmp_path / "made")
    (made / "results").mkdir()
    pq.write_table(pa.table({"order": column}), made / "results" / "runs.parquet")
    assert "results/runs.parquet, column order: there seems to be a token of GitHub" in refusal(sealed(made))
    pq.write_table(pa.table({"a": [1]}).replace_schema_metadata({"x": SECRETS["AWS"]}), made / "results/runs.parquet")
    assert "results/runs.parquet, note 'x'" in refusal(sealed(made))


def test_the_token_of_this_machine_whatever_it_looks_like(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "an-odd-token")
    made = export(tmp_path / "made")
    (made / "recipe.yaml").write_text("name: an-odd-token\n")
    said = refusal(sealed(made))
    assert said.startswith("recipe.yaml, line 1: there is the Hub's token") and "an-odd-token" not in said


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        (f"{PREFIX}.embed_tokens.weight", "NLFT_SPARSE_MEMORY"),
        ("base_model.model.lm_head.modules_to_save.weight", "NLFT_HOPE"),
        (f"{PREFIX}.layers.0.mlp.base_layer.gate_proj.weight", "NLFT_CMS"),
        (f"{PREFIX}.embed_tokens.token_adapter.trainable_tokens_delta", "LORA"),
        (VALUES, "LORA"),
    ],
)
def test_weights_of_the_base(tmp_path: Path, name: str, kind: str) -> None:
    own = f"{PREFIX}.layers.0.self_attn.q_proj.lora_A.weight" if kind == "LORA" else VALUES
    assert pack(export(tmp_path / "own", own=own, kind=kind)).folder
    made = export(tmp_path / "made", own=own, extra=(name,), kind=kind)
    said = refusal(made)
    assert f"tensors of the base (1, as {name})" in said and "--base-weights" in said
    assert pack(made, base_weights=True).folder == made


def test_damaged_tensors(tmp_path: Path) -> None:
    made = export(tmp_path / "made")
    (made / "adapter_model.safetensors").write_bytes(b"no tensors")
    assert "adapter_model.safetensors cannot be read" in refusal(sealed(made))


def test_a_base_that_only_this_machine_has(tmp_path: Path) -> None:
    assert [is_local(name) for name in ("builtin:tiny", "user/base", "gpt2")] == [False] * 3
    assert [is_local(name) for name in ("/data/base", "./base", "~/base", str(tmp_path))] == [True] * 4
