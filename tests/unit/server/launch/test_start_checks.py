"""Checks of the command line before the engine starts; those of ports in use are in test_main."""

from __future__ import annotations

import dataclasses
import shutil
import socket
import subprocess
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest

from prefmix.server.auth.tokens import Token, Tokens
from prefmix.server.config.errors import CommandError
from prefmix.server.config.prompt_settings import PromptSettings
from prefmix.server.config.serve_config import ServeConfig
from prefmix.server.launch.start_checks import (
    check_added_policies,
    check_admin_port,
    check_before_vllm,
    check_prompts,
    check_socket,
    check_tls,
    free_socket,
)
from prefmix.server.slots.policies_folder import PoliciesFolder
from prefmix.weights.store.added import AddedPolicy
from prefmix.weights.store.edits import with_policy
from prefmix.weights.store.profiles import build_profile_set
from support.checkpoints.tiny_policies import save_policy
from support.server_process import PREFMIX, free_port

POLICY = Path(__file__).resolve().parents[4] / "policies" / "demo" / "checkpoints" / "polite"


def test_an_admin_port_needs_a_token_and_to_be_another_port() -> None:
    policies: Any = {"a": {"model": "org/a"}}
    tokens = Tokens([Token.of("admin", "secret")])
    check_admin_port(ServeConfig(policies=policies), Tokens([]))
    check_admin_port(ServeConfig(policies=policies, admin_port=9001), tokens)
    with pytest.raises(CommandError, match="no admin token; set PREFMIX_ADMIN_TOKEN"):
        check_admin_port(ServeConfig(policies=policies, admin_port=9001), Tokens([]))
    with pytest.raises(CommandError, match="are both 8000"):
        check_admin_port(ServeConfig(policies=policies, admin_port=8000), tokens)


def check(environ: dict[str, str], *passthrough: str, **fields: Any) -> None:
    config = ServeConfig.model_validate({"policies": {"a": str(POLICY)}, **fields})
    check_before_vllm(config, config.spec(), passthrough, environ)


@pytest.mark.parametrize("variable", ["PREFMIX_API_KEY_FILE", "PREFMIX_ADMIN_TOKEN_FILE"])
def test_a_missing_file_of_secrets_is_found_before_vllm(variable: str, tmp_path: Path) -> None:
    missing = str(tmp_path / "missing")
    with pytest.raises(CommandError, match=f"cannot read {variable} {missing}: No such file"):
        check({variable: missing})


def test_added_policies_whose_files_have_gone_are_found_before_vllm(tmp_path: Path) -> None:
    adapter = tmp_path / "policies" / "careful"
    adapter.mkdir(parents=True)
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (adapter / name).write_text("{}")
    config = ServeConfig.model_validate(
        {
            "base": str(POLICY),
            "policies": {"a": {"adapter": str(POLICY)}},
            "adapter_slots": 1,
            "policies_dir": str(tmp_path / "policies"),
            "weights_store": "w.json",
        }
    )
    found = PoliciesFolder(tmp_path / "policies").adapter("careful")
    plain = build_profile_set({"even": {"a": 1}}, config.spec())
    prompt = AddedPolicy.of(system="Be brief.")
    profiles = with_policy(plain, "brief", prompt, spec=config.spec())
    check_added_policies(config, profiles)
    profiles = with_policy(profiles, "new", found, spec=config.spec())
    check_added_policies(config, profiles)
    (adapter / "adapter_config.json").write_text("{ }")
    with pytest.raises(CommandError, match=r"'new', and .* has other files than when it was added"):
        check_added_policies(config, profiles)
    shutil.rmtree(adapter)
    with pytest.raises(CommandError, match="no such folder; or return to a version") as gone:
        check_added_policies(config, profiles)
    assert "prefmix weights rollback --weights-store w.json" in str(gone.value)
    check_added_policies(config, plain)
    manifest = config.model_copy(update={"policies_manifest": "policies.yaml"})
    check_added_policies(manifest, profiles)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "", "10.1.2.3", "example.org"])
def test_an_address_that_others_reach_needs_a_key(host: str) -> None:
    with pytest.raises(CommandError, match=r"there is no API key; .*--allow-no-api-key") as no:
        check({}, host=host)
    assert no.value.exit_code == 2
    check({}, host=host, allow_no_api_key=True)
    check({"PREFMIX_API_KEY": "k"}, host=host)
    check({"VLLM_API_KEY": "k"}, host=host)


def test_flags_of_vllm_that_may_give_a_key_or_a_socket_are_left_for_later() -> None:
    for words in (["--api-key", "k"], ["--api_key=k"], ["--uds", "/run/x.sock"]):
        check({}, *words, host="0.0.0.0")
    check({}, host="0.0.0.0", engine={"api_key": "k"})
    for host in ("127.0.0.1", "::1", "localhost"):
        check({}, host=host)


def test_the_place_of_a_socket_is_checked(tmp_path: Path) -> None:
    check_socket(Namespace(uds=None))
    check_socket(Namespace(uds=str(tmp_path / "x.sock")))
    (tmp_path / "file").touch()
    for path, message in [
        (tmp_path / "absent" / "x.sock", f"the folder {tmp_path / 'absent'} does not exist"),
        (tmp_path / "file", "exists and is no socket"),
        (tmp_path / ("x" * 107), "more than 107 bytes"),
    ]:
        with pytest.raises(CommandError, match=message):
            check_socket(Namespace(uds=str(path)))


def test_a_socket_that_was_left_is_removed(tmp_path: Path) -> None:
    path = tmp_path / "my x.sock"
    args = Namespace(uds=str(path))
    with free_socket(args):
        for _ in range(2):  # a killed server leaves it, the second one has to bind it again
            with socket.socket(socket.AF_UNIX) as server:
                server.bind(str(path))
            assert path.is_socket()
            check_socket(args)
            with free_socket(args):
                assert not path.exists()
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(str(path))
    assert not path.exists()
    with free_socket(Namespace(uds=None)):
        pass


@pytest.mark.parametrize("listens", [False, True])
def test_a_socket_that_a_process_has_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, listens: bool
) -> None:
    path = tmp_path / "x.sock"
    monkeypatch.chdir(tmp_path)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        if listens:
            server.listen()
        for name in ("x.sock", str(path)):
            with free_socket(Namespace(uds=name)):
                assert path.is_socket()
            with pytest.raises(CommandError, match=r"another process, .* has the socket .*x\.sock"):
                check_socket(Namespace(uds=name))


def tls(**files: Path | None) -> None:
    usual = dict.fromkeys(("ssl_certfile", "ssl_keyfile", "ssl_ca_certs"))
    given = {key: value and str(value) for key, value in files.items()}
    check_tls(Namespace(**{**usual, **given}))


def make_certificate(folder: Path, name: str) -> tuple[Path, Path]:
    key, certificate = folder / f"{name}.key", folder / f"{name}.pem"
    words = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"]
    words += ["-subj", f"/CN={name}", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run(words, check=True, capture_output=True, timeout=60)
    return certificate, key


def test_files_of_tls_are_read_before_the_engine_starts(tmp_path: Path) -> None:
    certificate, key = make_certificate(tmp_path, "one")
    _, other_key = make_certificate(tmp_path, "two")
    both = tmp_path / "both.pem"
    both.write_bytes(key.read_bytes() + certificate.read_bytes())
    text = tmp_path / "text.pem"
    text.write_text("no certificate")
    tls()
    tls(ssl_certfile=certificate, ssl_keyfile=key, ssl_ca_certs=certificate)
    tls(ssl_certfile=both)
    missing = tmp_path / "missing.pem"
    cases: list[tuple[dict[str, Path], str]] = [
        ({"ssl_certfile": missing}, f"--ssl-certfile: cannot read {missing}: No such file"),
        ({"ssl_certfile": tmp_path}, f"cannot read {tmp_path}: Is a directory"),
        ({"ssl_certfile": certificate, "ssl_keyfile": missing}, f"--ssl-keyfile: .* {missing}"),
        ({"ssl_keyfile": key}, "--ssl-keyfile is given without --ssl-certfile"),
        ({"ssl_certfile": certificate}, "no certificate with its private key"),
        ({"ssl_certfile": certificate, "ssl_keyfile": other_key}, "MISMATCH"),
        ({"ssl_certfile": text, "ssl_keyfile": key}, "no certificate with its private key"),
        ({"ssl_certfile": both, "ssl_ca_certs": text}, "--ssl-ca-certs: .* holds no certificates"),
    ]
    for files, message in cases:
        with pytest.raises(CommandError, match=message) as caught:
            tls(**files)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("what", ["key file", "store", "open address", "policy", "hub"])
def test_what_can_be_known_is_said_before_vllm_is_imported(tmp_path: Path, what: str) -> None:
    """-X importtime names on stderr every module that was imported."""
    policy = save_policy(tmp_path / "a", seed=1)
    words: list[str] = []
    environ: dict[str, str] = {}
    if what == "key file":
        environ, part = {"PREFMIX_API_KEY_FILE": "absent"}, "PREFMIX_API_KEY_FILE absent"
    elif what == "store":
        words = ["--weights-store", str(tmp_path / "absent" / "w.json")]
        part = f"the folder {tmp_path / 'absent'} of the weights store w.json does not exist"
    elif what == "open address":
        words, part = ["--host", "0.0.0.0"], "there is no API key"
    elif what == "hub":
        words, environ = ["--policy=b=helpfull"], {"HF_HUB_OFFLINE": "1"}
        part = "policy 'b': 'helpfull' is no folder here, is not in the hub's cache"
    else:
        file = policy / "model.safetensors"
        file.write_bytes(file.read_bytes()[:1000])
        part = f"policy 'a': {file}: the file is cut short or damaged"
    words += ["--port", str(free_port())]
    run = subprocess.run(
        [sys.executable, "-X", "importtime", str(PREFMIX), "serve", f"--policy=a={policy}", *words],
        capture_output=True,
        text=True,
        timeout=60,
        env={"PATH": "/usr/bin:/bin", **environ},
    )
    assert run.returncode in (1, 2)
    lines = [line for line in run.stderr.splitlines() if not line.startswith("import time:")]
    assert len(lines) == 1, lines
    assert lines[0].startswith("prefmix: error: ")
    assert part in lines[0]
    imported = {line.rpartition("|")[2].strip() for line in run.stderr.splitlines()}
    assert not {"torch", "transformers", "vllm"} & imported


def test_system_texts_need_a_template_and_reach_no_log() -> None:
    prompts = PromptSettings(systems={"kind": "Be the secret."}, request_prompts=True)
    quiet, loud = Namespace(enable_log_requests=False), Namespace(enable_log_requests=True)
    bare = dataclasses.replace(prompts, has_chat_template=False)
    check_prompts(prompts, quiet)
    check_prompts(PromptSettings(request_prompts=True, has_chat_template=False), loud)
    with pytest.raises(CommandError, match=r"'kind' has a system text.*no chat template") as lacks:
        check_prompts(bare, quiet)
    with pytest.raises(CommandError, match="--enable-log-requests would write") as logged:
        check_prompts(prompts, loud)
    assert "secret" not in f"{lacks.value}{logged.value}"
