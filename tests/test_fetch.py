"""Downloads are written only if they match the published files; files are local here."""

import hashlib
import io
from http.client import IncompleteRead

import pytest
import torch
from safetensors.torch import load_file, save

from bids_app import fetch
from bids_app.errors import UnusableDataError
from bids_app.fetch import download, main
from bids_app.synthesis import scoring
from bids_app.synthesis.scoring import Lpips, load_lpips


@pytest.fixture(scope="module")
def tensors():
    torch.manual_seed(4)
    return {name: torch.rand_like(value) for name, value in Lpips("").state_dict().items()}


@pytest.fixture
def net(tmp_path, tensors, monkeypatch):
    """Both files, as published; that of AlexNet also contains its other layers."""
    features = {k: v for k, v in tensors.items() if k.startswith("features.")}
    parts = {
        "ALEXNET": {**features, "classifier.1.weight": torch.rand(3, 4)},
        "HEADS": {k: v for k, v in tensors.items() if k.startswith("lin")},
    }
    for name, content in parts.items():
        path = tmp_path / f"{name}.pth"
        torch.save(content, path)
        known = hashlib.sha256(path.read_bytes()).hexdigest()
        monkeypatch.setattr(fetch, name, (path.as_uri(), known[:8]))
    ordered = {**features, **parts["HEADS"]}
    known = hashlib.sha256(save(ordered)).hexdigest()
    monkeypatch.setattr(scoring, "FETCHED_SHA256", known)
    monkeypatch.setattr(fetch, "PAUSE", 0)
    return tmp_path


def test_weights_are_put_together_from_both_files(net, tensors):
    out = net / "deep" / "lpips.safetensors"
    assert main(["--lpips", str(out)]) == 0
    found = load_file(out)
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[name], tensors[name]) for name in tensors)
    assert load_lpips(out).is_published


def test_other_tensors_are_refused_and_what_was_there_stays(net, monkeypatch, capsys):
    out = net / "lpips.safetensors"
    out.write_bytes(b"before")
    monkeypatch.setattr(scoring, "FETCHED_SHA256", "0" * 64)
    assert main(["--lpips", str(out)]) == 65
    assert "nothing was written" in capsys.readouterr().err
    assert out.read_bytes() == b"before"
    assert not list(net.glob(".*"))


def test_another_file_than_expected_is_refused(net):
    with pytest.raises(UnusableDataError, match=r"HEADS\.pth: is not the expected file"):
        download((net / "HEADS.pth").as_uri(), "0123", net / "copy")


def test_without_a_network_a_sentence_says_what_to_do(net, monkeypatch, capsys):
    monkeypatch.setattr(fetch, "HEADS", ((net / "nowhere").as_uri(), ""))
    assert main(["--lpips", str(net / "out.safetensors")]) == 66
    said = capsys.readouterr().err
    assert said.startswith("error: file:")
    assert "nowhere: cannot be downloaded" in said
    assert "on a machine with a network" in said
    assert said.count("\n") == 1
    assert not (net / "out.safetensors").exists()


@pytest.mark.parametrize("fault", [TimeoutError("timed out"), IncompleteRead(b"half")], ids=repr)
def test_a_network_that_hiccups_is_asked_again(tmp_path, monkeypatch, fault):
    content, asked = b"weights", []

    def open_url(url, timeout):
        asked.append(url)
        if len(asked) < fetch.TRIES:
            raise fault
        return io.BytesIO(content)

    monkeypatch.setattr(fetch, "urlopen", open_url)
    monkeypatch.setattr(fetch, "PAUSE", 0)
    download("https://example.org/x", hashlib.sha256(content).hexdigest(), tmp_path / "x")
    assert (tmp_path / "x").read_bytes() == content
    assert len(asked) == fetch.TRIES


def test_nothing_to_fetch_is_a_wrong_command_line(capsys):
    assert main([]) == 64
    assert "nothing to fetch" in capsys.readouterr().err


def test_templates_are_asked_of_templateflow(monkeypatch, capsys):
    asked = []
    monkeypatch.setattr("bids_app.templates.of_templateflow", asked.append)
    assert main(["--template", "A", "B", "--template", "C"]) == 0
    assert asked == ["A", "B", "C"]


def test_atlases_are_asked_of_templateflow(monkeypatch, capsys):
    found = {("A", "MNI152NLin2009aSym"): ("a.nii.gz", "a.tsv"), ("B", "X"): ("b.nii.gz", "b.tsv")}
    monkeypatch.setattr("bids_app.templates.atlas_of_templateflow", lambda *of: found[of])
    assert main(["--atlas", "A"]) == 0
    assert main(["--atlas", "B", "--space", "X"]) == 0
    assert capsys.readouterr().out == "A: a.nii.gz a.tsv\nB: b.nii.gz b.tsv\n"


@pytest.mark.parametrize(("url", "sha256"), [fetch.ALEXNET, fetch.HEADS])
def test_sources_are_known_by_their_checksum_and_encrypted(url, sha256):
    assert url.startswith("https://")
    assert len(sha256) >= 8
    int(sha256, 16)
