"""Pushing an export to a Hub: what is checked first, what is sent, and every failure as a sentence."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent))
from exported import CARD, export, sealed  # pyright: ignore
from hub_routes import EXPIRED, OWNER, READER, Blob  # pyright: ignore
from hub_stand_in import HubStandIn, connect  # pyright: ignore

from nlft.cli import main
from nlft.errors import NlftError
from nlft.manifest import Manifest, read_manifest
from nlft.parcel import pack
from nlft.remote import fetch_adapter, resolved_revision
from nlft.upload import Pushed, push
from nlft.verification import check_card

# The Hub's client uploads by an argument that its HTTP library has renamed.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


@pytest.fixture
def made(tmp_path: Path) -> Path:
    return export(tmp_path / "export")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[HubStandIn]:
    with HubStandIn() as stand_in:
        connect(monkeypatch, stand_in, tmp_path)
        yield stand_in


def refusal(act: Callable[[], object]) -> NlftError:
    """What is said; no token is in it nor in its traceback."""
    with pytest.raises(NlftError) as caught:
        act()
    shown = "".join(traceback.format_exception(caught.value)) + str(caught.value)
    assert not any(token in shown for token in (OWNER, READER, EXPIRED))
    return caught.value


def on_the_hub(hub: HubStandIn, name: str = "alice/mine", branch: str = "main") -> dict[str, bytes]:
    """Files at the head of a branch."""
    repository = hub.repositories[name]
    return {path: blob.data for path, blob in repository.commits[repository.refs[branch]].items()}


def in_folder(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_there_and_back(hub: HubStandIn, made: Path) -> None:
    done = push(pack(made), "alice/mine", message="first")
    assert done.created and done.changed and done.private
    assert hub.repositories["alice/mine"].private, "private where nobody says otherwise"
    assert hub.repositories["alice/mine"].messages == ["initial commit", "first"], "one commit"
    got = on_the_hub(hub)
    assert got.pop(".gitattributes") and got == in_folder(made)
    folder = fetch_adapter("alice/mine", done.commit)
    assert in_folder(folder) == in_folder(made) and resolved_revision(folder) == done.commit
    assert pack(made).files == {name: len(data) for name, data in in_folder(made).items()}


def test_again(hub: HubStandIn, made: Path) -> None:
    """Nothing to do makes no commit; a change is one that sends what changed and takes away what is gone."""
    first = push(pack(made), "alice/mine")
    sent = hub.uploaded()
    assert push(pack(made), "alice/mine") == Pushed(first.name, first.url, first.commit, True, False, False)
    assert hub.uploaded() == sent
    (made / "README.md").write_text(CARD + "edited\n")
    (made / "recipe.yaml").unlink()
    sealed(made)
    third = push(pack(made), "alice/mine")
    assert third.changed and not third.created and len(hub.repositories["alice/mine"].messages) == 3
    assert hub.uploaded() == sent, "large files that are there are not sent again"
    got = on_the_hub(hub)
    assert got["README.md"].endswith(b"edited\n") and "recipe.yaml" not in got and ".gitattributes" in got


def test_a_cut_push_goes_on(hub: HubStandIn, made: Path) -> None:
    """The cut comes in the middle of the tensors and stays; the witness got through and is not sent again."""
    parcel = pack(made)
    weights = Blob((made / "adapter_model.safetensors").read_bytes(), True)
    hub.fail(f"PUT /lfs/{weights.oid}", after=200_000, times=99)
    error = refusal(lambda: push(parcel, "alice/mine"))
    assert "connection to the Hub broke" in error.message and "goes on with what is missing" in error.hint
    assert hub.repositories["alice/mine"].messages == ["initial commit"], "nothing half done is to be seen"
    hub.faults.clear()
    hub.seen.clear()
    assert push(pack(made), "alice/mine").changed
    assert hub.uploaded() == len(weights.data) and hub.count("PUT /lfs") == 1
    assert on_the_hub(hub)["adapter_model.safetensors"] == weights.data


@pytest.mark.parametrize("fault", [{"status": 500}, {"status": 429, "headers": {"Retry-After": "2"}}, {"after": 9999}])
def test_a_short_trouble_is_waited_out(hub: HubStandIn, made: Path, fault: dict[str, int]) -> None:
    hub.fail("PUT /lfs", times=3, **fault)
    hub.fail("POST .*preupload", times=1, **fault)
    push(pack(made), "alice/mine")
    assert len(hub.waits) == 4
    assert on_the_hub(hub).keys() >= in_folder(made).keys()


@pytest.mark.parametrize(
    ("place", "fault", "said"),
    [
        ("POST /api/repos/create", {"status": 500}, "trouble of its own (500)"),
        ("POST .*/commit/", {"status": 502}, "trouble of its own (502)"),
        ("POST .*/commit/", {"after": 100}, "connection to the Hub broke"),
        ("POST .*/commit/", {"status": 412}, "changed by somebody else at the same time"),
        ("POST /api/validate-yaml", {"status": 500}, "cannot be read"),
        ("POST .*/batch", {"status": 503}, "trouble of its own (503)"),
        ("PUT /lfs", {"status": 403}, "may not do that with alice/mine"),
        ("POST /verify", {"status": 404}, "refused alice/mine (404)"),
    ],
)
def test_a_failure_leaves_nothing_half_done(
    hub: HubStandIn, made: Path, place: str, fault: dict[str, int], said: str
) -> None:
    hub.fail(place, times=99, **fault)
    assert said in refusal(lambda: push(pack(made), "alice/mine")).message
    if "alice/mine" in hub.repositories:
        assert hub.repositories["alice/mine"].messages == ["initial commit"]
    hub.faults.clear()
    assert push(pack(made), "alice/mine").changed, "the same command again"


def test_a_commit_whose_answer_was_lost_is_not_made_twice(hub: HubStandIn, made: Path) -> None:
    hub.fail("POST .*/commit/", deaf=True)
    assert "connection to the Hub broke" in refusal(lambda: push(pack(made), "alice/mine")).message
    assert not push(pack(made), "alice/mine").changed
    assert len(hub.repositories["alice/mine"].messages) == 2


def test_a_push_by_somebody_else_in_between(hub: HubStandIn, made: Path) -> None:
    push(pack(made), "alice/mine")
    (made / "README.md").write_text(CARD + "edited\n")
    hub.before["POST .*/commit/"] = lambda: hub.add("alice/mine", {"README.md": b"theirs"})
    assert "at the same time" in refusal(lambda: push(pack(made), "alice/mine")).message
    assert on_the_hub(hub) == {"README.md": b"theirs"}


def test_branches(hub: HubStandIn, made: Path) -> None:
    push(pack(made), "alice/mine")
    (made / "README.md").write_text(CARD + "on a branch\n")
    done = push(pack(made), "alice/mine", branch="v2")
    assert on_the_hub(hub, branch="v2")["README.md"].endswith(b"on a branch\n")
    assert on_the_hub(hub)["README.md"] == CARD.encode()
    assert resolved_revision(fetch_adapter("alice/mine@v2")) == done.commit


def test_what_is_there_decides(hub: HubStandIn, made: Path, tmp_path: Path) -> None:
    hub.add("alice/model", {"config.json": b"{}", "model.safetensors": b"weights of a base"})
    error = refusal(lambda: push(pack(made), "alice/model", public=True))
    assert "holds something else" in error.message and "--overwrite" in error.hint
    push(pack(export(tmp_path / "other", base="user/another")), "alice/other")
    assert "for this base" in refusal(lambda: push(pack(made), "alice/other")).message
    hub.seen.clear()
    with pytest.raises(NlftError, match="is there already and is public") as caught:
        push(pack(made), "alice/model", overwrite=True)
    assert "--public" in caught.value.hint and hub.count("POST|PUT") == 0, "nothing was sent"
    done = push(pack(made), "alice/model", public=True, overwrite=True)
    assert not done.private and not done.created, "what was public stays so"
    assert on_the_hub(hub, "alice/model").keys() >= {"model.safetensors", "adapter_model.safetensors"}
    hub.add("alice/blank", {"README.md": b"soon", ".gitattributes": b""}, private=True)
    assert push(pack(made), "alice/blank", public=False).changed


def test_who_may_not_write(hub: HubStandIn, made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parcel = pack(made)
    assert "may not do that with bob/mine" in refusal(lambda: push(parcel, "bob/mine")).message
    hub.add("alice/mine", {}, private=False)
    for token, said in ((READER, "may not do that"), (EXPIRED, "wrong or has expired"), ("", "No token of the Hub")):
        monkeypatch.setenv("HF_TOKEN", token)
        error = refusal(lambda: push(parcel, "alice/mine", public=True))
        assert said in error.message and "hf auth login" in error.hint
    assert hub.repositories["alice/mine"].messages == ["added"]


def test_a_repository_that_goes_while_it_is_written(hub: HubStandIn, made: Path) -> None:
    hub.before["POST .*/preupload/"] = lambda: hub.repositories.clear()
    assert "There is no alice/mine on the Hub" in refusal(lambda: push(pack(made), "alice/mine")).message


def test_the_command(hub: HubStandIn, made: Path, capfd: pytest.CaptureFixture[str]) -> None:
    def run(*words: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as stop:
            main(["push", str(made), *words])
        out, err = capfd.readouterr()
        assert OWNER not in out + err
        code = stop.value.code
        return int(code) if code else 0, out, err

    code, out, _ = run("alice/mine", "--public", "--dry-run")
    assert code == 0 and "Nothing was sent" in out and hub.seen == []
    size = (made / "adapter_model.safetensors").stat().st_size
    assert f"{size:,}  adapter_model.safetensors" in out and f"{hub.endpoint}/alice/mine" in out
    code, out, _ = run("alice/mine", "--public")
    commit = hub.repositories["alice/mine"].refs["main"]
    assert code == 0 and f"commit {commit}" in out and "(public)" in out
    assert f'model = PeftModel.from_pretrained(base, "alice/mine", revision="{commit}")\n' in out
    assert "import nlft\n" in out and 'base = AutoModelForCausalLM.from_pretrained("user/base")\n' in out
    code, out, _ = run("alice/mine", "--public")
    assert code == 0 and "stays so" not in out and "Everything was there already" in out
    code, _, err = run("alice/mine")
    assert code == 2 and "is there already and is public" in err
    hub.fail("HEAD|GET|POST", 500, times=99)
    code, _, err = run("alice/mine", "--debug")
    assert code == 2 and "nlft: The Hub has trouble of its own (500)." in err and "Traceback" in err
    code, _, err = run("alice/mine@main")
    assert code == 2 and "--revision main" in err


def test_the_card_names_its_repository(hub: HubStandIn, made: Path) -> None:
    """What is sent is whole with its new card; the folder keeps its own, and nothing is sent twice."""
    (made / "README.md").write_text(CARD + "load USER/NAME, verify USER/NAME\n")
    sealed(made)
    before = in_folder(made)
    first = push(pack(made), "alice/mine")
    sent = on_the_hub(hub)
    assert sent["README.md"].endswith(b"load alice/mine, verify alice/mine\n")
    assert in_folder(made) == before
    assert not push(pack(made), "alice/mine").changed
    folder = fetch_adapter("alice/mine", first.commit)
    assert [check.found for check in check_card(folder, manifest_of(folder))] == ["as exported"]
    (made / "README.md").write_text("mine USER/NAME\n")  # edited since: the hash stays that of the exported one
    folder = fetch_adapter("alice/mine", push(pack(made), "alice/mine").commit)
    [check] = check_card(folder, manifest_of(folder))
    assert check.ok is None and "its numbers were not checked" in check.found


def manifest_of(folder: Path) -> Manifest:
    manifest = read_manifest(folder)
    assert manifest is not None
    return manifest
