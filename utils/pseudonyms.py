"""Names of patients that cannot be traced back without a key."""

import hashlib
import hmac

from utils.cli import UserError

MIN_KEY_BYTES = 16
_HEX_DIGITS = 12  # 48 bits: two of a million patients meet with a probability of 0.2 %


class Pseudonyms:
    """Gives each identity one name: the same with the same key, another with another key."""

    def __init__(self, key: bytes) -> None:
        """Take a key of at least `MIN_KEY_BYTES` bytes.

        Raises:
            UserError: If it is shorter, for then it could be guessed.
        """
        if len(key) < MIN_KEY_BYTES:
            raise UserError(
                f"--pseudonym_key: {len(key)} bytes, at least {MIN_KEY_BYTES} are needed; make "
                "one by: head -c 32 /dev/urandom > pseudonym.key"
            )
        self._key = key

    def of(self, identity: str) -> str:
        """``P-`` and 12 hex digits of HMAC-SHA256 (RFC 2104) of the identity."""
        digest = hmac.new(self._key, identity.encode("utf-8"), hashlib.sha256)
        return f"P-{digest.hexdigest()[:_HEX_DIGITS]}"
