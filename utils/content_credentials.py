"""Content Credentials: a signed statement within a PNG that a trained model made it.

C2PA (https://spec.c2pa.org/specifications/specifications/2.2/specs/C2PA_Specification.html) by
`c2pa-python`, an optional package, with the user's own certificate. The statement names the
software and the kind of source, nothing of the prompt. Pixels and text entries stay as they are.
Every signature differs, so the bytes of a signed file cannot be repeated; its pixels can.
"""

import io
import json
from itertools import pairwise
from pathlib import Path

from PIL import Image

from utils.cli import UserError
from utils.provenance import DIGITAL_SOURCE_TYPE

PACKAGE = "c2pa-python==0.38.1"

_SOFTWARE = "OCT-SD"
_FORMAT = "image/png"
_MANIFEST = {
    "claim_generator_info": [{"name": _SOFTWARE}],
    "title": "synthetic image",
    "assertions": [
        {
            "label": "c2pa.actions.v2",
            "data": {
                "actions": [
                    {
                        "action": "c2pa.created",
                        "digitalSourceType": DIGITAL_SOURCE_TYPE,
                        "softwareAgent": {"name": _SOFTWARE},
                    }
                ]
            },
        }
    ],
}
_SETTINGS = {
    # Nothing is asked for over the network; what was signed is read back.
    "verify": {"ocsp_fetch": False, "verify_after_sign": True},
    "builder": {"thumbnail": {"enabled": False}},  # the default adds a copy, 440 KB at 512 px
}
_CURVES = {"secp256r1": "es256", "secp384r1": "es384", "secp521r1": "es512"}
_NEEDS = (
    "C2PA wants a certificate that is valid today, with the key usage digitalSignature and the "
    "extended key usage emailProtection"
)


class Signer:
    """Signs PNGs; one for all threads of a process.

    Without a time stamp a signature is taken for valid as long as the certificate is.
    """

    def __init__(self, cert_path: Path, key_path: Path, *, tsa_url: str | None = None) -> None:
        """Read certificates and key, and try them on a picture of 8 x 8 px.

        Args:
            cert_path: PEM file: the signing certificate, then those that issued it, in order.
            key_path: PEM file with its private key: EC (P-256, P-384, P-521), RSA or Ed25519.
            tsa_url: Time stamp authority (RFC 3161) that every signature is sent to; None sends
                nothing to anybody.

        Raises:
            UserError: If c2pa-python is missing, a file cannot be read, certificates and key do
                not go together, or nothing can be signed with them.
        """
        try:
            import c2pa
        except ImportError as error:
            raise UserError(f"--c2pa_cert needs c2pa-python: pip install {PACKAGE}") from error
        self._c2pa = c2pa
        self._cert_path = cert_path
        chain, (algorithm, key) = _read_chain(cert_path), _read_key(key_path)
        _check_chain(chain, key, cert_path, key_path)
        info = c2pa.C2paSignerInfo(algorithm, _to_pem(*chain), _to_pem(key), tsa_url)
        try:
            self._context = c2pa.Context.from_dict(_SETTINGS)
            self._signer = c2pa.Signer.from_info(info)
        except c2pa.C2paError as error:
            raise self._refusal(error) from error
        trial = io.BytesIO()
        Image.new("L", (8, 8)).save(trial, "PNG")
        self.sign(trial.getvalue())

    def sign(self, png: bytes) -> bytes:
        """The same PNG with the statement in it, about 3 KB longer.

        Raises:
            UserError: If it cannot be signed, e.g. because the certificate has expired meanwhile.
        """
        signed = io.BytesIO()
        try:
            builder = self._c2pa.Builder.from_json(json.dumps(_MANIFEST), self._context)
            builder.sign(self._signer, _FORMAT, io.BytesIO(png), signed)
        except self._c2pa.C2paError as error:
            raise self._refusal(error) from error
        return signed.getvalue()

    def _refusal(self, reason: Exception) -> UserError:
        return UserError(f"--c2pa_cert {self._cert_path} cannot sign: {reason}. {_NEEDS}")


def _read_file(path: Path, flag: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{flag} {path}: cannot be read: {error.strerror}") from error


def _read_chain(path: Path) -> list:
    from cryptography import x509

    data = _read_file(path, "--c2pa_cert")
    try:
        return x509.load_pem_x509_certificates(data)
    except ValueError as error:
        raise UserError(f"--c2pa_cert {path}: no certificates in PEM form: {error}") from error


def _read_key(path: Path) -> tuple[str, object]:
    """The private key, and C2PA's name of the algorithm that goes with it."""
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    data = _read_file(path, "--c2pa_key")
    try:
        key = load_pem_private_key(data, password=None)
    except TypeError as error:
        raise UserError(
            f"--c2pa_key {path}: has a password; take it off: openssl pkey -in {path} -out FILE"
        ) from error
    except (ValueError, UnsupportedAlgorithm) as error:
        raise UserError(f"--c2pa_key {path}: no private key in PEM form: {error}") from error
    if isinstance(key, ec.EllipticCurvePrivateKey) and key.curve.name in _CURVES:
        return _CURVES[key.curve.name], key
    if isinstance(key, rsa.RSAPrivateKey):
        return "ps256", key
    if isinstance(key, ed25519.Ed25519PrivateKey):
        return "ed25519", key
    raise UserError(
        f"--c2pa_key {path}: of a kind that C2PA does not take; it takes EC keys (P-256, P-384, "
        "P-521), RSA and Ed25519"
    )


def _check_chain(chain: list, key, cert_path: Path, key_path: Path) -> None:
    from cryptography.exceptions import InvalidSignature

    if chain[0].public_key() != key.public_key():
        raise UserError(
            f"--c2pa_key {key_path}: not the key of the first certificate of --c2pa_cert "
            f"{cert_path} ({chain[0].subject.rfc4514_string()})"
        )
    for number, (certificate, issuer) in enumerate(pairwise(chain), start=1):
        try:
            certificate.verify_directly_issued_by(issuer)
        except (ValueError, TypeError, InvalidSignature) as error:
            raise UserError(
                f"--c2pa_cert {cert_path}: certificate {number} was not issued by certificate "
                f"{number + 1}; each must be followed by its issuer"
            ) from error


def _to_pem(*items) -> bytes:
    """Certificates, or a key (as PKCS #8, the one form that c2pa reads)."""
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    if hasattr(items[0], "private_bytes"):
        return items[0].private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return b"".join(item.public_bytes(Encoding.PEM) for item in items)
