"""Signed PNGs: what c2pa itself reads in them, what stays as it was, and what is refused."""

import base64
import datetime
import http.server
import io
import json
import struct
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

import generate_synthetic_dataset as generate
from utils.cli import UserError
from utils.content_credentials import Signer
from utils.provenance import DIGITAL_SOURCE_TYPE, png_text

c2pa = pytest.importorskip("c2pa", reason="c2pa-python is optional")

from cryptography import x509  # noqa: E402 (comes with c2pa)
from cryptography.hazmat.primitives import hashes  # noqa: E402
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa  # noqa: E402
from cryptography.hazmat.primitives.serialization import (  # noqa: E402
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
)
from cryptography.x509.oid import (  # noqa: E402
    AuthorityInformationAccessOID,
    ExtendedKeyUsageOID,
    NameOID,
)

PROMPT = "macular edema 👁️ of 120 µm\n" * 400  # 10,400 characters
DAY = datetime.timedelta(days=1)


# A certificate authority


def name_of(who):
    return x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "A clinic"),
            x509.NameAttribute(NameOID.COMMON_NAME, who),
        ]
    )


def certify(
    key, who, *, issuer, issuer_key, usage=ExtendedKeyUsageOID.EMAIL_PROTECTION, age=DAY, url=None
):
    """Certificate of a key; of a CA where there is no usage; valid for two days, one of them over.

    The shape is the one that C2PA demands, section "X.509 Certificates" of its specification.
    """
    is_ca = usage is None
    start = datetime.datetime.now(datetime.timezone.utc) - age
    key_usage = dict.fromkeys(
        (
            "content_commitment",
            "key_encipherment",
            "data_encipherment",
            "key_agreement",
            "encipher_only",
            "decipher_only",
        ),
        False,
    ) | {"digital_signature": not is_ca, "key_cert_sign": is_ca, "crl_sign": is_ca}
    builder = (
        x509.CertificateBuilder()
        .subject_name(name_of(who))
        .issuer_name(name_of(issuer))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(start + 2 * DAY)
        .add_extension(x509.BasicConstraints(is_ca, None), critical=True)
        .add_extension(x509.KeyUsage(**key_usage), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()),
            critical=False,
        )
    )
    if not is_ca:
        builder = builder.add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
    if url is not None:
        place = x509.UniformResourceIdentifier(url)
        access = [x509.AccessDescription(AuthorityInformationAccessOID.OCSP, place)]
        builder = builder.add_extension(x509.AuthorityInformationAccess(access), critical=False)
    return builder.sign(issuer_key, hashes.SHA256())


ROOT_KEY, CA_KEY, KEY = (ec.generate_private_key(ec.SECP256R1()) for _ in range(3))
ROOT = certify(ROOT_KEY, "root", issuer="root", issuer_key=ROOT_KEY, usage=None)
CA = certify(CA_KEY, "ca", issuer="root", issuer_key=ROOT_KEY, usage=None)


def leaf(key, **options):
    return certify(key, "signer", issuer="ca", issuer_key=CA_KEY, **options)


def write_files(folder, chain, key, *, form=PrivateFormat.PKCS8, password=None):
    """Paths of certificate chain and key, as `Signer` takes them."""
    cert_path, key_path = folder / "chain.pem", folder / "key.pem"
    cert_path.write_bytes(b"".join(one.public_bytes(Encoding.PEM) for one in chain))
    secrecy = BestAvailableEncryption(password) if password else NoEncryption()
    key_path.write_bytes(key.private_bytes(Encoding.PEM, form, secrecy))
    return cert_path, key_path


@pytest.fixture
def signer(tmp_path):
    return Signer(*write_files(tmp_path, [leaf(KEY), CA], KEY))


# PNGs


def pixels_of(seed):
    return np.random.default_rng(seed).integers(0, 256, (64, 48), dtype=np.uint8)


def png(seed=0):
    """A marked picture with its prompt in it."""
    entries = PngImagePlugin.PngInfo()
    mark = png_text(
        prompt_sha256=sha256(PROMPT.encode()).hexdigest(), seed=1, model_hash="x", prompt=PROMPT
    )
    for key, value in mark.items():
        entries.add_text(key, value)
    stream = io.BytesIO()
    Image.fromarray(pixels_of(seed)).save(stream, "PNG", pnginfo=entries)
    return stream.getvalue()


def chunks_of(data):
    place, found = 8, []
    while place < len(data):
        (length,) = struct.unpack(">I", data[place : place + 4])
        found.append((data[place + 4 : place + 8], data[place + 8 : place + 8 + length]))
        place += 12 + length
    return found


def opened(data):
    image = Image.open(io.BytesIO(data))
    image.load()
    return image


def read_by_c2pa(data, **verify):
    """State, manifest, and codes of what failed, as any reader of C2PA sees them."""
    settings = {"verify": {"verify_trust": False} | verify}
    with c2pa.Reader(
        "image/png", io.BytesIO(data), context=c2pa.Context.from_dict(settings)
    ) as reader:
        failures = reader.get_validation_results()["activeManifest"]["failure"]
        return (
            reader.get_validation_state(),
            reader.get_active_manifest(),
            {failure["code"] for failure in failures},
        )


# The mark


def test_a_prompt_of_any_letters_is_unicode_text_of_the_png():
    for prompt in ("plain words", PROMPT):
        entry = png_text(prompt_sha256="", seed=1, model_hash="", prompt=prompt)["prompt"]
        entries = PngImagePlugin.PngInfo()
        entries.add_text("prompt", entry)
        stream = io.BytesIO()
        Image.new("L", (8, 8)).save(stream, "PNG", pnginfo=entries)
        (text,) = [body for kind, body in chunks_of(stream.getvalue()) if kind == b"iTXt"]
        assert text == b"prompt\0\0\0\0\0" + prompt.encode("utf-8")
        assert opened(stream.getvalue()).text["prompt"] == prompt


def test_the_prompt_is_in_the_png_only_if_given():
    assert "prompt" not in png_text(prompt_sha256="", seed=1, model_hash="")


# The signature


def test_a_reader_is_told_that_a_trained_model_made_the_image(signer):
    state, manifest, failures = read_by_c2pa(signer.sign(png()))
    assert (state, failures) == ("Valid", set())
    (assertion,) = manifest["assertions"]
    (action,) = assertion["data"]["actions"]
    assert action == {
        "action": "c2pa.created",
        "digitalSourceType": DIGITAL_SOURCE_TYPE,
        "softwareAgent": {"name": "OCT-SD"},
    }
    assert manifest["claim_generator_info"][0]["name"] == "OCT-SD"
    assert manifest["title"] == "synthetic image"
    assert manifest["signature_info"]["common_name"] == "signer"
    assert "edema" not in json.dumps(manifest)


def test_pixels_and_text_stay_as_they_were(signer):
    before, after = png(), signer.sign(png())
    assert np.array_equal(opened(after), pixels_of(0))
    assert opened(after).text["prompt"] == PROMPT
    added = [kind for kind, _ in chunks_of(after) if kind == b"caBX"]
    assert len(added) == 1
    assert [chunk for chunk in chunks_of(after) if chunk[0] != b"caBX"] == chunks_of(before)
    assert len(after) - len(before) < 5000  # no thumbnail


def test_whoever_knows_the_root_trusts_the_image(tmp_path):
    signed = Signer(*write_files(tmp_path, [leaf(KEY), CA], KEY)).sign(png())
    anchors = ROOT.public_bytes(Encoding.PEM).decode()
    for anchor, expected in ((anchors, "Trusted"), (None, "Valid")):
        settings = {"trust": {"trust_anchors": anchor}} if anchor else {}
        reader = c2pa.Reader(
            "image/png", io.BytesIO(signed), context=c2pa.Context.from_dict(settings)
        )
        assert reader.get_validation_state() == expected


@pytest.mark.parametrize("kind", [b"IDAT", b"tEXt", b"iTXt"])
def test_a_change_after_signing_is_seen(signer, kind):
    signed = bytearray(signer.sign(png()))
    signed[signed.index(kind) + 30] ^= 1
    state, _, failures = read_by_c2pa(bytes(signed))
    assert state == "Invalid"
    assert "assertion.dataHash.mismatch" in failures


def rsa_key():
    return rsa.generate_private_key(65537, 2048)


@pytest.mark.parametrize(
    ("make_key", "algorithm"),
    [
        (lambda: ec.generate_private_key(ec.SECP256R1()), "Es256"),
        (lambda: ec.generate_private_key(ec.SECP384R1()), "Es384"),
        (lambda: ec.generate_private_key(ec.SECP521R1()), "Es512"),
        (rsa_key, "Ps256"),
        (ed25519.Ed25519PrivateKey.generate, "Ed25519"),
    ],
)
def test_every_kind_of_key_signs(tmp_path, make_key, algorithm):
    key = make_key()
    state, manifest, _ = read_by_c2pa(
        Signer(*write_files(tmp_path, [leaf(key), CA], key)).sign(png())
    )
    assert (state, manifest["signature_info"]["alg"]) == ("Valid", algorithm)


def test_a_key_in_the_older_form_is_taken(tmp_path):
    form = PrivateFormat.TraditionalOpenSSL
    signed = Signer(*write_files(tmp_path, [leaf(KEY), CA], KEY, form=form)).sign(png())
    assert read_by_c2pa(signed)[0] == "Valid"


def test_threads_share_a_signer(signer):
    with ThreadPoolExecutor(4) as pool:
        signed = list(pool.map(lambda seed: signer.sign(png(seed)), range(48)))
    for seed, data in enumerate(signed):
        assert np.array_equal(opened(data), pixels_of(seed))
        assert read_by_c2pa(data)[0] == "Valid"


# The network


@pytest.fixture
def server():
    """Address of a server on this machine, and the requests it got; it refuses all."""
    requests = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            requests.append(self.path)
            self.send_error(404)

        do_POST = do_GET

        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}", requests
        running.shutdown()


def test_signing_asks_nobody_though_the_certificate_names_a_server(tmp_path, server):
    address, requests = server
    chain = [leaf(KEY, url=f"{address}/ocsp"), CA]
    signed = Signer(*write_files(tmp_path, chain, KEY)).sign(png())
    assert requests == []
    read_by_c2pa(signed, ocsp_fetch=True)  # a reader that asks is heard
    assert requests


def test_only_a_time_stamp_authority_that_was_named_is_asked(tmp_path, server):
    address, requests = server
    paths = write_files(tmp_path, [leaf(KEY), CA], KEY)
    with pytest.raises(UserError, match="cannot sign"):
        Signer(*paths, tsa_url=f"{address}/tsa")
    assert requests == ["/tsa"]


# What is refused before a model is loaded


def test_without_the_package_the_command_to_install_it_is_told(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "c2pa", None)
    with pytest.raises(UserError, match=r"--c2pa_cert needs c2pa-python: pip install c2pa-python="):
        Signer(tmp_path / "chain.pem", tmp_path / "key.pem")


@pytest.mark.parametrize("which", ["chain.pem", "key.pem"])
@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (None, "cannot be read"),
        (b"", "PEM"),
        (b"-----BEGIN CERTIFICATE-----\nabc\n-----END CERTIFICATE-----\n", "PEM"),
        (base64.b64encode(b"words"), "PEM"),
    ],
)
def test_a_file_that_cannot_be_used_is_named_with_its_flag(tmp_path, which, data, reason):
    paths = write_files(tmp_path, [leaf(KEY), CA], KEY)
    (tmp_path / which).unlink()
    if data is not None:
        (tmp_path / which).write_bytes(data)
    flag = {"chain.pem": "--c2pa_cert", "key.pem": "--c2pa_key"}[which]
    with pytest.raises(UserError, match=rf"{flag} .*{which}: .*{reason}"):
        Signer(*paths)


DOCUMENT_SIGNING = "1.3.6.1.5.5.7.3.36"  # RFC 9336; c2pa signs with it, and then refuses to read
OTHER_KEY = ec.generate_private_key(ec.SECP256R1())


@pytest.mark.parametrize(
    ("chain", "key", "message"),
    [
        (lambda: [leaf(KEY), CA], OTHER_KEY, r"--c2pa_key .*key\.pem: not the key of .*CN=signer"),
        (lambda: [CA, leaf(KEY)], KEY, r"--c2pa_key .*not the key of the first.*CN=ca"),
        (lambda: [leaf(KEY), ROOT], KEY, "certificate 1 was not issued by certificate 2"),
        (lambda: [leaf(KEY), CA, CA], KEY, "certificate 2 was not issued by certificate 3"),
        (
            lambda: [leaf(KEY, age=3 * DAY), CA],
            KEY,
            r"--c2pa_cert .*chain\.pem cannot sign: .*not valid at time.*valid today",
        ),
        (lambda: [leaf(KEY, age=-DAY), CA], KEY, "not valid at time"),
        (
            lambda: [leaf(KEY, usage=ExtendedKeyUsageOID.SERVER_AUTH), CA],
            KEY,
            "cannot sign: .*invalid.*emailProtection",
        ),
        (lambda: [CA], CA_KEY, "cannot sign"),
        (
            lambda: [leaf(KEY, usage=x509.ObjectIdentifier(DOCUMENT_SIGNING)), CA],
            KEY,
            "cannot sign: .*failed validation.*missing required EKU",
        ),
    ],
    ids=[
        *("key", "order", "issuer", "second issuer", "expired", "future", "usage", "authority"),
        "seen by reading back",
    ],
)
def test_certificates_that_cannot_sign_are_refused_at_once(tmp_path, chain, key, message):
    with pytest.raises(UserError, match=f"(?s){message}"):
        Signer(*write_files(tmp_path, chain(), key))


def test_a_key_with_a_password_or_of_another_kind_is_refused(tmp_path):
    paths = write_files(tmp_path, [leaf(KEY), CA], KEY, password=b"secret")
    with pytest.raises(UserError, match=r"--c2pa_key .*password.*openssl pkey"):
        Signer(*paths)
    bitcoin = ec.generate_private_key(ec.SECP256K1())
    with pytest.raises(UserError, match=r"--c2pa_key .*does not take"):
        Signer(*write_files(tmp_path, [leaf(bitcoin), CA], bitcoin))


# A set that is drawn signed


def flags_of(tiny_pipeline, folder, *more):
    where = ["--model", tiny_pipeline, "--output_dir", folder, "--device", "cpu", "--offline"]
    what = ["--prompt", "drusen", "--num_images", 3, "--num_inference_steps", 2]
    return [str(flag) for flag in [*where, *what, *more]]


def test_every_image_of_a_set_is_signed_and_its_pixels_are_those_of_the_unsigned(
    tiny_pipeline, tmp_path
):
    cert_path, key_path = write_files(tmp_path, [leaf(KEY), CA], KEY)
    sign = ["--c2pa_cert", cert_path, "--c2pa_key", key_path]
    generate.main(flags_of(tiny_pipeline, tmp_path / "plain"))
    generate.main(flags_of(tiny_pipeline, tmp_path / "signed", *sign))
    for path in sorted(tmp_path.glob("signed/images/*.png")):
        state, manifest, _ = read_by_c2pa(path.read_bytes())
        assert state == "Valid"
        assert manifest["title"] == "synthetic image"
        plain = (tmp_path / "plain/images" / path.name).read_bytes()
        assert opened(path.read_bytes()).tobytes() == opened(plain).tobytes()
    rows = (tmp_path / "signed/manifest.csv").read_text().splitlines()
    generate.main(flags_of(tiny_pipeline, tmp_path / "signed", *sign))
    assert (tmp_path / "signed/manifest.csv").read_text().splitlines() == rows


def test_certificates_are_tried_before_anything_is_written(tiny_pipeline, tmp_path):
    cert_path, _ = write_files(tmp_path, [leaf(KEY), CA], KEY)
    key_path = tmp_path / "other.pem"
    key_path.write_text("no key")
    with pytest.raises(UserError, match="--c2pa_key"):
        generate.main(
            flags_of(
                *(tiny_pipeline, tmp_path / "set"),
                *("--c2pa_cert", cert_path, "--c2pa_key", key_path),
            )
        )
    assert not (tmp_path / "set").exists()
