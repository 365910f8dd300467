"""Fetching adapters from a Hub: what is taken, what is refused, and every failure as a sentence."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.append(str(Path(__file__).parent))
from hub_routes import EXPIRED, OWNER, READER  # pyright: ignore
from hub_stand_in import HubStandIn, connect  # pyright: ignore

from nlft import remote
from nlft.errors import NlftError
from nlft.remote import fetch_adapter, hub_errors, hub_sentence, is_adapter_id, resolved_revision

ADAPTER = {"adapter_config.json": b"{}", "adapter_model.safetensors": b"weights" * 40_000, "README.md": b"# card"}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[HubStandIn]:
    with HubStandIn() as stand_in:
        connect(monkeypatch, stand_in, tmp_path)
        yield stand_in


def refusal(name: str, revision: str | None = None) -> NlftError:
    """What is said about an adapter that cannot be had; no token is in it nor in its traceback."""
    with pytest.raises(NlftError) as caught:
        fetch_adapter(name, revision)
    shown = "".join(traceback.format_exception(caught.value)) + str(caught.value)
    assert not any(token in shown for token in (OWNER, READER, EXPIRED))
    assert caught.value.hint
    return caught.value


def test_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "mine").mkdir(parents=True)
    assert is_adapter_id("user/name") and is_adapter_id("user/name@v1.0") and is_adapter_id("user/a.b-c@refs/pr/1")
    here = (
        "runs/mine",
        "runs/missing",
        "./user/name",
        "~/name",
        "/a/b",
        "a/b/c",
        "name",
        "a/b@",
        "",
        "../name",
        "u/..",
    )
    assert [name for name in here if is_adapter_id(name)] == []
    assert is_adapter_id("runs/missing@main"), "a revision says that the Hub is meant"
    assert fetch_adapter("runs/mine") == tmp_path / "runs" / "mine"
    assert fetch_adapter("runs/missing") == tmp_path / "runs" / "missing", "who reads it says that it is not there"
    assert resolved_revision(tmp_path / "runs" / "mine") is None


def test_only_what_an_export_holds_is_fetched(hub: HubStandIn) -> None:
    more = {"nlft.json": b"{}", "recipe.yaml": b"", "results/items.parquet": b"p", ".eval_results/gsm8k.yaml": b""}
    odd = {"evil.py": b"", "adapter_model.bin": b"", "checkpoint-3/adapter_model.safetensors": b"", "model.json": b""}
    commit = hub.add("alice/one", ADAPTER | more | odd, private=True)
    folder = fetch_adapter("alice/one")
    got = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert got == ADAPTER | more
    assert resolved_revision(folder) == commit
    elsewhere = [seen for seen in hub.seen if seen.host.startswith("localhost")]
    assert len(elsewhere) == 2 and all(seen.token is None for seen in elsewhere), "the token stays with the Hub"
    assert any(seen.token == OWNER for seen in hub.seen)

    hub.seen.clear()
    assert fetch_adapter("alice/one") == folder
    assert hub.count("resolve|cdn") == 0, "what is in the cache is not fetched again"


def test_revisions(hub: HubStandIn) -> None:
    first = hub.add("alice/one", ADAPTER)
    hub.repositories["alice/one"].refs["v1"] = first
    second = hub.add("alice/one", ADAPTER | {"README.md": b"# second"})
    other = hub.add("alice/one", ADAPTER | {"README.md": b"# branch"}, branch="side")
    wanted = {None: second, "main": second, "v1": first, first: first, "side": other}
    assert {name: resolved_revision(fetch_adapter("alice/one", name)) for name in wanted} == wanted
    assert resolved_revision(fetch_adapter("alice/one@v1")) == first
    assert (fetch_adapter(f"alice/one@{other}") / "README.md").read_bytes() == b"# branch"
    assert "no revision 'v2'" in refusal("alice/one@v2").message
    assert "two revisions" in refusal("alice/one@v1", "main").message


def test_a_cut_download_goes_on(hub: HubStandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 50_000)  # less than that is lost by a cut
    hub.add("alice/one", ADAPTER)
    hub.fail("GET /cdn", after=120_000, times=2)
    got = (fetch_adapter("alice/one") / "adapter_model.safetensors").read_bytes()
    assert got == ADAPTER["adapter_model.safetensors"]
    assert hub.count("GET /cdn") == 3
    assert hub.sent["GET /cdn"] == 120_000 + 120_000 + 80_000, "only what is missing is asked for: 100,000 came, twice"


def test_a_connection_that_stays_cut(hub: HubStandIn) -> None:
    hub.add("alice/one", ADAPTER)
    hub.fail("GET /cdn", times=99)
    error = refusal("alice/one")
    assert "connection to the Hub broke" in error.message and "same command again" in error.hint
    hub.faults.clear()
    hub.seen.clear()
    fetch_adapter("alice/one")
    assert hub.count("GET /cdn") == 1 and hub.count("GET .*README.md") == 0, "only what is missing"


@pytest.mark.parametrize(
    ("place", "status", "said"),
    [
        ("GET /api/models", 500, "trouble of its own (500)"),
        ("GET /cdn", 503, "trouble of its own (503)"),
        ("HEAD .*adapter_config", 502, "trouble of its own (502)"),
        ("GET /api/models", 429, "slow down (429)"),
        ("GET /api/models/alice/one/tree", 403, "may not do that with alice/one"),
        ("GET /api/models", 418, "refused alice/one (418)"),
    ],
)
def test_an_answer_that_is_none(hub: HubStandIn, place: str, status: int, said: str) -> None:
    hub.add("alice/one", ADAPTER)
    hub.fail(place, status, times=99)
    assert said in refusal("alice/one").message
    hub.faults.clear()
    assert fetch_adapter("alice/one").is_dir(), "the same command again"


def test_the_client_waits_when_it_is_told_to(hub: HubStandIn) -> None:
    hub.add("alice/one", ADAPTER)
    hub.fail("GET /cdn", 429, headers={"Retry-After": "7"})
    fetch_adapter("alice/one")
    assert hub.waits == [8.0], "and a second more"


def test_who_may_not_read(hub: HubStandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.add("alice/hidden", ADAPTER, private=True)
    hub.add("bob/hidden", ADAPTER, private=True)
    assert "token of this machine does not open it" in refusal("alice/nothing").message
    assert "token of this machine does not open it" in refusal("bob/hidden").message
    monkeypatch.setenv("HF_TOKEN", EXPIRED)
    error = refusal("alice/hidden")
    assert "wrong or has expired" in error.message and "hf auth login" in error.hint
    monkeypatch.delenv("HF_TOKEN")
    error = refusal("alice/hidden")
    assert "private and no token was sent" in error.message and "hf auth login" in error.hint
    hub.fail("GET /api/models", 403, headers={"X-Error-Code": "GatedRepo"})
    assert "gated" in refusal("alice/hidden").message


def test_a_token_that_cannot_be_sent_is_not_quoted(hub: HubStandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    """The HTTP library would quote the whole header in its error."""
    for character in ("\x01", "ß", " "):
        monkeypatch.setenv("HF_TOKEN", f"{OWNER[:20]}{character}{OWNER[20:]}")
        error = refusal("alice/one")
        assert "characters that no token has" in error.message and OWNER[:20] not in str(error)
    assert hub.seen == []


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"config.json": b"{}", "model.safetensors": b""}, "a whole model, which `base.model`"),
        ({"train.jsonl": b"", "README.md": b""}, "It holds README.md, train.jsonl."),
        ({}, "It is empty."),
        ({"v1/adapter_config.json": b"{}"}, "adapters in the folders v1;"),
        ({"adapter_config.json": b"{}", "adapter_model.bin": b"pickle"}, "a pickle, which runs code when it is read"),
        ({"adapter_config.json": b"{}"}, "has no adapter_model.safetensors"),
        (ADAPTER | {"README.md": b"#" * 1001}, "README.md of alice/one has 1,001 bytes"),
    ],
)
def test_what_is_no_adapter(
    hub: HubStandIn, monkeypatch: pytest.MonkeyPatch, files: dict[str, bytes], said: str
) -> None:
    monkeypatch.setattr(remote, "MAX_FILE", 1000)
    hub.add("alice/one", files)
    assert said in refusal("alice/one").message
    assert hub.count("resolve|cdn|tree") == 0, "nothing was downloaded"


def test_away_from_the_hub_the_cache_is_used(hub: HubStandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    commit = hub.add("alice/one", ADAPTER)
    folder = fetch_adapter("alice/one")
    for offline in (True, False):  # asked for, or out of reach
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", offline)
        if not offline:
            hub.__exit__()
        hub.seen.clear()
        assert fetch_adapter("alice/one") == fetch_adapter("alice/one", commit) == folder
        assert "is not in the Hub's cache on this machine" in refusal("alice/two").message
        assert hub.seen == []


def test_a_change_in_between_does_not_come(hub: HubStandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    """The files whose sizes were looked at are those that come, and what the branch stood for is known offline."""
    first = hub.add("alice/one", ADAPTER)
    check = remote.check_adapter

    def change(files: dict[str, int], name: str) -> None:
        if len(hub.repositories["alice/one"].commits) == 1:
            hub.add("alice/one", ADAPTER | {"README.md": b"# other"})
        check(files, name)

    monkeypatch.setattr(remote, "check_adapter", change)
    folder = fetch_adapter("alice/one")
    assert resolved_revision(folder) == first and (folder / "README.md").read_bytes() == ADAPTER["README.md"]
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert fetch_adapter("alice/one") == folder


def test_the_token_of_this_machine_is_blotted_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "an-odd-token")
    assert remote.without_token("sent an-odd-token and hf_abc") == "sent … and hf_…"


def test_a_hub_that_never_answered_was_not_cut_off() -> None:
    http: Any = sys.modules[hub_errors()[0].__module__.partition(".")[0]]  # httpx, or its heir
    said = hub_sentence(http.ConnectError("[Errno 111] Connection refused"), "alice/mine")
    assert said.message.startswith("The Hub cannot be reached (") and "Connect" in said.hint
    assert "broke" in hub_sentence(http.ReadError("cut"), "alice/mine").message
